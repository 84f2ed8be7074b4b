"""Pool what several perceptual runs say of kinds of trial that they had not seen.

Reads left-out.npz of run folders that `perceptual --leave-one-kind-out` wrote, over the same images with different
--draw. Prints accuracy before, untrained where that is another, after, and the differences with their intervals: images
are drawn with replacement, with all that any of the runs judged on them. Runs over other images are refused.
"""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Run folders, and the bootstrap."""
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--bootstrap", type=int, default=2000, help="samples")


def do(args: argparse.Namespace) -> None:
    """Print the pooled figures."""
    from training.commands.perceptual import print_columns
    from training.perceptual.left_out import FILE, LeftOut, left_out_figures, pooled

    earned = pooled({str(run): LeftOut.read(run / FILE) for run in args.runs})
    print(f"{len(earned.kind)} judgments of {len(args.runs)} runs")
    print_columns(left_out_figures(earned, repetitions=args.bootstrap, seed=0))
