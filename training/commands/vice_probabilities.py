"""Choice probabilities of triplets, by a fitted VICE posterior.

Reads --triplets (N x 3 object numbers from 0, .npy or text) and --vice (parameters.npz or pruned_params.npz of
`vice`, or a mean embedding .npy); writes probabilities.npy (float32 [N, 3]) and summary.json to --out. Rows and
image positions are those of the file. With --odd, the summary says how well the file's choices are foretold.
"""

import argparse
import json
from pathlib import Path
from typing import get_args


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files, folder, samples and order."""
    from training.vice_probabilities import Order

    parser.add_argument("--triplets", type=Path, required=True)
    parser.add_argument("--zero-absent", action="store_true", help="object 0 is in no row; the file is not 1-based")
    parser.add_argument("--vice", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--samples", type=int, default=50, help="of the posterior, averaged; default 50")
    parser.add_argument("--seed", type=int, default=0)
    about = "pairs: that 01, 02, 12 are the most similar (what `probe` reads); odd-one-out: that 0, 1, 2 are odd"
    parser.add_argument("--order", choices=get_args(Order), default="pairs", help=f"{about}; default pairs")
    parser.add_argument("--odd", choices=("first", "last"), help="which column people chose as the odd one out, if any")


def do(args: argparse.Namespace) -> None:
    """Compute, and print the summary."""
    from training.vice_probabilities import vice_probabilities

    given = {name: getattr(args, name) for name in ("samples", "seed", "order", "odd", "zero_absent")}
    print(json.dumps(vice_probabilities(args.triplets, args.vice, args.out, **given), indent=2))
