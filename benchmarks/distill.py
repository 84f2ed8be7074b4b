"""What a distillation costs: image passes by feed, and how much of the time the encoder works.

    python -m benchmarks.distill feeds --data DATA --teacher runs/starter --work runs/feeds
    python -m benchmarks.distill loop --data DATA

`feeds`: encoder passes until the divergence from the teacher, KL in nats on 20,000 triplets of photos of held-out
concepts (split 0, whose transform was learned without them), is at most `--target`: in-batch feed and triplet feed side
by side, at every rate of `--rates`, each of `--seeds` times. Both embed `--batch` images a step. What is learned is a
linear readout of frozen block features, those of the recipe `student_vit_small`, and not the network: what is compared
is how much a pass teaches, so features are computed once, and a pass is counted each time one is used. They are those
of `--student`, the run of a student with a readout, or are computed into `--work`/blocks, and a killed command goes on.

The readout starts small and random, next to a student that says nothing (all three pairs of a triplet equally likely),
whose divergence is printed too: the teacher's judgments are soft, so it is not far off, and a target above it would be
reached by shrinking. Feeds are compared at the rate that gets each there first in the median of the seeds; if that is
the lowest or highest of `--rates`, more rates are to be tried. A feed that does not get there within `--steps` gives a
lower bound. Readouts learn by heart in the end, so the least divergence of each feed is printed as well, at the rate
where its median is least.

`loop`: the share of a training's time that a bare forward and backward pass would take. The loop is `take_steps` of
`training.distill` with the student of the recipe `student_vit_small`: its model, readout, frozen blocks, feed, views,
augmentation, precision, losses and optimiser; photos of training concepts come from `PixelLoader`, which decodes those
that it has not seen. Of the recipe's world only vectors, clusters and the readout's start are random. Bare is forward
and backward of that very model, in that precision, from a gradient of ones, on as many images, which are in memory:
no feed, loading, loss, optimiser, decay or log. Gradients are dropped where the loop drops them.

A round of `loop` holds half of the bare steps, the loop's, and the other half of the bare steps, so that a machine that
gets slower or faster is no gain of either; `bare, after / before` is what two halves of the same work differ by, and no
utilisation is known better than that. Each of the three is a step longer at its beginning, which is not counted: in the
loop nothing has been read ahead for the first step. The loop is a step longer at its end as well, so that while
`--steps` steps are counted, as many are read ahead. The first round warms up. A checkpoint is written after each round
and not counted; what one every so many steps as in the recipe adds is given apart.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import trange

from contract import triplets
from training.distill import take_steps
from training.embed import EmbedConfig, extract
from training.feeds import Feed, Step, feed_of, random_triplets
from training.images import FileImages, Images
from training.loading import PixelLoader
from training.models import build
from training.photos import Photos
from training.readout import ReadoutConfig, block_features, with_readout
from training.recipes.student_vit_small import RECIPE
from training.run import read_data, split_concepts
from training.student import Held, Teacher
from training.trainer import Distillation, Trainer, divergence
from training.views import Views, with_views

SPLIT = 0
"""Of the teacher's run: its held-out concepts are kept from both commands' training."""

READOUT = RECIPE.readout or ReadoutConfig()

JUDGED = 20_000
"""Held-out triplets."""

SMALL = 1e-3
"""Standard deviation of the weights of a readout at its start."""


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    feeds = commands.add_parser("feeds", help="encoder passes to a divergence on held-out concepts, by feed")
    feeds.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    feeds.add_argument("--teacher", type=Path, required=True, help="a complete run folder of the recipe `starter`")
    where = feeds.add_mutually_exclusive_group(required=True)
    where.add_argument("--student", type=Path, help="a run folder of a student with a readout, for its `blocks/`")
    where.add_argument("--work", type=Path, help="folder to compute `blocks/` in, or to go on with")
    feeds.add_argument(
        "--batch", type=int, default=120, help="images of a step of either feed; a multiple of 3 and 8 (%(default)s)"
    )
    feeds.add_argument("--steps", type=int, default=1000, help="of each feed at each rate (%(default)s)")
    feeds.add_argument("--every", type=int, default=5, help="steps between two measurements (%(default)s)")
    feeds.add_argument(
        "--target", type=float, nargs="+", default=[0.021, 0.0205, 0.02], help="divergences in nats %(default)s"
    )
    feeds.add_argument("--rates", type=float, nargs="+", default=[1e-6, 3e-6, 1e-5, 3e-5], help="Adam's %(default)s")
    feeds.add_argument("--seeds", type=int, default=3, help="of a feed's draws and the readout's start (%(default)s)")
    loop = commands.add_parser("loop", help="share of the training loop in which the encoder works")
    loop.add_argument("--data", type=Path, help="folder with images.csv and things/; JPEG files of noise if not given")
    loop.add_argument("--batch", type=int, default=RECIPE.feed.batch, help="images of a step (%(default)s)")
    frozen = RECIPE.distill.adaptation.frozen_blocks
    loop.add_argument("--frozen-blocks", type=int, default=frozen, help="of loop and bare alike (%(default)s)")
    loop.add_argument("--steps", type=int, default=6, help="counted in a round, of loop and bare each (%(default)s)")
    loop.add_argument("--rounds", type=int, default=5, help="besides the one that warms up (%(default)s)")
    for command in (feeds, loop):
        command.add_argument("--model", default=RECIPE.model, help="a ViT of timm with a class token (%(default)s)")
        command.add_argument("--side", type=int, default=RECIPE.side, help="of its input in pixels (%(default)s)")
        command.add_argument("--device", default="cpu", help="of the network (%(default)s)")
    args = parser.parse_args()
    print(json.dumps({"feeds": _feeds, "loop": _loop}[args.what](args), indent=2))


def _rows(photos: Photos) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(rows to train on, rows of held-out concepts, the held-out concepts), of `SPLIT`."""
    _, concepts = split_concepts(photos.concepts, RECIPE.teacher.held_out, SPLIT)
    held_out = np.isin(photos.concept, concepts)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out), concepts


# --- feeds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesson:
    """What a readout learns from and is judged on.

    Attributes:
        features: [n, p] of all photos, standardised by those to train on.
        teacher: [n, k] aligned vectors.
        rows: of the photos to train on.
        judged: rows of the photos of held-out concepts.
        index: [t, 3] triplets as positions in `judged`.
    """

    features: Tensor
    teacher: Tensor
    rows: NDArray[np.int64]
    judged: NDArray[np.int64]
    index: Tensor

    def loss(self, readout: Callable[[Tensor], Tensor], rows: NDArray[np.int64], index: Tensor) -> Tensor:
        """Divergence in nats on the triplets `index` [t, 3] of positions in `rows`."""
        ours, theirs = (
            triplets.similarities_at(z @ z.T, index) for z in (readout(self.features[rows]), self.teacher[rows])
        )
        target = triplets.pair_log_probabilities(theirs, RECIPE.distill.teacher_temperature)
        return divergence(ours, target, loss="kl", temperature=RECIPE.distill.temperature)

    def held_out(self, readout: Callable[[Tensor], Tensor]) -> float:
        """Divergence in nats on the triplets of held-out concepts."""
        with torch.no_grad():
            return self.loss(readout, self.judged, self.index).item()


Name = Literal["in-batch", "triplet"]

Curve = list[tuple[int, float]]
"""Encoder passes so far, and the divergence on held-out triplets in nats."""

Curves = dict[float, list[Curve]]
"""Of one feed: by rate, a curve for each seed."""


def _feeds(args: argparse.Namespace) -> dict[str, Any]:
    per_group = RECIPE.feed.per_group
    if args.batch % 3 or args.batch % per_group:
        raise ValueError(f"a batch of {args.batch}; expected a multiple of 3 (a triplet) and {per_group} (a cluster).")
    photos = read_data(args.data).photos
    rows, judged, concepts = _rows(photos)
    run = Teacher(args.teacher, RECIPE.teacher, args.data)
    teacher = run.transform(Held(f"split-{SPLIT}", SPLIT, concepts)).apply(run.features)
    blocks = _blocks(args, photos)
    blocks = (blocks - blocks[rows].mean(0)) / (blocks[rows].std(0) + 1e-6)
    # A little more than needed is drawn, because triplets that name a photo twice are dropped.
    index = random_triplets(len(judged), JUDGED + JUDGED // 10, np.random.default_rng(1))[:JUDGED]
    lesson = _Lesson(torch.from_numpy(blocks), torch.from_numpy(teacher), rows, judged, torch.from_numpy(index))
    silent = lesson.held_out(lambda features: torch.zeros_like(features[:, :1]))
    if max(args.target) >= silent:
        raise ValueError(
            f"a target of {max(args.target)}; a student that says nothing is at {silent:.4f}. Choose less."
        )
    label = _groups(teacher, rows)
    curves: dict[Name, Curves] = {name: {rate: [] for rate in args.rates} for name in get_args(Name)}
    for rate in args.rates:
        for seed in range(args.seeds):
            for name, found in curves.items():
                feed = _feed(name, rows, label, args.batch, seed)
                found[rate].append(_curve(feed, lesson, rate, seed, args))
            told = [f"{name}: {_told(found[rate][-1], args.target)}" for name, found in curves.items()]
            print(f"rate {rate:g}, seed {seed}   {'   '.join(told)}", flush=True)
    return {
        "held-out": {"concepts": len(concepts), "photos": len(judged), "triplets": len(index)},
        "divergence of a student that says nothing": round(silent, 4),
        "least divergence": {name: _least(found) for name, found in curves.items()},
        "passes to": {f"{target:g}": _compared(curves, target) for target in args.target},
    }


def _feed(name: Name, rows: NDArray[np.int64], label: NDArray[np.int64], batch: int, seed: int) -> Feed:
    """A feed of `batch` encoder passes a step."""
    in_a_step = batch if name == "in-batch" else batch // 3
    config = replace(RECIPE.feed, feed=name, batch=in_a_step, sampling="random", feed_seed=seed)
    return feed_of(config, rows, label)


def _blocks(args: argparse.Namespace, photos: Photos) -> NDArray[np.float32]:
    """Block features [n, p] of all photos. Raises ValueError where a student's run has those of other photos."""
    if args.student is None:
        name = f"{args.model}, last blocks"  # as in a student's run, which can be gone on with too
        network = block_features(build(args.model, side=args.side), READOUT.blocks)
        return extract(network, name, photos, args.work / "blocks", EmbedConfig(device=args.device))
    folder = args.student / "blocks"
    if not (folder / "index.json").is_file():
        raise ValueError(f"{folder} holds no complete features; give --work to compute them.")
    if (folder / "names.txt").read_text().splitlines() != list(photos.names):
        raise ValueError(f"{folder} is of other photos than {args.data}; give --work to compute features of these.")
    return np.asarray(np.load(folder / "features.npy", allow_pickle=False))


def _groups(teacher: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cluster [n] of each photo to train on; -1 for the others."""
    import faiss

    kmeans = faiss.Kmeans(teacher.shape[1], RECIPE.clusters, seed=RECIPE.seed)
    kmeans.train(teacher[rows])
    label = np.full(len(teacher), -1, np.int64)
    label[rows] = kmeans.index.search(teacher[rows], 1)[1][:, 0]
    return label


def _curve(feed: Feed, lesson: _Lesson, rate: float, seed: int, args: argparse.Namespace) -> Curve:
    torch.manual_seed(seed)
    readout = torch.nn.Linear(lesson.features.shape[1], lesson.teacher.shape[1])
    torch.nn.init.normal_(readout.weight, std=SMALL)
    torch.nn.init.zeros_(readout.bias)
    # A constant rate, without decay: the comparison must not depend on how many steps were allowed.
    optimiser = torch.optim.Adam(readout.parameters(), rate)
    used, curve = 0, [(0, lesson.held_out(readout))]
    for number in trange(args.steps, desc=f"rate {rate:g}", unit="step", leave=False):
        step = feed(number)
        optimiser.zero_grad()
        lesson.loss(readout, step.rows, torch.from_numpy(step.index)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        used += len(step.rows)
        if (number + 1) % args.every == 0:
            curve.append((used, lesson.held_out(readout)))
    return curve


def _passes(curve: Curve, target: float) -> float:
    """Encoder passes until the divergence first is at most the target; infinite if it never is."""
    return next((used for used, value in curve if value <= target), inf)


def _lowest(curve: Curve) -> tuple[float, int]:
    """(least divergence in nats, passes to it)."""
    return min((value, used) for used, value in curve)


def _told(curve: Curve, targets: Sequence[float]) -> str:
    reached = ", ".join(f"{target:g} after {_passes(curve, target):g}" for target in targets)
    return f"{reached}, least {_lowest(curve)[0]:.4f} after {_lowest(curve)[1]}, last {curve[-1][1]:.4f}"


def _least(curves: Curves) -> dict[str, Any]:
    found = {rate: [_lowest(curve) for curve in seeds] for rate, seeds in curves.items()}
    rate = min(found, key=lambda rate: median(value for value, _ in found[rate]))
    return {
        "rate": rate,
        "nats": [round(value, 4) for value, _ in found[rate]],
        "passes": [used for _, used in found[rate]],
    }


def _compared(curves: dict[Name, Curves], target: float) -> dict[str, Any]:
    """Passes of each feed at its best rate, by seed, and how many times fewer the in-batch feed needs."""
    passes = {
        name: {rate: [_passes(curve, target) for curve in seeds] for rate, seeds in found.items()}
        for name, found in curves.items()
    }
    best = {name: min(found, key=lambda rate: median(found[rate])) for name, found in passes.items()}
    ours, theirs = (passes[name][best[name]] for name in ("in-batch", "triplet"))
    allowed = [curve[-1][0] for curve in curves["triplet"][best["triplet"]]]
    ratios = [_ratio(a, b, most) for a, b, most in zip(ours, theirs, allowed, strict=True)]
    return {
        name: {"best rate": best[name], "passes": [n if n < inf else None for n in passes[name][best[name]]]}
        for name in passes
    } | {"triplet / in-batch, by seed": ratios}


def _ratio(ours: float, theirs: float, allowed: int) -> str:
    if ours == inf:
        return "the in-batch feed did not get there"
    return f"{theirs / ours:.1f}" if theirs < inf else f"more than {allowed / ours:.1f}"


# --- loop -----------------------------------------------------------------------------------------


class _Clocked(Trainer):
    """A trainer that tells when chosen steps ended, and what each checkpoint took, in seconds.

    Attributes:
        ended: by the numbers of the steps to look at; filled when they end.
        saving: of each checkpoint.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ended: dict[int, float] = {}
        self.saving: list[float] = []

    def step(self, number: int, pixels: Tensor, step: Step) -> dict[str, float]:
        """See `Trainer.step`."""
        metrics = super().step(number, pixels, step)
        if number in self.ended:  # waiting for a GPU after every step would slow the loop down
            self.ended[number] = self.now()
        return metrics

    def save(self, file: Path, step: int) -> None:
        """See `Trainer.save`."""
        start = self.now()
        super().save(file, step)
        self.saving.append(self.now() - start)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class _Round:
    """Seconds an image, and shares.

    Attributes:
        loop: seconds an image of the loop.
        before, after: seconds an image of both bare halves.
        bare: seconds an image of both halves together.
        inside: share of the loop's time that its log says was spent in `Trainer.step`; the rest is waiting and logging.
        fresh: share of the loop's photos and views that no earlier step had, so that they were decoded.
    """

    loop: float
    before: float
    after: float
    bare: float
    inside: float
    fresh: float


def _loop(args: argparse.Namespace) -> dict[str, Any]:
    if args.steps < 2 or args.rounds < 1:
        raise ValueError(f"{args.steps} steps, {args.rounds} rounds; expected 2 or more, and 1 or more.")
    with tempfile.TemporaryDirectory() as name:
        trainer, feed, load = _training(args, Path(name))
        bare = [load(feed(number).rows) for number in range(args.steps + 2)]
        done = [_round(trainer, feed, load, bare, Path(name), number) for number in range(args.rounds + 1)]
    rounds = done[1:]
    shares = [found.bare / found.loop for found in rounds]
    every = RECIPE.distill.checkpoint_every
    loop, saving = median(found.loop for found in rounds), median(trainer.saving[1:])
    training = every * args.batch * loop
    return {
        **{name: getattr(args, name) for name in ("model", "side", "batch", "frozen_blocks", "device")},
        "data": "JPEG files of noise" if args.data is None else str(args.data),
        "precision": trainer.config.precision,
        "threads": torch.get_num_threads(),
        "steps a round": args.steps,
        "images/s": {"bare": round(1 / median(found.bare for found in rounds), 1), "loop": round(1 / loop, 1)},
        "utilisation": {
            "median": round(median(shares), 3),
            "least": round(min(shares), 3),
            "of each round": [round(share, 3) for share in shares],
        },
        f"median utilisation with a checkpoint every {every} steps": round(
            median(shares) * training / (training + saving), 3
        ),
        "seconds of a checkpoint": round(saving, 2),
        "images/s of bare, after / before": [round(found.before / found.after, 3) for found in rounds],
        "share of the loop's time in Trainer.step": [round(found.inside, 3) for found in rounds],
        "share of its photos that were decoded": [round(found.fresh, 2) for found in rounds],
    }


def _training(args: argparse.Namespace, folder: Path) -> tuple[_Clocked, Feed, PixelLoader]:
    """What `training.student` makes of the recipe, but with random vectors, clusters and readout."""
    photos, rows = _photos(args.data, folder)
    images = Views(photos, RECIPE.views)
    rng = np.random.default_rng(0)
    label = np.full(len(photos), -1, np.int64)
    label[rows] = rng.permutation(len(rows)) % RECIPE.clusters
    feed = feed_of(replace(RECIPE.feed, batch=args.batch), rows, label)
    encoder = block_features(build(args.model, side=args.side), READOUT.blocks)
    width = RECIPE.teacher.align.components
    assert width is not None
    encoder = with_readout(encoder, width, dropout=READOUT.dropout)
    vectors = torch.from_numpy(rng.normal(0, 0.25, (len(images), encoder.size)).astype(np.float32))
    adaptation = replace(RECIPE.distill.adaptation, frozen_blocks=args.frozen_blocks)
    config = replace(RECIPE.distill, adaptation=adaptation)
    objective = Distillation(config, vectors, vectors)
    trainer = _Clocked(encoder, objective, config, args.device, regressed=objective.head(encoder))
    return trainer, with_views(feed, len(photos), RECIPE.views, seed=0), PixelLoader(images, encoder.pixels)


def _photos(data: Path | None, folder: Path) -> tuple[Images, NDArray[np.int64]]:
    """Photos and the rows to train on; without data, 64 JPEG files of 500 x 375 noise, each listed 80 times."""
    if data is not None:
        photos = read_data(data).photos
        return photos, _rows(photos)[0]
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(64)]
    for name in names:
        # Coarse shapes under fine grain, which makes files of the size of photos.
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (375, 500, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(folder / name, quality=85)
    return FileImages(folder, tuple(names * 80)), np.arange(64 * 80)


def _round(trainer: _Clocked, feed: Feed, load: PixelLoader, bare: Sequence[Tensor], out: Path, number: int) -> _Round:
    """Half of the bare steps, the loop's, and the other half; see the module's docstring.

    Args:
        bare: pixels of each bare step, two more than are counted.
        out: folder for the loop's log and checkpoint.
        number: of the round.
    """
    first, steps = number * len(bare), len(bare) - 2
    counted = range(first + 1, first + 1 + steps)
    trainer.ended = {first: 0.0, counted[-1]: 0.0}
    trainer.config = replace(trainer.config, steps=first + len(bare), checkpoint_every=first + len(bare))
    halves = [_bare(trainer, bare[: 1 + steps // 2])]
    take_steps(trainer, feed, load, out, first, "loop")
    halves.append(_bare(trainer, bare[1 + steps // 2 :]))
    seconds = trainer.ended[counted[-1]] - trainer.ended[first]
    embedded = [len(feed(n).rows) for n in counted]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    inside = sum(images / log[n]["images_per_second"] for n, images in zip(counted, embedded, strict=True))
    before, after = (taken / images for taken, images in halves)
    return _Round(
        loop=seconds / sum(embedded),
        before=before,
        after=after,
        bare=sum(taken for taken, _ in halves) / sum(images for _, images in halves),
        inside=inside / seconds,
        fresh=_fresh(feed, first, len(bare)),
    )


def _bare(trainer: _Clocked, batches: Sequence[Tensor]) -> tuple[float, int]:
    """(seconds, images) of forward and backward passes over all batches but the first."""
    began = trainer.now()
    for i, pixels in enumerate(batches):
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.config.precision == "bf16"):
            out: list[Tensor] = trainer.model(pixels.to(trainer.device, non_blocking=True))
        # Where `Trainer.step` does it: memory of other gradients is then held at the same times.
        trainer.optimiser.zero_grad()
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])
        if not i:
            began = trainer.now()
    return trainer.now() - began, sum(len(pixels) for pixels in batches[1:])


def _fresh(feed: Feed, first: int, steps: int) -> float:
    """Share of the images of `steps` steps from `first` on that no earlier step embeds."""
    rows = [feed(n).rows for n in range(first + steps)]
    before = np.concatenate([np.empty(0, np.int64), *rows[:first]])
    now = np.concatenate(rows[first:])
    return len(np.setdiff1d(now, before)) / len(now)


if __name__ == "__main__":
    main()
