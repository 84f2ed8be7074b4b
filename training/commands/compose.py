"""Make one transform of two: what `probe` learned on vectors that another transform had given.

Reads FIRST and SECOND, transform.npz of `align`, `probe` or `run`; writes --out, the map that does FIRST, then SECOND,
and beside it its .json: sha256 of both inputs, versions.
"""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files."""
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")


def do(args: argparse.Namespace) -> None:
    """Compose, and print the widths."""
    from contract.files import sha256_of
    from training.align import Transform
    from training.stage import claim

    if args.out.suffix != ".npz":
        raise ValueError(f"--out is {args.out}; expected a file that ends in .npz, beside which stands its .json.")
    first, second = Transform.load(args.first), Transform.load(args.second)
    both = first.then(second)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    inputs = {"first": sha256_of(args.first), "second": sha256_of(args.second)}
    claim(args.out.with_suffix(".json"), {"inputs": inputs}, ("numpy",))
    both.save(args.out)
    print(f"{args.out}: {both.weights.shape[0]} to {both.weights.shape[1]} numbers")
