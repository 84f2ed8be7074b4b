"""Read a set of triplets and refuse it unless it belongs to these images.

Reads the .npz or folder of shards PATH; prints what the gates measured.
"""

import argparse
import json
import sys
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
    parser.add_argument("--classes", type=Path, help=".npy [n], class of each image; else the WordNet numbers of names")
    options.add_options(parser, Gates)


def do(args: argparse.Namespace) -> None:
    """Load the set through every gate, and print the report."""
    from training.named_rows import match, read_groups, read_vectors
    from training.triplet_files import Names, read_names
    from training.triplet_gates import Gates, load

    features = None if args.features is None else read_vectors(args.features)
    classes = None if args.classes is None else read_groups(args.classes)
    found = match(read_names(args.names).tolist(), str(args.names), [features, classes])
    if found.said:
        print(found.said, file=sys.stderr)
    names, gates = Names(np.array(found.names), str(args.names)), options.read_options(args, Gates)
    loaded = load(args.path, names, gates, features=found.values[0], classes=found.values[1])
    print(json.dumps(loaded.report, indent=2))
