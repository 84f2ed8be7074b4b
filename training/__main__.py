"""The command line: `python -m training COMMAND`. Each command says what it reads and writes in its `--help`."""

import argparse
import sys
from importlib import import_module
from pkgutil import iter_modules

from training import commands


def main(argv: list[str] | None = None) -> None:
    """Do one command; exit 1 with a message for bad data, 2 for a bad command line."""
    given = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in given if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="python -m training", description="From human judgments to aligned models.")
    choices = parser.add_subparsers(dest="command", required=True)
    for found in iter_modules(commands.__path__):
        name = found.name.replace("_", "-")
        module = import_module(f"training.commands.{found.name}")
        about = (module.__doc__ or "").replace("%", "%%")
        command = choices.add_parser(name, help=about.partition("\n")[0].rstrip("."), description=about)
        command.set_defaults(do=module.do)
        if name == chosen:  # only then its imports are paid for
            module.add_options(command)
    args = parser.parse_args(given)
    try:
        args.do(args)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
