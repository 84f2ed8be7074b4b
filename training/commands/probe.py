"""Learn a linear transform of object features on human triplets.

Objectives: hard, global, glocal and soft (uncertainty distillation). Reads --features (.npy, float32 [objects, p]),
--triplets (N x 3 object numbers from 0, .npy or text); for soft, --targets (.npy [N, 3] of `vice-probabilities`,
order pairs, of the same file of triplets); for glocal, --local (.npy, float32 [photos, p]). Fits every penalty with
every learning rate on every fold of objects; writes results.jsonl, transform.npz and summary.json to --out. Killed at
any point, the same command goes on where it stopped.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from training import options

OF_GRID = ("penalty", "learning_rate")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files, folder, the fields of Grid, and those of ProbeConfig that the grid does not replace."""
    from training.probe_grid import Grid
    from training.probing import ProbeConfig

    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--triplets", type=Path, required=True)
    parser.add_argument("--odd", choices=("first", "last"), required=True, help="which column is the odd one out")
    parser.add_argument("--zero-absent", action="store_true", help="object 0 is in no row; the file is not 1-based")
    parser.add_argument("--targets", type=Path, help="pair probabilities of each triplet, for the objective soft")
    parser.add_argument("--local", type=Path, help="features of other photos, for the objective glocal")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options.add_options(parser, Grid)
    options.add_options(parser, ProbeConfig, but=OF_GRID)


def do(args: argparse.Namespace) -> None:
    """Fit the grid, and print the summary."""
    from training.probe_grid import Grid, probe
    from training.probing import ProbeConfig, ProbeData
    from training.stage import read_features
    from training.vice_data import misread, read_triplets

    config, grid = options.read_options(args, ProbeConfig), options.read_options(args, Grid)
    features, _ = read_features(args.features)
    rows = read_triplets(args.triplets, len(features), odd=args.odd, zero_absent=args.zero_absent)
    # A warning and no more: these are the features of any model, and a model may be wrong about people.
    if said := misread(rows, features, odd=args.odd, kernel="cosine"):
        warnings.warn(f"{args.triplets}: {said}. Is that so? --odd says where it stands.", stacklevel=2)
    targets = None if args.targets is None else _targets(args.targets, len(rows), args.odd)
    local = None if args.local is None else read_features(args.local)[0]
    data = ProbeData(features, rows, targets, local)
    print(json.dumps(probe(data, config, grid, args.out, seed=args.seed, device=args.device).summary, indent=2))


def _targets(file: Path, n: int, odd: str) -> Any:
    """Probabilities [n, 3] of the pairs 01, 02, 12 of each row with its odd one moved to the end."""
    from training.probing import check_probabilities

    p = np.load(file, allow_pickle=False)
    if p.shape == (n, 3) and odd == "first":
        p = p[:, [2, 0, 1]]  # columns 1, 2, 0 of the triplet: their pairs are 12, 01 and 02
    try:
        check_probabilities(p, n)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return p
