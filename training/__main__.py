"""The command line: `python -m training COMMAND`. Each command says what it reads and writes in its `--help`."""

import argparse
import sys
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules

from training import commands


def main(argv: list[str] | None = None) -> None:
    """Do one command; exit 1 with a message for bad data, 2 for a bad command line."""
    given = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in given if not word.startswith("-")), None)
    args = parser(chosen).parse_args(given)
    try:
        args.do(args)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


def parser(chosen: str | None = "all") -> argparse.ArgumentParser:
    """All that `python -m training` takes; shells complete and the reference is written from it.

    The options of `chosen` alone are there, or of "all" commands: some options' defaults need torch.
    """
    parser = argparse.ArgumentParser(prog="python -m training", description="From human judgments to aligned models.")
    parser.add_argument("--version", action="version", version=f"alignet-serve {version('alignet-serve')}")
    choices = parser.add_subparsers(dest="command", required=True)
    for found in iter_modules(commands.__path__):
        name = found.name.replace("_", "-")
        module = import_module(f"training.commands.{found.name}")
        about = (module.__doc__ or "").replace("%", "%%")
        command = choices.add_parser(name, help=about.partition("\n")[0].rstrip("."), description=about)
        command.set_defaults(do=module.do)
        if chosen in (name, "all"):  # only then its imports are paid for
            module.add_options(command)
    return parser


if __name__ == "__main__":
    main()
