"""What a distillation costs: image passes by feed, and how much of the time the encoder works.

    python -m benchmarks.distill feeds --data DATA --teacher runs/starter
    python -m benchmarks.distill loop

`feeds`: the same student and constants learn from both feeds, side by side; every `--every` steps the divergence
from the teacher is measured on triplets of held-out images. Printed: image passes until the divergence first is at
most `--target`, and their ratio. A feed that does not get there within `--steps` gives a lower bound.

`loop`: the training loop (feed, loading from memory, loss, optimiser, decay, log) against a bare forward and
backward pass of the same model, batch and precision, in alternating rounds; printed is the share of each round.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import triplets
from training.align import Transform
from training.feeds import Feed, in_batch, random_triplets, triplet_feed
from training.loading import PixelLoader
from training.models import build
from training.photos import Photos
from training.recipes import student_vit_small
from training.run import read_data, split_concepts
from training.student_model import Adaptation
from training.trainer import DistillConfig, Trainer, divergence


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("feeds", "loop"))
    parser.add_argument("--data", type=Path, help="folder with images.csv and things/")
    parser.add_argument("--teacher", type=Path, help="a complete run folder of the recipe `starter`")
    parser.add_argument("--model", default="focus-vit-s")
    parser.add_argument("--side", type=int, default=70)
    parser.add_argument("--frozen-blocks", type=int, default=0)
    parser.add_argument("--batch", type=int, default=126, help="images of a step; the triplet feed takes a third of it")
    parser.add_argument("--steps", type=int, default=600, help="of each feed, at most")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--target", type=float, default=0.06, help="divergence on held-out images, in nats")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(json.dumps({"feeds": _feeds, "loop": _loop}[args.what](args), indent=2))


def _config(args: argparse.Namespace) -> DistillConfig:
    adaptation = Adaptation(frozen_blocks=args.frozen_blocks)
    # A constant rate after a short warm-up: the comparison must not depend on how many steps were allowed.
    return DistillConfig(steps=10**9, learning_rate=args.rate, warmup=10, adaptation=adaptation)


def _feeds(args: argparse.Namespace) -> dict[str, Any]:
    data = read_data(args.data)
    features = np.load(args.teacher / "features/features.npy", allow_pickle=False)
    teacher = Transform.load(args.teacher / "splits/seed-0.npz").apply(features)
    _, held_out = split_concepts(data.photos.concepts, student_vit_small.RECIPE.teacher.held_out, 0)
    rows = np.flatnonzero(~np.isin(data.photos.concept, held_out))
    label = _groups(teacher, rows)
    feeds: dict[str, Feed] = {
        "in-batch": in_batch(rows, label, batch=args.batch, per_group=6, triplets=20_000, sampling="border", seed=0),
        "triplet": triplet_feed(rows, label, batch=args.batch // 3, sampling="border", seed=0),
    }
    runs = {name: _learning(feed, teacher, data.photos, held_out, args) for name, feed in feeds.items()}
    passes: dict[str, int | None] = dict.fromkeys(feeds)
    reached: dict[str, float] = {}
    for _ in range(args.steps // args.every):
        for name in [name for name, found in passes.items() if found is None]:
            used, value = next(runs[name])
            reached[name] = value
            print(f"{name:9} {used:7} passes: {value:.4f} nats", flush=True)
            if value <= args.target:
                passes[name] = used
    return {"target": args.target, "passes": passes, "last": reached, "ratio": _ratio(passes, args)}


def _ratio(passes: dict[str, int | None], args: argparse.Namespace) -> str:
    if passes["in-batch"] is None:
        return "the in-batch feed did not get there; choose a higher target"
    other = passes["triplet"]
    least = args.steps * (args.batch // 3) * 3
    return f"{'' if other else 'more than '}{(other or least) / passes['in-batch']:.1f}"


def _learning(
    feed: Feed,
    teacher: NDArray[np.float32],
    photos: Photos,
    held_out: NDArray[np.int64],
    args: argparse.Namespace,
) -> Iterator[tuple[int, float]]:
    """(image passes so far, divergence on held-out images), every few steps."""
    encoder = build(args.model, side=args.side)
    load = PixelLoader(photos, encoder.pixels)
    trainer = Trainer(encoder, torch.from_numpy(teacher), None, _config(args), args.device)
    rng = np.random.default_rng(0)
    judged = rng.permutation(np.flatnonzero(np.isin(photos.concept, held_out)))[:300]
    index = torch.from_numpy(random_triplets(len(judged), 20_000, rng))
    vectors = torch.from_numpy(teacher[judged])
    target = triplets.pair_log_probabilities(triplets.similarities_at(vectors @ vectors.T, index))
    used, number = 0, 0
    while True:
        for _ in range(args.every):
            step = feed(number)
            trainer.step(number, load(step.rows), step)
            used, number = used + len(step.rows), number + 1
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
            z = torch.cat([trainer.model(load(part).to(args.device))[0] for part in np.array_split(judged, 4)]).cpu()
        ours = triplets.similarities_at(z @ z.T, index)
        yield used, float(divergence(ours, target, loss="kl", temperature=trainer.config.temperature))


def _groups(teacher: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    import faiss

    kmeans = faiss.Kmeans(teacher.shape[1], 60, seed=0)
    kmeans.train(teacher[rows])
    label = np.full(len(teacher), -1, np.int64)
    label[rows] = kmeans.index.search(teacher[rows], 1)[1][:, 0]
    return label


def _loop(args: argparse.Namespace) -> dict[str, Any]:
    n = 4 * args.batch
    encoder = build(args.model, side=args.side)
    pixels = torch.randint(0, 256, (n, *encoder.pixels.shape), dtype=torch.uint8)
    teacher = torch.randn(n, 256)
    feed = in_batch(
        np.arange(n), np.arange(n) % 40, batch=args.batch, per_group=6, triplets=20_000, sampling="border", seed=0
    )
    trainer = Trainer(encoder, teacher, None, _config(args), args.device)
    bare = Trainer(encoder, teacher, None, _config(args), args.device)

    def loop(number: int) -> int:
        step = feed(number)
        trainer.step(number, pixels[torch.from_numpy(step.rows)], step)
        return len(step.rows)

    def forward_backward(_: int) -> int:
        part = pixels[: len(feed(0).rows)]
        with torch.autocast(bare.device.type, torch.bfloat16):
            out: list[Tensor] = bare.model(part.to(bare.device))
        out[0].backward(torch.ones_like(out[0]))  # type: ignore[no-untyped-call]
        bare.model.zero_grad()
        return len(part)

    rates: dict[str, list[float]] = {"bare": [], "loop": []}
    sides: dict[str, Callable[[int], int]] = {"bare": forward_backward, "loop": loop}
    for number in range(args.rounds + 1):
        for name, work in sorted(sides.items(), reverse=bool(number % 2)):  # neither is always the first
            _synchronise(bare.device)
            start = time.perf_counter()
            images = work(number)
            _synchronise(bare.device)
            if number:  # the first round warms up
                rates[name].append(images / (time.perf_counter() - start))
    shares = [loop / bare for loop, bare in zip(rates["loop"], rates["bare"], strict=True)]
    return {
        "model": args.model,
        "side": args.side,
        "batch": args.batch,
        "images/s": {name: round(median(values), 1) for name, values in rates.items()},
        "utilisation": {"median": round(median(shares), 3), "least": round(min(shares), 3)},
    }


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
