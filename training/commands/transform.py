"""Apply a transform to features.

Reads --features (.npy, float32 [n, p]) and --transform: transform.npz of `align`, `probe` or `run`, one that gLocal
published, or gLocal's older pickle (with --entry, --mean and --std). Writes aligned.npy (float32 [n, d]) and
summary.json to --out, block by block.
"""

import argparse
import json
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files and folder."""
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--transform", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    entry = ("SOURCE", "MODEL", "MODULE")
    parser.add_argument("--entry", nargs=3, metavar=entry, help="what to take from a pickle")
    parser.add_argument("--mean", type=float, help="of all THINGS features of the model, which a pickle lacks")
    parser.add_argument("--std", type=float, help="likewise")


def do(args: argparse.Namespace) -> None:
    """Transform, and print the summary."""
    from training.transform_stage import Legacy, transform

    given = [value is not None for value in (args.entry, args.mean, args.std)]
    if any(given) and not all(given):
        raise ValueError("--entry, --mean and --std belong together: they are for a pickle.")
    legacy = Legacy(tuple(args.entry), args.mean, args.std) if all(given) else None
    print(json.dumps(transform(args.transform, args.features, args.out, legacy), indent=2))
