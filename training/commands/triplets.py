"""Sample triplets and label them with the teacher's similarities.

Reads --features (.npy, float32 [n, p]), --names and --groups; writes the official layout
ROOT/TRANSFORM/SPLIT_SAMPLING.npz.
"""

import argparse
import json
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Features, names, groups, folder, and the fields of TripletConfig."""
    from training.triplets import TripletConfig

    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True, help="file names: .npy, text with one a line, or a folder")
    parser.add_argument("--groups", type=Path, help=".npy of clusters or classes, one a row of features")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options.add_options(parser, TripletConfig)


def do(args: argparse.Namespace) -> None:
    """Make the triplets, and print the report."""
    from training.triplets import TripletConfig, make_triplets

    config = options.read_options(args, TripletConfig)
    report = make_triplets(args.features, args.names, args.groups, args.root, config, workers=args.workers)
    print(json.dumps(report, indent=2))
