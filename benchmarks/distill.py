"""What a distillation costs: image passes by feed, and how much of the time the encoder works.

    python -m benchmarks.distill feeds --data DATA --teacher runs/starter --student runs/student
    python -m benchmarks.distill loop

`feeds`: a linear readout of frozen block features starts at random and learns the teacher's judgments from both
feeds, each at every rate of `--rates`; the divergence is measured on 20,000 triplets of training photos that no feed
is told of. Printed: encoder passes until it first is at most `--target`, at each feed's best rate, and their ratio. A
feed that does not get there within `--steps` gives a lower bound. What is compared is how much a pass teaches, so the
blocks are frozen and their features are read from a student's run instead of being computed again for every pass.

`loop`: the training loop (feed, loading from memory, loss, optimiser, decay, log) against a bare forward and
backward pass of the same model, batch and precision, in alternating rounds; printed is the share of each round.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import trange

from contract import triplets
from training.align import Transform
from training.feeds import Feed, in_batch, random_triplets, triplet_feed
from training.models import build
from training.recipes import student_vit_small
from training.run import read_data, split_concepts
from training.student_model import Adaptation
from training.trainer import Distillation, DistillConfig, Trainer, divergence


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("feeds", "loop"))
    parser.add_argument("--data", type=Path, help="folder with images.csv and things/")
    parser.add_argument("--teacher", type=Path, help="a complete run folder of the recipe `starter`")
    parser.add_argument("--student", type=Path, help="a run folder of a student with a readout, for its `blocks/`")
    parser.add_argument("--model", default="focus-vit-s")
    parser.add_argument("--side", type=int, default=70)
    parser.add_argument("--frozen-blocks", type=int, default=0)
    parser.add_argument("--batch", type=int, default=126, help="images of a step; the triplet feed takes a third of it")
    parser.add_argument("--steps", type=int, default=4000, help="of each feed at each rate, at most")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--target", type=float, default=0.2, help="divergence on triplets not drawn, in nats")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4], help="of both feeds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(json.dumps({"feeds": _feeds, "loop": _loop}[args.what](args), indent=2))


def _config(args: argparse.Namespace) -> DistillConfig:
    adaptation = Adaptation(frozen_blocks=args.frozen_blocks)
    # A constant rate after a short warm-up: the comparison must not depend on how many steps were allowed.
    return DistillConfig(steps=10**9, learning_rate=1e-4, warmup=10, adaptation=adaptation)


def _feeds(args: argparse.Namespace) -> dict[str, Any]:
    data = read_data(args.data)
    features = np.load(args.teacher / "features/features.npy", allow_pickle=False)
    teacher = Transform.load(args.teacher / "splits/seed-0.npz").apply(features)
    blocks = np.load(args.student / "blocks/features.npy", allow_pickle=False)
    _, held_out = split_concepts(data.photos.concepts, student_vit_small.RECIPE.teacher.held_out, 0)
    rows = np.flatnonzero(~np.isin(data.photos.concept, held_out))
    label = _groups(teacher, rows)
    blocks = (blocks - blocks[rows].mean(0)) / (blocks[rows].std(0) + 1e-6)
    world = torch.from_numpy(blocks), torch.from_numpy(teacher), rows
    feeds: dict[str, Feed] = {
        "in-batch": in_batch(rows, label, batch=args.batch, per_group=6, triplets=20_000, sampling="random", seed=0),
        "triplet": triplet_feed(rows, label, batch=args.batch // 3, sampling="random", seed=0),
    }
    passes: dict[str, dict[str, int | None]] = {name: {} for name in feeds}
    for name, feed in feeds.items():
        for rate in args.rates:
            passes[name][str(rate)] = _passes(feed, *world, rate, args)
            print(f"{name:9} rate {rate}: {passes[name][str(rate)]} passes", flush=True)
    best = {name: min((n for n in found.values() if n), default=None) for name, found in passes.items()}
    return {"target": args.target, "passes": passes, "ratio": _ratio(best, args)}


def _ratio(best: dict[str, int | None], args: argparse.Namespace) -> str:
    if best["in-batch"] is None:
        return "the in-batch feed did not get there; choose a higher target"
    other = best["triplet"]
    least = args.steps * (args.batch // 3) * 3
    return f"{'' if other else 'more than '}{(other or least) / best['in-batch']:.1f}"


def _passes(
    feed: Feed, features: Tensor, teacher: Tensor, rows: NDArray[np.int64], rate: float, args: argparse.Namespace
) -> int | None:
    """Encoder passes until the divergence on triplets of training photos is at most the target; None if it is not."""
    rng = np.random.default_rng(1)
    judged = rng.permutation(rows)[:800]
    index = torch.from_numpy(random_triplets(len(judged), 20_000, rng))

    def loss(at: NDArray[np.int64], index: Tensor) -> Tensor:
        ours, theirs = (triplets.similarities_at(z @ z.T, index) for z in (readout(features[at]), teacher[at]))
        return divergence(ours, triplets.pair_log_probabilities(theirs), loss="kl", temperature=1.0)

    torch.manual_seed(0)
    readout = torch.nn.Linear(features.shape[1], teacher.shape[1])
    torch.nn.init.normal_(readout.weight, std=0.01)
    optimiser = torch.optim.Adam(readout.parameters(), rate)
    used = 0
    for number in trange(args.steps, desc=f"rate {rate}", unit="step", leave=False):
        step = feed(number)
        optimiser.zero_grad()
        loss(step.rows, torch.from_numpy(step.index)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        used += len(step.rows)
        if (number + 1) % args.every == 0:
            with torch.no_grad():
                if loss(judged, index) <= args.target:
                    return used
    return None


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
    objective = Distillation(_config(args), teacher, None)
    trainer = Trainer(encoder, objective, _config(args), args.device)
    bare = Trainer(encoder, objective, _config(args), args.device)

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
