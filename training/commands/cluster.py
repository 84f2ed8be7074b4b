"""k-means of transformed features, with the elbow.

Reads --features (.npy, float32 [n, p]); writes assignments.npy, centroids.npy, elbow.json, elbow.svg and
summary.json to --out.
"""

import argparse
import json
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Features, folder, and the fields of ClusterConfig."""
    from training.cluster import ClusterConfig

    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options.add_options(parser, ClusterConfig)


def do(args: argparse.Namespace) -> None:
    """Cluster, and print the summary."""
    from training.cluster import ClusterConfig, cluster

    print(json.dumps(cluster(args.features, args.out, options.read_options(args, ClusterConfig)), indent=2))
