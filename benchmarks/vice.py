"""VICE measured: `speed`, an epoch against the one-hot formulation; `quality`, against the published posterior.

    python -m benchmarks.vice speed
    python -m benchmarks.vice quality --data DIR --out DIR

`speed` runs whole epochs of three formulations in turn, in one process, over the same simulated triplets:

    ours        training.vice_fit.Fit.epoch, everything a real epoch does
    autograd    rows gathered too, but both densities through autograd and Adam as torch has it by default
    one-hot     that, with rows looked up as the published code does: one-hot matrix times sampled embedding

so that one-hot / autograd is what the gather alone gives, and one-hot / ours is the whole. The two others are
given log densities that cannot underflow, and no loading or logging to do.

`quality` simulates choices from the published embedding (--data/things/vice_embedding.npy), fits VICE to them,
and asks fit and published embedding about real responses (--data/things/human_test_responses.csv) and about
fresh simulated choices. Of random triplets it also prints KL(published || fit), the exact amount by which the fit's
expected likelihood falls short of the best there is: no sampling noise of choices is in it, and it is what constants
are chosen by. It resumes as a fit does.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract import triplets
from training.recipes.vice_things import RECIPE
from training.things import read_responses, read_vice
from training.vice import Posterior, ViceConfig, complexity, figures, triplet_probabilities
from training.vice_data import odd_last, simulate_choices
from training.vice_fit import Fit, fit_vice

MATCHED = 0.8
"""Correlation above which a dimension counts as found again (the reproducibility criterion of the paper)."""


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vice", description="VICE measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    speed_ = commands.add_parser("speed", help="epoch time, against the one-hot formulation")
    speed_.add_argument("--objects", type=int, default=RECIPE.n_objects)
    speed_.add_argument("--triplets", type=int, default=25_600, help="of one epoch")
    speed_.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    speed_.add_argument("--rounds", type=int, default=3, help="epochs of each formulation; the best is shown")
    quality_ = commands.add_parser("quality", help="fit choices simulated from the published embedding")
    quality_.add_argument("--data", type=Path, required=True, help="folder with things/")
    quality_.add_argument("--out", type=Path, required=True, help="run folder of the fit, made or continued")
    quality_.add_argument("--triplets", type=int, default=4_100_000)
    quality_.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants of ViceConfig")
    for command in (speed_, quality_):
        command.add_argument("--device", default="cpu")
        command.add_argument("--seed", type=int, default=RECIPE.seed)
    args = parser.parse_args()
    if args.command == "speed":
        speed(args)
    else:
        quality(args)


def speed(args: argparse.Namespace) -> None:
    """Print seconds of an epoch for each formulation and batch size, and ratios."""
    rng = np.random.default_rng(args.seed)
    order = rng.random((args.triplets, min(64, args.objects))).argsort(1)[:, :3]
    rows = (order + rng.integers(args.objects, size=(args.triplets, 1))) % args.objects  # three different objects
    print(f"{args.objects} objects, {ViceConfig().dimensions} dimensions, {args.triplets} triplets, {_machine(args)}")
    for batch in args.batch:
        config = ViceConfig(batch=batch)
        with tempfile.TemporaryDirectory() as folder:
            fit = Fit(rows, rows, config, Path(folder), args.seed, args.objects, args.device)
        bar = tqdm(disable=True)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda fit=fit, bar=bar: fit.epoch(bar, count_hits=False),
            "autograd": Plain(rows, config, args, one_hot=False).epoch,
            "one-hot": Plain(rows, config, args, one_hot=True).epoch,
        }
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():  # nothing is measured cold
            way()
        for _ in range(args.rounds):
            for name, way in ways.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                way()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
        best = {name: min(times) for name, times in wall.items()}  # what else the machine does only adds
        for name, times in wall.items():
            each = ", ".join(f"{t:.3f}" for t in times)
            print(f"batch {batch:5}  {name:8} {best[name]:7.3f} s an epoch, CPU {min(cpu[name]):7.3f} s ({each})")
        whole, gather = best["one-hot"] / best["ours"], best["one-hot"] / best["autograd"]
        print(
            f"batch {batch:5}  one-hot / ours = {whole:.1f} (CPU {min(cpu['one-hot']) / min(cpu['ours']):.1f}), "
            f"of which the gather alone {gather:.1f}"
        )


class Plain:
    """The formulations compared with: the loss as it is written, through autograd."""

    def __init__(self, rows: NDArray[np.int64], config: ViceConfig, args: argparse.Namespace, *, one_hot: bool) -> None:
        self._rows, self._config, self._one_hot = torch.from_numpy(rows).to(args.device), config, one_hot
        shape = (args.objects, config.dimensions)
        self._noise = torch.Generator(args.device).manual_seed(args.seed)
        self._loc = (torch.randn(shape, generator=self._noise, device=args.device) * 0.14).requires_grad_(True)
        self._log_scale = torch.full(shape, -7.0, device=args.device).requires_grad_(True)
        self._optimiser = torch.optim.Adam([self._loc, self._log_scale], lr=config.learning_rate)
        self._identity = torch.eye(args.objects, device=args.device) if one_hot else None

    def epoch(self) -> float:
        """One pass over the triplets: mean negative log-likelihood."""
        n, loss = len(self._rows), 0.0
        order = torch.randperm(n).to(self._rows.device)
        for start in range(0, n, self._config.batch):
            index = self._rows[order[start : start + self._config.batch]]
            noise = torch.randn(self._loc.shape, generator=self._noise, device=self._loc.device)
            x = self._loc + self._log_scale.exp() * noise
            nll = -triplets.pair_log_probabilities(triplets.pair_similarities(self._look_up(x, index)))[:, 0].mean()
            self._optimiser.zero_grad()
            (nll + complexity(self._loc, self._log_scale, noise, self._config) / n).backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            loss += float(nll.detach()) * len(index)
        return loss / n

    def _look_up(self, x: Tensor, index: Tensor) -> Tensor:
        if self._identity is None:
            return x[index].relu()
        return (self._identity[index.flatten()] @ x).relu().unflatten(0, (-1, 3))


def quality(args: argparse.Namespace) -> None:
    """Print accuracy and likelihood of a fit to simulated choices, beside those of the embedding they came from."""
    published = read_vice(args.data / "things/vice_embedding.npy")
    responses = read_responses(args.data / "things/human_test_responses.csv", len(published))
    sets = {"real responses": odd_last(responses.concepts, responses.odd)}
    sets["fresh simulated choices"] = simulate_choices(published, 20_000, seed=args.seed + 2)
    train = simulate_choices(published, args.triplets, seed=args.seed)
    validation = simulate_choices(published, 20_000, seed=args.seed + 1)
    config = ViceConfig.from_mapping(dict(setting.split("=", 1) for setting in args.set))
    start = time.perf_counter()
    fit = fit_vice(train, validation, config, args.out, args.seed, n_objects=len(published), device=args.device)
    print(f"{config}\n{args.triplets} choices, {time.perf_counter() - start:.0f} s in this call, {_machine(args)}")
    for what, rows in sets.items():
        samples = config.posterior_samples
        ours = triplet_probabilities(fit, rows, samples=samples, seed=args.seed, device=args.device)
        theirs = triplets.pair_probabilities(triplets.pair_similarities(published[rows]))
        for name, p in ((f"fit, R = {samples}", ours), ("published mean embedding", theirs)):
            accuracy, nll = figures(p)
            first = triplets.accuracy(np.log(p), np.full(len(p), 2), "argmax")
            print(
                f"{what:24} {name:26} accuracy {first:.4f} argmax, {accuracy:.4f} rounded; "
                f"NLL {nll:.4f}; mean p {p[:, 0].mean():.4f}; n={len(p)}"
            )
        lost = np.log(theirs[:, 0]) - np.log(ours[:, 0])  # the pair that was left together
        right = [(p.argmax(1) == 0).astype(float) for p in (ours, theirs)]
        for name, difference in (("NLL", lost), ("accuracy", right[0] - right[1])):
            error = difference.std() / np.sqrt(len(difference))
            print(f"{what:24} fit - published: {name} {difference.mean():+.4f}, standard error {error:.4f}, paired")
    p = triplets.pair_probabilities(triplets.pair_similarities(published[sets["fresh simulated choices"]]))
    q = triplet_probabilities(
        fit, sets["fresh simulated choices"], samples=config.posterior_samples, seed=args.seed, device=args.device
    )
    print(f"KL(published || fit) {(p * np.log(p / q)).sum(1).mean():.5f} nats, exact, on the fresh triplets")
    _print_dimensions(fit, published)


def _print_dimensions(fit: Posterior, published: NDArray[np.float64]) -> None:
    match = np.corrcoef(fit.embedding().T, published.T)[: fit.loc.shape[1], fit.loc.shape[1] :].max(0)
    found = int((match > MATCHED).sum())
    print(
        f"{fit.loc.shape[1]} dimensions; of the published {published.shape[1]}, {found} have one that correlates above "
        f"{MATCHED}; median of the best correlations {np.median(match):.3f}, least {match.min():.3f}"
    )


def _machine(args: argparse.Namespace) -> str:
    threads = f"CPU, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else threads
    return f"{where}, torch {torch.__version__}, {sys.platform}"


if __name__ == "__main__":
    main()
