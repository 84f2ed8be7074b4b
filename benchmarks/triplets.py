"""Triplet labelling against the memory: three rows of features are gathered for every triplet.

    python -m benchmarks.triplets
    python -m benchmarks.triplets --images 1000000 --width 1152 --triplets 1000000
    python -m benchmarks.triplets --images 1000000 --width 1152 --write 10000000

Side by side, as triplets a second and as bytes of features a second:

- stream: one pass over all features in order, the bandwidth of this memory for one reader a thread;
- gather: the three rows copied to a buffer in the cache and nothing computed, the limit of this access pattern;
- label: `training.triplets.label`, which checks, gathers, multiplies, and turns the rows;
- contract: `contract.triplets.pair_similarities(features[rows])` in pieces, what `label` must equal.

With `--write`, also the whole stage to that many triplets on disk (cluster borders, 500 clusters), its rate and
its peak memory: anonymous, and with the mapped pages of the features, which the system may take back.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

from benchmarks.cluster import write_features
from contract.triplets import pair_similarities
from training import triplets
from training.triplets import TripletConfig, label, make_triplets

PIECE = 4096


def gather(x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    """Copy the three rows of each triplet into a buffer, as `similarities` does, and compute nothing."""
    step = max(1, triplets.BUFFER // (3 * x.shape[1] * 4))
    buffer = np.empty((3, step, x.shape[1]), np.float32)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        for image in range(3):
            np.take(x, part[:, image], axis=0, out=buffer[image, : len(part)], mode="clip")


def contract_similarities(x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    """The reference, on a piece of rows."""
    pair_similarities(x[rows])


def in_threads(work: Callable[..., object], x: NDArray[np.float32], parts: list[NDArray[np.int64]], n: int) -> float:
    """Seconds of `work(x, part)` over all parts."""
    start = time.perf_counter()
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(lambda part: work(x, part), parts))
    return time.perf_counter() - start


def stream(x: NDArray[np.float32], n: int) -> float:
    """Seconds of one pass over all features, a share for each thread."""
    start = time.perf_counter()
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(lambda share: np.dot(share, share), np.array_split(x.reshape(-1), n)))
    return time.perf_counter() - start


def anonymous_peak(done: Event, peak: list[float]) -> None:
    """Watch this process's anonymous memory, in GiB, until `done`."""
    while not done.wait(0.05):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) / 2**20)


def write_set(folder: Path, images: int, config: TripletConfig, workers: int) -> str:
    """Run the stage and say how fast and how large it was."""
    rng = np.random.default_rng(1)
    np.save(folder / "groups.npy", rng.integers(0, 500, images))
    np.save(folder / "names.npy", np.array([f"n{i % 1000:08d}_{i}.JPEG" for i in range(images)]))
    peak, done = [0.0], Event()
    watch = Thread(target=anonymous_peak, args=(done, peak))
    watch.start()
    start = time.perf_counter()
    make_triplets(
        folder / "features.npy", folder / "names.npy", folder / "groups.npy", folder / "root", config, workers=workers
    )
    seconds = time.perf_counter() - start
    done.set()
    watch.join()
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"stage     {config.triplets / seconds:12,.0f}      {config.triplets} triplets on disk in {seconds:.0f} s; "
        f"peak {peak[0]:.2f} GiB anonymous, {total:.2f} GiB with mapped features\n"
    )


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--triplets", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=1, help="threads; set OMP_NUM_THREADS=1 so that BLAS adds none")
    parser.add_argument("--write", type=int, default=0, help="triplets of the whole stage; 0 leaves it out")
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many is shown")
    parser.add_argument("--folder", type=Path, help="of the temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        file = Path(name) / "features.npy"
        write_features(file, args.images, args.width)
        x = np.asarray(np.load(file, mmap_mode="r"))
        rows = np.random.default_rng(0).integers(0, args.images, (args.triplets, 3))
        parts = np.array_split(rows, max(1, len(rows) // PIECE))
        stream(x, args.workers)  # every page is mapped from here on
        seconds = dict.fromkeys(("stream", "gather", "label", "contract"), np.inf)
        for _ in range(args.repeat):  # in turns, so that a busy neighbour troubles all alike
            a_pass = stream(x, args.workers) * rows.size / args.images
            seconds["stream"] = min(seconds["stream"], a_pass)
            seconds["gather"] = min(seconds["gather"], in_threads(gather, x, parts, args.workers))
            start = time.perf_counter()
            label(x, rows, args.workers)
            seconds["label"] = min(seconds["label"], time.perf_counter() - start)
            seconds["contract"] = min(seconds["contract"], in_threads(contract_similarities, x, parts, args.workers))
        size = rows.size * args.width * 4
        sys.stdout.write(f"{args.images} x {args.width} float32, {args.workers} threads, {args.triplets} triplets\n")
        sys.stdout.write(f"{'':10}{'triplets/s':>12}{'GB/s':>8}{'of gather':>12}{'of stream':>12}\n")
        for what, taken in seconds.items():
            ratios = f"{seconds['gather'] / taken:12.2f}{seconds['stream'] / taken:12.2f}"
            sys.stdout.write(f"{what:10}{len(rows) / taken:12,.0f}{size / taken / 1e9:8.2f}{ratios}\n")
        if args.write:
            del x  # mapped once, not twice, when memory is measured
            config = TripletConfig(sampling="cluster_border", triplets=args.write)
            sys.stdout.write(write_set(Path(name), args.images, config, args.workers))


if __name__ == "__main__":
    main()
