"""The command line: `python -m training COMMAND`. Each stage says what it reads and writes in its `--help`."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np

from training import recipes
from training.options import add_options, read_options
from training.recipe import Recipe


def main() -> None:
    """Do one command; exit 1 with a message for bad data."""
    parser = argparse.ArgumentParser(prog="python -m training", description="From human judgments to aligned models.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_run, _add_vice, _add_cluster, _add_triplets, _add_check, _add_student):
        add(commands)
    args = parser.parse_args()
    try:
        args.do(args)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _command(commands: Any, name: str, do: Callable[[argparse.Namespace], None], about: str) -> Any:
    parser = commands.add_parser(name, help=about.partition(".")[0], description=about)
    parser.set_defaults(do=do)
    return parser


def _recipes(kind: type[Any]) -> dict[str, Any]:
    """Name to recipe, of the files of training/recipes/ that hold one of this kind."""
    found = {m.name: import_module(f"training.recipes.{m.name}").RECIPE for m in iter_modules(recipes.__path__)}
    return {name: recipe for name, recipe in found.items() if isinstance(recipe, kind)}


# --- run ----------------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        _run,
        "Do every stage of a recipe that is not complete yet. Reads photos and judgments under --data (images.csv, "
        "things/), writes a run folder at --out. Killed at any point, the same command goes on where it stopped.",
    )
    parser.add_argument("recipe", choices=sorted(_recipes(Recipe)), help="a file of training/recipes/")
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make or to continue")


def _run(args: argparse.Namespace) -> None:
    from training.run import run

    for figure in run(_recipes(Recipe)[args.recipe], args.data, args.out)["figures"]:
        interval = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        what = f"{figure['space']:8} {figure['name']:48}"
        print(f"{what} {figure['value']:.3f} {interval} {figure['unit']}, n={figure['n']}")


# --- vice ---------------------------------------------------------------------------------------


def _add_vice(commands: Any) -> None:
    parser = _command(
        commands,
        "vice",
        _vice,
        "Fit VICE to odd-one-out triplets. Reads TRAIN and VAL, N x 3 object numbers from 0 (.npy or text); writes "
        "checkpoint, results.jsonl, parameters.npz, pruned_params.npz and summary.json to --out.",
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--odd", choices=("first", "last"), required=True, help="which column is the odd one out")
    parser.add_argument("--recipe", default="vice_things", help="a VICE recipe of training/recipes/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, help="rows of the embedding; the recipe's if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants other than the recipe's")


def _vice(args: argparse.Namespace) -> None:
    from training.vice import ViceConfig
    from training.vice_data import read_triplets
    from training.vice_fit import ViceRecipe, fit_vice

    found = _recipes(ViceRecipe)
    if args.recipe not in found:
        raise ValueError(f"no VICE recipe {args.recipe!r}; there are {sorted(found)}.")
    recipe = found[args.recipe]
    overrides = dict(pair.split("=", 1) for pair in args.set if "=" in pair)
    values = asdict(recipe.config) | {name: _number(text) for name, text in overrides.items()}
    n_objects = args.objects or recipe.n_objects
    train, val = (read_triplets(path, n_objects, odd=args.odd) for path in (args.train, args.val))
    config = ViceConfig.from_mapping(values)
    fit_vice(train, val, config, args.out, recipe.seed, n_objects=n_objects, device=args.device)
    print((args.out / "summary.json").read_text(), end="")


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --- cluster, triplets --------------------------------------------------------------------------


def _add_cluster(commands: Any) -> None:
    from training.cluster import ClusterConfig

    parser = _command(
        commands,
        "cluster",
        _cluster,
        "k-means of transformed features, with the elbow. Reads --features (.npy, float32 [n, p]); writes "
        "assignments.npy, centroids.npy, elbow.json, elbow.svg and summary.json to --out.",
    )
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_options(parser, ClusterConfig)


def _cluster(args: argparse.Namespace) -> None:
    from training.cluster import ClusterConfig, cluster

    print(json.dumps(cluster(args.features, args.out, read_options(args, ClusterConfig)), indent=2))


def _add_triplets(commands: Any) -> None:
    from training.triplets import TripletConfig

    parser = _command(
        commands,
        "triplets",
        _triplets,
        "Sample triplets and label them with the teacher's similarities. Reads --features (.npy, float32 [n, p]), "
        "--names and --groups; writes the official layout ROOT/TRANSFORM/SPLIT_SAMPLING.npz.",
    )
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True, help="file names: .npy, text with one a line, or a folder")
    parser.add_argument("--groups", type=Path, help=".npy of clusters or classes, one a row of features")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    add_options(parser, TripletConfig)


def _triplets(args: argparse.Namespace) -> None:
    from training.triplets import TripletConfig, make_triplets

    config = read_options(args, TripletConfig)
    report = make_triplets(args.features, args.names, args.groups, args.root, config, workers=args.workers)
    print(json.dumps(report, indent=2))


def _add_check(commands: Any) -> None:
    from training.triplet_gates import Gates

    parser = _command(
        commands,
        "check-triplets",
        _check,
        "Read a set of triplets and refuse it unless it belongs to these images. Reads the .npz or folder of shards "
        "PATH; prints what the gates measured.",
    )
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--names", type=Path, required=True, help="your images: .npy, text with one a line, or a folder"
    )
    parser.add_argument("--features", type=Path, help=".npy [n, p] of your images, for the correlation gate")
    parser.add_argument("--classes", type=Path, help=".npy of classes, one an image")
    add_options(parser, Gates)


def _check(args: argparse.Namespace) -> None:
    from training.triplet_files import Names, read_names
    from training.triplet_gates import Gates, load

    features, classes = (None if p is None else np.load(p, allow_pickle=False) for p in (args.features, args.classes))
    names = Names(read_names(args.names), str(args.names))
    print(
        json.dumps(
            load(args.path, names, read_options(args, Gates), features=features, classes=classes).report, indent=2
        )
    )


# --- student ------------------------------------------------------------------------------------


def _add_student(commands: Any) -> None:
    from training.student import StudentRecipe

    parser = _command(
        commands,
        "student",
        _student,
        "Distil a run's aligned teacher into a ViT, split by split. Reads the run folder --teacher and photos under "
        "--data; writes checkpoints, vectors and figures.json to --out.",
    )
    parser.add_argument("recipe", choices=sorted(_recipes(StudentRecipe)), help="a student of training/recipes/")
    parser.add_argument("--teacher", type=Path, required=True, help="a complete run folder of `run starter`")
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")


def _student(args: argparse.Namespace) -> None:
    from training.student import StudentRecipe, run_students

    teacher = _recipes(Recipe)["starter"]
    figures = run_students(_recipes(StudentRecipe)[args.recipe], teacher, args.teacher, args.data, args.out)
    for model, estimates in figures.items():
        for name, e in estimates.items():
            print(f"{model:8} {name:44} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}], n={e['n']}")


if __name__ == "__main__":
    main()
