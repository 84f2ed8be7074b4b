"""How each stage grows: time against images, triplets, dimensions, clusters, objects, batch and processes.

    python -m benchmarks.growth --out docs/results

Every size is doubled twice while the others stay, sizes of one stage take turns within a round, and what is printed
is the slope of log time against log size, from the medians of the rounds: 1 is proportional, 0 does not depend on it.
The plot growth.svg shows the times themselves.

- label: `training.triplets.label`, by images, by the width of their features, by triplets
- cluster: the whole stage, ten iterations, by images, by clusters, by width
- vice: `training.vice_fit.Fit.epoch`, by choices, by objects, by dimensions
- step: a step of distillation of a ViT-Ti at 64 pixels, by images of a batch, by triplets of a step

    python -m benchmarks.growth ranks

`ranks` distils the same ViT-Ti from the same start in 1 and in 2 processes on gloo at the same global batch, as a
user would (`torchrun ... -m training distill`), and prints the largest difference between their divergences and the
images a second of each. Two processes on one machine share its cores: the rate says what the exchange costs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from benchmarks.cluster import write_features
from training.cluster import ClusterConfig, cluster
from training.feeds import FeedConfig, feed_of
from training.models import build
from training.trainer import Distillation, DistillConfig, Trainer
from training.triplets import label
from training.vice import ViceConfig
from training.vice_data import simulate_choices
from training.vice_fit import Fit

Work = Callable[[], object]
Stage = Callable[[dict[str, int], Path], Work]

VIT_TI = "timm:vit_tiny_patch16_224"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("sizes", "ranks"), default="sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=sorted(STAGES), default=list(STAGES))
    parser.add_argument("--steps", type=int, default=12, help="of `ranks`")
    parser.add_argument("--out", type=Path, help="folder for growth.svg")
    args = parser.parse_args()
    if args.what == "ranks":
        print(json.dumps(_ranks(args.steps), indent=2))
        return
    curves = {name: _curves(name, args.rounds) for name in args.stages}
    for name, found in curves.items():
        for size, points in found.items():
            times = ", ".join(f"{at}: {1e3 * seconds:.0f} ms" for at, seconds in points)
            print(f"{name:8} by {size:10} slope {_slope(points):5.2f}   {times}")
    if args.out is not None:
        _plot(curves, args.out / "growth.svg")


# --- the stages: given sizes and an empty folder, what is timed -----------------------------------


def _label(size: dict[str, int], _: Path) -> Work:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size["images"], size["width"]), dtype=np.float32)
    rows = rng.integers(size["images"], size=(size["triplets"], 3))
    return lambda: label(features, rows)


def _cluster(size: dict[str, int], folder: Path) -> Work:
    write_features(folder / "features.npy", size["images"], size["width"])
    config = ClusterConfig(clusters=size["clusters"], elbow=(), iterations=10, points_per_cluster=None)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:  # a finished one would not be done again
            cluster(folder / "features.npy", Path(out), config)

    return work


def _vice(size: dict[str, int], folder: Path) -> Work:
    embedding = np.random.default_rng(0).exponential(0.3, (size["objects"], 20))
    train = simulate_choices(embedding, size["choices"], seed=0)
    config = ViceConfig(dimensions=size["dimensions"], batch=1024)
    fit = Fit(train, train[:10], config, folder, 0, size["objects"], "cpu")
    return lambda: fit.epoch(tqdm(disable=True), count_hits=False)


def _step(size: dict[str, int], _: Path) -> Work:
    n = 2 * size["batch"]
    student = build(VIT_TI, side=64, pretrained=False)
    config = DistillConfig(steps=10**9, learning_rate=1e-5, warmup=1)
    trainer = Trainer(student, Distillation(config, torch.randn(n, 256), None), config, "cpu")
    feed = feed_of(
        FeedConfig(batch=size["batch"], per_group=4, triplets_per_step=size["triplets"], sampling="random"),
        np.arange(n),
        np.arange(n) % (n // 8),
    )
    pixels = torch.randint(0, 256, (n, *student.pixels.shape), dtype=torch.uint8)

    def work() -> None:
        step = feed(0)
        trainer.step(0, pixels[torch.from_numpy(step.rows)], step)

    return work


STAGES: dict[str, tuple[Stage, dict[str, int]]] = {
    "label": (_label, {"images": 50_000, "width": 256, "triplets": 100_000}),
    "cluster": (_cluster, {"images": 20_000, "clusters": 50, "width": 128}),
    "vice": (_vice, {"choices": 20_000, "objects": 1_000, "dimensions": 50}),
    "step": (_step, {"batch": 32, "triplets": 5_000}),
}
"""Of each stage: what it does, and the smallest sizes."""


def _curves(name: str, rounds: int) -> dict[str, list[tuple[int, float]]]:
    """[(size, median seconds)] by the name of the size."""
    stage, least = STAGES[name]
    out = {}
    for size, start in least.items():
        with tempfile.TemporaryDirectory() as root:
            works = {}
            for at in (start, 2 * start, 4 * start):
                folder = Path(root) / str(at)
                folder.mkdir()
                works[at] = stage(least | {size: at}, folder)
            times: dict[int, list[float]] = {at: [] for at in works}
            for turn in range(rounds + 1):
                for at, work in works.items():
                    begin = time.perf_counter()
                    work()
                    if turn:  # the first warms up
                        times[at].append(time.perf_counter() - begin)
            out[size] = [(at, median(taken)) for at, taken in times.items()]
    return out


def _slope(points: list[tuple[int, float]]) -> float:
    """Of a straight line through log size and log time, by least squares."""
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def _plot(curves: dict[str, dict[str, list[tuple[int, float]]]], file: Path) -> None:
    figure = Figure(figsize=(3 * len(curves), 3))
    for axes, (name, found) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for size, points in found.items():
            at, seconds = np.array(points).T
            axes.loglog(at / at[0], seconds, "o-", label=f"{size}, {_slope(points):.2f}")
        axes.set_title(name)
        axes.set_xticks([1, 2, 4], ["1", "2", "4"], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("times the smallest size")
        axes.legend(frameon=False, fontsize=7)
    figure.supylabel("seconds")
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def _world(images: int) -> Iterator[Path]:
    """A folder with photos/, teacher.npy and groups.npy, of noise."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for i in range(images):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"photos/{i:04}.png")
        np.save(folder / "teacher.npy", rng.standard_normal((images, 64), dtype=np.float32))
        np.save(folder / "groups.npy", np.arange(images) % 16)
        yield folder


def _ranks(steps: int) -> dict[str, Any]:
    curves, rates = {}, {}
    with _world(128) as folder:
        for ranks in (1, 2):
            out = folder / f"of-{ranks}"
            command = f"-m torch.distributed.run --nproc-per-node {ranks} -m training distill {VIT_TI} {folder}/photos"
            constants = f"--side 64 --random-weights 0 --batch 64 --per-group 4 --steps {steps} --warmup 1"
            files = f"--teacher {folder / 'teacher.npy'} --groups {folder / 'groups.npy'} --out {out}"
            subprocess.run(
                [sys.executable, *command.split(), *constants.split(), *files.split(), "--precision", "fp32"],
                check=True,
                capture_output=True,
                text=True,
            )
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            curves[ranks] = np.array([line["divergence"] for line in log])
            rates[ranks] = median(line["images_per_second"] for line in log[2:])
    return {
        "steps": steps,
        "largest difference between the divergences": float(np.abs(curves[1] - curves[2]).max()),
        "divergence, first and last": [float(curves[1][0]), float(curves[1][-1])],
        "images/s": {ranks: round(rate, 1) for ranks, rate in rates.items()},
    }


if __name__ == "__main__":
    main()
