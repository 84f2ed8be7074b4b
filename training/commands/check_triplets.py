"""Read a set of triplets and refuse it unless it belongs to these images.

Reads the .npz or folder of shards PATH; prints what the gates measured.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The set, what your images are, and the fields of Gates."""
    from training.triplet_gates import Gates

    names = "your images: .npy, text with one a line, or a folder"
    parser.add_argument("path", type=Path)
    parser.add_argument("--names", type=Path, required=True, help=names)
    parser.add_argument("--features", type=Path, help=".npy [n, p] of your images, for the correlation gate")
    parser.add_argument("--classes", type=Path, help=".npy of classes, one an image")
    options.add_options(parser, Gates)


def do(args: argparse.Namespace) -> None:
    """Load the set through every gate, and print the report."""
    from training.triplet_files import Names, read_names
    from training.triplet_gates import Gates, load

    features, classes = (None if p is None else np.load(p, allow_pickle=False) for p in (args.features, args.classes))
    names = Names(read_names(args.names), str(args.names))
    loaded = load(args.path, names, options.read_options(args, Gates), features=features, classes=classes)
    print(json.dumps(loaded.report, indent=2))
