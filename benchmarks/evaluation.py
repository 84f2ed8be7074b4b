"""How long the arithmetic of an evaluation takes on features that are there: RSA, and triplets by the million.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --items 2000 --triplets 1000000 --width 384

- rsa: two models against people on `items` images, Pearson kernel, 200 bootstrap samples with a difference;
- triplets: similarities and odd ones out of `triplets` random triplets of `photos` photos.

Peak memory is that of the process, with the features themselves.
"""

import argparse
import resource
import time

import numpy as np

from contract import triplets
from training.evaluation.concepts import similarities
from training.evaluation.rsa import correlations, gram
from training.feeds import random_triplets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("items", 2_000), ("triplets", 1_000_000), ("photos", 20_000), ("width", 384)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)

    start = _now()
    people, *models = (rng.normal(size=(args.items, args.width)).astype(np.float32) for _ in range(3))
    grams = {str(i): [gram(x, "pearson")] for i, x in enumerate(models)}
    correlations(grams, gram(people, "dot"), 200, 0)
    _say(f"rsa of {args.items} items, 2 models", start)

    start = _now()
    x = rng.normal(size=(args.photos, args.width)).astype(np.float32)
    rows = random_triplets(args.photos, args.triplets, rng)
    triplets.odd_one_out(similarities(x, rows, "cosine"))
    _say(f"{args.triplets} triplets of {args.photos} photos, width {args.width}", start)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _say(what: str, start: tuple[float, float]) -> None:
    passed, busy = (after - before for after, before in zip(_now(), start, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {passed:.1f} s, {busy:.1f} s of processor, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
