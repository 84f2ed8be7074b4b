"""k-means against its library used bare: faiss on an array in memory, and the whole stage.

The stage also reads, checks and hashes the features, keeps exact inertia, and writes files and checkpoints.
Both use the same number of rows, iterations and threads, and assign every row; no elbow.

    python -m benchmarks.cluster
    python -m benchmarks.cluster --images 1000000 --width 1152 --clusters 500

The second is the size of ImageNet; features are random, in a temporary file of 4 bytes a number.
Faiss bare: `faiss.Kmeans(...).train` (max_points_per_centroid as here), then `index.search` for all rows.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from training.cluster import ClusterConfig, cluster

KINDS = 1000
"""Blobs that the random features come from."""


def write_features(file: Path, images: int, width: int) -> None:
    """Random features, written block by block."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((KINDS, width), dtype=np.float32)
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(images, width))
    for start in range(0, images, 10_000):
        count = min(10_000, images - start)
        noise = rng.standard_normal((count, width), dtype=np.float32)
        out[start : start + count] = kinds[rng.integers(0, KINDS, count)] + noise
    out.flush()


def main() -> None:
    """Print seconds and inertia of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--points-per-cluster", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="of the temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "features.npy"
        write_features(file, args.images, args.width)

        config = ClusterConfig(
            clusters=args.clusters, elbow=(), iterations=args.iterations, points_per_cluster=args.points_per_cluster
        )
        start = time.perf_counter()
        summary = cluster(file, Path(folder) / "out", config)
        ours = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # with the mapped pages of the file

        x = np.load(file)
        bare_config = {"niter": args.iterations, "seed": 0, "max_points_per_centroid": args.points_per_cluster}
        start = time.perf_counter()
        bare = faiss.Kmeans(args.width, args.clusters, **bare_config)
        bare.train(x)
        trained = time.perf_counter() - start
        distance, _ = bare.index.search(x, 1)
        theirs = time.perf_counter() - start

    sys.stdout.write(
        f"{args.images} x {args.width}, c = {args.clusters}, {args.iterations} iterations, "
        f"{faiss.omp_get_max_threads()} threads\n"
        f"{'':14}{'seconds':>10}{'inertia/image':>16}\n"
        f"{'faiss bare':14}{theirs:10.2f}{float(distance.sum(dtype=np.float64)) / args.images:16.4f}"
        f"   ({trained:.2f} of it to train)\n"
        f"{'this stage':14}{ours:10.2f}{summary['inertia_per_image']:16.4f}   (peak {peak:.2f} GiB)\n"
        f"{'ratio':14}{ours / theirs:10.2f}\n"
    )


if __name__ == "__main__":
    main()
