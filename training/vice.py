"""VICE: variational interpretable concept embeddings from odd-one-out triplets (Muttenthaler et al. 2022).

Every entry of the embedding X [objects, dimensions] has a Gaussian posterior (loc, scale) and the
spike-and-slab prior pi N(0, spike^2) + (1 - pi) N(0, slab^2). The loss of a minibatch is

    mean over triplets of -log p(chosen pair)  +  (sum log q(X) - sum log p(X)) / number of training triplets

with one sample X = loc + scale * noise a minibatch; choices are a softmax over dot products of max(X, 0), the
densities are of X before it is rectified. Dimensions that are not clearly positive for more than a few
objects are pruned, and training ends when their number has not changed for a while.

What makes a step fast here, without changing what it computes:

- Rows of a triplet are gathered, not multiplied by one-hot matrices: the cost no longer grows with the objects.
- The complexity term covers ALL entries in every step, as published, but its gradient is written down: by
  reparameterisation log q(X) = -log scale - noise^2 / 2 + constant, whose gradient is -1 for log scale and
  exactly 0 for loc, and that of log p is one sigmoid. Nothing is approximated; a test compares with autograd.
- Adam is fused.

What differs from the reference code on purpose: densities are in log space (theirs underflow); the tie rule
and the odd-last order are `contract.triplets`' own; Laplace mixtures and other optimisers are left out.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract import triplets
from contract.triplets import TieRule

TIE_RULE: TieRule = "rounded"
"""Of every accuracy of this stage: VICE's own, so that figures compare with published ones."""

BATCH = 16_384
"""Triplets whose vectors are in memory at once when probabilities are computed."""


@dataclass(frozen=True, kw_only=True)
class ViceConfig:
    """Constants of a fit. The defaults are those of the reference code's command line.

    Attributes:
        dimensions: before pruning.
        spike: standard deviation of the narrow part of the prior.
        slab: standard deviation of the wide part.
        pi: weight of the SPIKE.
        batch: triplets in a minibatch.
        learning_rate: of Adam, constant.
        epochs: at most.
        burn_in: epochs before which nothing counts as converged.
        window: epochs for which the number of dimensions must not have changed.
        validate_every: epochs between two lines of results.jsonl.
        min_objects: a dimension is kept if it is clearly positive for MORE objects than this.
        false_discovery_rate: what "clearly" means.
        mc_samples: posterior samples behind a validation figure while training.
        posterior_samples: posterior samples behind the final figures.
    """

    dimensions: int = 100
    spike: float = 0.25
    slab: float = 1.0
    pi: float = 0.5
    batch: int = 128
    learning_rate: float = 1e-3
    epochs: int = 2000
    burn_in: int = 500
    window: int = 500
    validate_every: int = 50
    min_objects: int = 5
    false_discovery_rate: float = 0.05
    mc_samples: int = 10
    posterior_samples: int = 50

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0 and (value > 0 or field.name in ("burn_in", "min_objects"))):
                raise ValueError(f"{field.name} is {value}; expected a finite number above 0.")
        if not (self.pi < 1 and self.false_discovery_rate < 1):
            raise ValueError(f"pi is {self.pi}, false_discovery_rate {self.false_discovery_rate}; expected below 1.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """A config from names and values, such as those of a command line; strings are converted.

        Raises:
            ValueError: a name that is no constant, or a value that is no such number.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        if unknown := sorted(set(values) - set(types)):
            raise ValueError(f"no such constants of VICE: {', '.join(unknown)}; there are {', '.join(types)}.")
        try:
            return cls(**{name: types[name](value) for name, value in values.items()})
        except TypeError as error:
            raise ValueError(f"constants of VICE are {dict(values)}: {error}") from error


@dataclass(frozen=True)
class Posterior:
    """A Gaussian for every entry of the embedding, before it is rectified.

    Attributes:
        loc: [objects, dimensions].
        scale: the same shape, above 0.
    """

    loc: NDArray[np.float32]
    scale: NDArray[np.float32]

    def save(self, file: Path, prefix: str = "") -> None:
        """Write an npz with `loc` and `scale`, whole or not at all. `prefix` is `pruned_` in pruned_params.npz."""
        with _whole(file) as stream:
            np.savez(stream, **{f"{prefix}loc": self.loc, f"{prefix}scale": self.scale})

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read parameters.npz or pruned_params.npz. Raises ValueError when it is neither."""
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name.removeprefix("pruned_"): archive[name] for name in archive.files}
        if sorted(arrays) != ["loc", "scale"]:
            raise ValueError(f"{file} holds {sorted(arrays)}; expected loc and scale.")
        loc, scale = arrays["loc"].astype(np.float32), arrays["scale"].astype(np.float32)
        if loc.ndim != 2 or loc.shape != scale.shape or not (np.isfinite(loc).all() and (scale > 0).all()):
            raise ValueError(f"{file}: loc {loc.shape} and scale {scale.shape} are no posterior.")
        return cls(loc, scale)

    def embedding(self) -> NDArray[np.float32]:
        """The rectified mean [objects, dimensions]: what is shown and named; probabilities need samples."""
        return np.maximum(self.loc, 0)

    def importance(self, false_discovery_rate: float) -> NDArray[np.int64]:
        """[dimensions] how many objects are clearly positive: P(x <= 0) survives Benjamini-Hochberg."""
        p = torch.special.ndtr(torch.from_numpy(-self.loc.astype(np.float64) / self.scale))
        return discoveries(p, false_discovery_rate).numpy()

    def prune(self, min_objects: int = 5, false_discovery_rate: float = 0.05) -> Self:
        """Dimensions of importance strictly above `min_objects`, by descending L1 norm of their mean."""
        kept = np.flatnonzero(self.importance(false_discovery_rate) > min_objects)
        kept = kept[np.argsort(-np.abs(self.loc[:, kept]).sum(0), kind="stable")]
        return type(self)(np.ascontiguousarray(self.loc[:, kept]), np.ascontiguousarray(self.scale[:, kept]))


def discoveries(p: Tensor, rate: float) -> Tensor:
    """Rejections of Benjamini-Hochberg in each column of p-values [m, d]: [d] whole numbers.

    The largest k for which the k-th smallest p is at most rate * k / m.
    """
    rank = torch.arange(1, len(p) + 1, device=p.device)[:, None]
    below = p.sort(0).values <= rate * rank / len(p)
    return (below * rank).amax(0)


def triplet_probabilities(
    posterior: Posterior,
    index: NDArray[np.int64],
    *,
    samples: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Posterior choice probabilities of triplets [n, 3], in the order of `contract.triplets.PAIRS`.

    The mean over posterior samples of the softmax PROBABILITIES; neither similarities nor the embedding are
    averaged. Prune first. A sample is of the whole embedding, so a triplet's answer does not depend on which
    others are asked, and memory is that of `BATCH` triplets.
    """
    loc, scale = torch.from_numpy(posterior.loc).to(device), torch.from_numpy(posterior.scale).to(device)
    rows = torch.from_numpy(index).to(device)
    noise = torch.Generator(device).manual_seed(seed)
    total = np.zeros((len(index), 3))
    for _ in range(samples):
        z = torch.addcmul(loc, scale, torch.randn(loc.shape, generator=noise, device=device)).relu()
        for start in range(0, len(index), BATCH):
            chunk = slice(start, start + BATCH)
            total[chunk] += triplets.pair_probabilities(triplets.pair_similarities(z[rows[chunk]])).cpu().numpy()
    return total / samples


def figures(probabilities: NDArray[np.float64]) -> tuple[float, float]:
    """(accuracy, mean negative log-likelihood in nats) of odd-last triplets from probabilities [n, 3]."""
    log_p = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    # The softmax of log-probabilities is the probabilities: the tie rule sees what it should.
    accuracy = triplets.accuracy(log_p, np.full(len(log_p), 2), TIE_RULE)
    return accuracy, float(-log_p[:, 0].mean())


def complexity(loc: Tensor, log_scale: Tensor, noise: Tensor, config: ViceConfig) -> Tensor:
    """Sum of log q(X) - log p(X) over all entries, at the sample X = loc + exp(log_scale) * noise; in nats."""
    log_q = -log_scale - noise**2 / 2 - math.log(2 * math.pi) / 2
    x = loc + log_scale.exp() * noise
    return (log_q - torch.logaddexp(*_log_parts(x, config))).sum()


def _log_parts(x: Tensor, config: ViceConfig) -> tuple[Tensor, Tensor]:
    """Log-densities of the spike and of the slab at x, weights included."""
    parts = ((config.spike, config.pi), (config.slab, 1 - config.pi))
    spike, slab = (
        math.log(weight / (width * math.sqrt(2 * math.pi))) - x**2 / (2 * width**2) for width, weight in parts
    )
    return spike, slab


def gradients(
    loc: Tensor, log_scale: Tensor, noise: Tensor, index: Tensor, config: ViceConfig, n_train: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [b, 3] of a minibatch [b, 3], and the loss's gradients for loc and log_scale.

    The loss is mean(-log p(pair 0)) + complexity / n_train. Only the first term goes through autograd.
    """
    spread = log_scale.exp().mul_(noise)
    x = loc + spread
    z = x.relu().requires_grad_(True)
    # Rows one position at a time: autograd of x[..., i, :] would fill a [b, 3, d] of zeros for each of six uses.
    rows = [z.index_select(0, index[:, position]) for position in range(3)]
    sims = torch.stack([(rows[i] * rows[j]).sum(-1) for i, j in triplets.PAIRS], -1)
    (grad,) = torch.autograd.grad(-triplets.pair_log_probabilities(sims)[:, 0].mean(), z)
    grad.mul_(x > 0)
    # -d log p / dx = x (r / spike^2 + (1 - r) / slab^2), r the spike's share of the density at x
    wide, narrow = 1 / config.slab**2, 1 / config.spike**2
    odds = math.log(config.pi / (1 - config.pi) * config.slab / config.spike)
    share = x.square().mul_(-(narrow - wide) / 2).add_(odds).sigmoid_()
    grad.add_(share.mul_(narrow - wide).add_(wide).mul_(x), alpha=1 / n_train)
    return sims.detach(), grad, spread.mul_(grad).sub_(1 / n_train)


def converged(counts: list[int], config: ViceConfig) -> bool:
    """Whether training may end, from the number of dimensions after each epoch so far."""
    last = counts[-config.window :]
    past_burn_in = len(counts) - 1 > config.burn_in
    return past_burn_in and len(last) == config.window and len(set(last)) == 1 and last[0] != 0


def fit_vice(
    triplets_train: NDArray[np.int64],
    triplets_val: NDArray[np.int64],
    config: ViceConfig,
    out: Path,
    seed: int,
    *,
    n_objects: int,
    device: str = "cpu",
) -> Posterior:
    """Fit the posterior, and write a run folder; killed at any point, the same call goes on where it stopped.

    identity.json         config, seed, sha256 of the triplets, versions
    checkpoint.pt         parameters, optimiser, random states, history: of the last complete epoch kept
    results.jsonl         a line for every validation: epoch, train_acc, val_acc, val_loss, ...
    parameters.npz        loc and scale, all dimensions
    pruned_params.npz     pruned_loc and pruned_scale, columns by descending L1 norm
    summary.json          written last: epochs, dimensions, figures of the pruned posterior

    Args:
        triplets_train: [n, 3] object numbers, odd one last.
        triplets_val: the same, for the figures only; nothing is chosen by them.
        config: constants.
        out: folder to make or to continue.
        seed: of the start, the order of triplets and the noise.
        n_objects: rows of the embedding.
        device: where torch computes.

    Returns:
        the pruned posterior.

    Raises:
        ValueError: bad triplets, `out` belongs to another fit, or no dimension survives pruning.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    for name, rows in (("training", triplets_train), ("validation", triplets_val)):
        if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) == 0 or rows.min() < 0 or rows.max() >= n_objects:
            raise ValueError(f"{name} triplets {rows.shape}; expected [n, 3] of objects 0 to {n_objects - 1}, n > 0.")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, config, seed, n_objects, device, {"train": triplets_train, "validation": triplets_val})
    if not (out / "summary.json").exists():
        fit = _Fit(triplets_train, triplets_val, config, out, seed, n_objects, device)
        fit.train()
        full = fit.posterior()
        full.save(out / "parameters.npz")
        pruned = full.prune(config.min_objects, config.false_discovery_rate)
        if not pruned.loc.shape[1]:
            raise ValueError(f"no dimension survives pruning after {len(fit.counts)} epochs; train for longer.")
        pruned.save(out / "pruned_params.npz", "pruned_")
        samples = config.posterior_samples
        p = triplet_probabilities(pruned, triplets_val, samples=samples, seed=seed, device=device)
        accuracy, nll = figures(p)
        summary = {"epochs": len(fit.counts), "converged": converged(fit.counts, config)}
        summary |= {"dimensions": pruned.loc.shape[1], "val_acc": accuracy, "val_loss": nll}
        _write_text(out / "summary.json", _json(summary | {"tie_rule": TIE_RULE, "samples": samples}))
    return Posterior.load(out / "pruned_params.npz")


class _Fit:
    """The state of a fit: what a checkpoint holds, and what moves it on."""

    def __init__(
        self,
        train: NDArray[np.int64],
        val: NDArray[np.int64],
        config: ViceConfig,
        out: Path,
        seed: int,
        n_objects: int,
        device: str,
    ) -> None:
        self._train, self._val = torch.from_numpy(train).to(device), val
        self._config, self._out, self._seed, self._device = config, out, seed, device
        self._order = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(device).manual_seed(seed)
        # Kaiming-normal, fan-out, of a [dimensions, objects] weight; then one small width for all.
        loc = torch.randn((n_objects, config.dimensions), generator=self._order) * math.sqrt(2 / config.dimensions)
        self._loc = loc.to(device)
        self._log_scale = torch.full_like(self._loc, -1 / float(loc.std()))
        self._optimiser = torch.optim.Adam([self._loc, self._log_scale], lr=config.learning_rate, fused=True)
        self.counts: list[int] = []
        self._results: list[dict[str, Any]] = []
        if (out / "checkpoint.pt").exists():
            self._restore()

    def posterior(self) -> Posterior:
        return Posterior(self._loc.cpu().numpy().copy(), self._log_scale.exp().cpu().numpy())

    def train(self) -> None:
        """Epochs until convergence or the last one."""
        config = self._config
        per_epoch = math.ceil(len(self._train) / config.batch)
        done, total = len(self.counts) * per_epoch, config.epochs * per_epoch
        with tqdm(total=total, initial=done, desc=f"vice {self._out.name}", unit="step") as bar:
            while len(self.counts) < config.epochs and not converged(self.counts, config):
                validates = (len(self.counts) + 1) % config.validate_every == 0
                loss, accuracy = self._epoch(bar, count_hits=validates)
                posterior = self.posterior()
                importance = posterior.importance(config.false_discovery_rate)
                self.counts.append(int((importance > config.min_objects).sum()))
                bar.set_postfix(epoch=len(self.counts), loss=f"{loss:.4f}", dimensions=self.counts[-1], refresh=False)
                if validates:
                    self._validate(posterior, loss, accuracy)
                self._save()

    def _epoch(self, bar: Any, *, count_hits: bool) -> tuple[float, float]:
        """One pass over the training triplets: (mean negative log-likelihood, accuracy if counted)."""
        n, batch = len(self._train), self._config.batch
        order = torch.randperm(n, generator=self._order).to(self._device)
        noise = torch.empty_like(self._loc)
        loss, hits = 0.0, 0
        for step, start in enumerate(range(0, n, batch)):
            index = self._train[order[start : start + batch]]
            noise.normal_(generator=self._noise)
            sims, self._loc.grad, self._log_scale.grad = gradients(
                self._loc, self._log_scale, noise, index, self._config, n
            )
            nll = -float(triplets.pair_log_probabilities(sims)[:, 0].sum())
            if not math.isfinite(nll):
                where = f"epoch {len(self.counts)}, step {step}"
                raise FloatingPointError(f"the loss is {nll / len(index)} in {where}; lower the learning rate.")
            self._optimiser.step()
            loss += nll
            if count_hits:
                hits += int((triplets.odd_one_out(sims, TIE_RULE) == 2).sum())
            bar.update()
        return loss / n, hits / n

    def _validate(self, posterior: Posterior, loss: float, train_accuracy: float) -> None:
        """A line of results, of the posterior before pruning. Draws from no stream that training uses."""
        config, samples = self._config, self._config.mc_samples
        p = triplet_probabilities(posterior, self._val, samples=samples, seed=self._seed, device=self._device)
        accuracy, nll = figures(p)
        result = {"epoch": len(self.counts), "train_acc": train_accuracy, "val_acc": accuracy, "val_loss": nll}
        noise = torch.randn(self._loc.shape, generator=torch.Generator().manual_seed(self._seed)).to(self._device)
        nats = float(complexity(self._loc, self._log_scale, noise, config)) / len(self._train)
        result |= {"train_loss": loss, "complexity": nats, "dimensions": self.counts[-1]}
        self._results.append(result | {"tie_rule": TIE_RULE, "samples": samples})
        _write_text(self._out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in self._results))

    def _save(self) -> None:
        state = {
            "loc": self._loc,
            "log_scale": self._log_scale,
            "optimiser": self._optimiser.state_dict(),
            "order": self._order.get_state(),
            "noise": self._noise.get_state(),
            "counts": self.counts,
            "results": self._results,
        }
        with _whole(self._out / "checkpoint.pt") as stream:
            torch.save(state, stream)

    def _restore(self) -> None:
        state = torch.load(self._out / "checkpoint.pt", map_location=self._device, weights_only=True)
        self._loc.copy_(state["loc"])
        self._log_scale.copy_(state["log_scale"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._order.set_state(state["order"].cpu())
        self._noise.set_state(state["noise"].cpu())
        self.counts, self._results = state["counts"], state["results"]


def _claim(
    out: Path, config: ViceConfig, seed: int, n_objects: int, device: str, inputs: dict[str, NDArray[np.int64]]
) -> None:
    """Write what this fit is made of, or refuse a folder that is made of something else."""
    identity = {
        "config": asdict(config),
        "seed": seed,
        "objects": n_objects,
        "device": torch.device(device).type,  # noise is drawn there, and differs between kinds of device
        "inputs": {name: hashlib.sha256(np.ascontiguousarray(rows)).hexdigest() for name, rows in inputs.items()},
    }
    file = out / "identity.json"
    if not file.exists():
        versions = {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "torch")}}
        _write_text(file, _json(identity | {"versions": versions}))
        return
    stored = json.loads(file.read_text())
    if changed := [key for key in identity if stored.get(key) != identity[key]]:
        raise ValueError(f"{out} was made with another {' and other '.join(changed)}; remove it or choose another.")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write_text(file: Path, text: str) -> None:
    with _whole(file) as stream:
        stream.write(text.encode())


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """A stream to write `file` through; it is absent, or as it was before, until all is on the disk."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
