"""Fit VICE to odd-one-out triplets.

Reads TRAIN and VAL, N x 3 object numbers from 0 (.npy or text); writes checkpoint, results.jsonl, parameters.npz,
pruned_params.npz and summary.json to --out. With --check, an embedding of the same objects that is known to be right
(.npy [objects, dimensions], or parameters.npz or pruned_params.npz of `vice`), files in which the odd one stands
elsewhere, or whose numbers are shifted, are refused before the fit.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Triplets, recipe and constants."""
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--odd", choices=("first", "last"), required=True, help="which column is the odd one out")
    parser.add_argument("--check", type=Path, metavar="EMBEDDING", help="known to be right, to check both files by")
    parser.add_argument("--zero-absent", action="store_true", help="object 0 is in no row; the files are not 1-based")
    parser.add_argument("--recipe", default="vice_things", help="a VICE recipe of training/recipes/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, help="rows of the embedding; the recipe's if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants other than the recipe's")


def do(args: argparse.Namespace) -> None:
    """Fit, and print the summary."""
    from training.recipes import recipes_of
    from training.vice import ViceConfig
    from training.vice_data import confirm, read_triplets
    from training.vice_fit import ViceRecipe, fit_vice

    found = recipes_of(ViceRecipe)
    if args.recipe not in found:
        raise ValueError(f"no VICE recipe {args.recipe!r}; there are {sorted(found)}.")
    recipe = found[args.recipe]
    values = asdict(recipe.config) | dict(_setting(text) for text in args.set)
    n_objects = args.objects or recipe.n_objects
    config = ViceConfig.from_mapping(values)
    files = (args.train, args.val)
    train, val = (read_triplets(file, n_objects, odd=args.odd, zero_absent=args.zero_absent) for file in files)
    if args.check is not None:
        known = _read_known(args.check, n_objects)
        for file, rows in zip(files, (train, val), strict=True):
            confirm(file, rows, known, odd=args.odd)
    fit_vice(train, val, config, args.out, recipe.seed, n_objects=n_objects, device=args.device)
    print((args.out / "summary.json").read_text(), end="")


def _read_known(file: Path, n_objects: int) -> Any:
    """An embedding [objects, dimensions] to check triplets by. Raises ValueError when it is none of these objects."""
    import numpy as np

    from training.vice import Posterior

    known = np.load(file, allow_pickle=False) if file.suffix == ".npy" else Posterior.load_pruned(file).embedding()
    if known.ndim != 2 or len(known) != n_objects or known.dtype.kind not in "iuf" or not np.isfinite(known).all():
        raise ValueError(
            f"{file} is {known.dtype} {known.shape}; expected finite numbers [{n_objects}, dimensions], by object."
        )
    return known


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE; numbers become numbers. Raises ValueError without a `=`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set was given {text!r}; expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
