"""The command line: `python -m training run RECIPE --data DIR --out DIR`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from training import recipes
from training.recipe import Recipe
from training.run import run


def main() -> None:
    """Run a recipe; exit 1 with a message for bad data."""
    names = sorted(module.name for module in iter_modules(recipes.__path__))
    parser = argparse.ArgumentParser(prog="python -m training", description="From human judgments to aligned models.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "run",
        help="do every stage of a recipe that is not complete yet",
        description="Reads photos and judgments under --data (images.csv, things/), writes a run folder at --out. "
        "Killed at any point, the same command goes on where it stopped.",
    )
    command.add_argument("recipe", choices=names, help="a file of training/recipes/")
    command.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    command.add_argument("--out", type=Path, required=True, help="run folder to make or to continue")
    args = parser.parse_args()
    recipe: Recipe = import_module(f"training.recipes.{args.recipe}").RECIPE
    try:
        figures = run(recipe, args.data, args.out)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    for figure in figures["figures"]:
        interval = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        what = f"{figure['space']:8} {figure['name']:48}"
        print(f"{what} {figure['value']:.3f} {interval} {figure['unit']}, n={figure['n']}")


if __name__ == "__main__":
    main()
