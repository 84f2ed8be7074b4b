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
- Noise is drawn for every other minibatch; the one between takes its negative. Each sample is exactly of the
  posterior, so every minibatch's gradient is unbiased; drawing normal numbers is a quarter of a step.
- Adam is fused.

What differs from the reference code on purpose: densities are in log space (theirs underflow); the tie rule
and the odd-last order are `contract.triplets`' own; Laplace mixtures and other optimisers are left out.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import triplets
from contract.files import whole
from contract.triplets import TieRule
from training.stage import read_npz
from training.things import read_vice

TIE_RULE: TieRule = "rounded"
"""Of every accuracy of this stage: VICE's own, so that figures compare with published ones."""

BATCH = 16_384
"""Triplets that are in memory at once when probabilities are computed."""

MAY_BE_ZERO = ("burn_in", "min_objects", "final_rate")

GRAM = 2**13
"""Objects up to which all their similarities are computed at once and looked up: 256 MiB, and far less to read."""


@dataclass(frozen=True, kw_only=True)
class ViceConfig:
    """Constants of a fit. The defaults are those of the reference code's command line.

    Attributes:
        dimensions: before pruning.
        spike: standard deviation of the narrow part of the prior.
        slab: standard deviation of the wide part.
        pi: weight of the SPIKE.
        batch: triplets in a minibatch.
        learning_rate: of Adam.
        final_rate: share of the learning rate that is left after the last epoch, by a cosine. 1 is constant, as
            published. Below 1 the noise of the last steps is averaged out; let `window` be above `epochs` then, so
            that a fit does not end while its rate is high.
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
    final_rate: float = 1.0
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
            if not (math.isfinite(value) and value >= 0 and (value > 0 or field.name in MAY_BE_ZERO)):
                raise ValueError(f"{field.name} is {value}; expected a finite number above 0.")
        if not (self.pi < 1 and self.false_discovery_rate < 1):
            raise ValueError(f"pi is {self.pi}, false_discovery_rate {self.false_discovery_rate}; expected below 1.")
        if self.final_rate > 1:
            raise ValueError(f"final_rate is {self.final_rate}; expected a share from 0 to 1.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """A config from names and values, such as those of a command line; strings are converted.

        Raises:
            ValueError: a name that is no constant, or a value that is no such number.
        """
        types = {name: type(default) for name, default in asdict(cls()).items()}
        if unknown := sorted(set(values) - set(types)):
            raise ValueError(f"no such constants of VICE: {', '.join(unknown)}; there are {', '.join(types)}.")
        try:
            return cls(**{name: types[name](value) for name, value in values.items()})
        except TypeError as error:
            raise ValueError(f"constants of VICE are {dict(values)}: {error}") from error


def learning_rate(epoch: int, config: ViceConfig) -> float:
    """Of every step of an epoch, from 0."""
    wave = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * wave)


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
        arrays: dict[str, Any] = {f"{prefix}loc": self.loc, f"{prefix}scale": self.scale}
        with whole(file) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read parameters.npz or pruned_params.npz. Raises ValueError when it is neither."""
        return cls._of(file, read_npz(file))

    @classmethod
    def load_pruned(cls, file: Path) -> Self:
        """Read pruned_params.npz as it stands, or parameters.npz and prune it by the constants of its fit.

        These are in identity.json beside it; without one they are the defaults of `prune`. What a fit has pruned is
        not pruned again: by other constants, dimensions that it kept would be lost.

        Raises:
            ValueError: neither of the two, or no dimension is left.
        """
        arrays = read_npz(file)
        kept = cls._of(file, arrays)
        if "pruned_loc" not in arrays:
            kept = kept.prune(**_pruning_of(file))
        if not kept.loc.shape[1]:
            raise ValueError(
                f"{file}: no dimension survives pruning; train for longer, or give the fit's pruned_params.npz."
            )
        return kept

    @classmethod
    def _of(cls, file: Path, found: Mapping[str, NDArray[Any]]) -> Self:
        arrays = {name.removeprefix("pruned_"): array for name, array in found.items()}
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

    def draws(self, samples: int, *, seed: int, device: str = "cpu") -> Iterator[Tensor]:
        """`samples` embeddings [objects, dimensions] of the posterior, rectified. Prune first."""
        loc, scale = torch.from_numpy(self.loc).to(device), torch.from_numpy(self.scale).to(device)
        noise = torch.Generator(device).manual_seed(seed)
        for _ in range(samples):
            yield torch.addcmul(loc, scale, torch.randn(loc.shape, generator=noise, device=device)).relu()


def read_embeddings(file: Path, samples: int, *, seed: int) -> NDArray[np.floating[Any]]:
    """What stands for people: a mean embedding (.npy), or rectified samples of a posterior (.npz of the vice stage).

    Args:
        file: .npy [objects, dimensions]; or parameters.npz or pruned_params.npz, see `Posterior.load_pruned`.
        samples: R, of a posterior.
        seed: of the samples.

    Returns:
        [objects, dimensions] of a mean embedding, [R, objects, dimensions] of a posterior.

    Raises:
        ValueError: neither of the two, no sample, or no dimension is left after pruning.
    """
    if samples < 1:
        raise ValueError(f"{samples} posterior samples; expected 1 or more.")
    if file.suffix == ".npy":
        return read_vice(file)
    return torch.stack(list(Posterior.load_pruned(file).draws(samples, seed=seed))).numpy()


def _pruning_of(file: Path) -> dict[str, Any]:
    """Constants by which the fit that wrote `file` prunes, from identity.json in its folder; none where it has none."""
    identity = file.with_name("identity.json")
    config = json.loads(identity.read_text()).get("config", {}) if identity.exists() else {}
    return {name: config[name] for name in ("min_objects", "false_discovery_rate") if name in config}


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
    others are asked.
    """
    return mean_probabilities(posterior.draws(samples, seed=seed, device=device), index)


def mean_probabilities(embeddings: Iterable[Tensor], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Choice probabilities of triplets [n, 3] by each embedding [objects, dimensions], averaged: [n, 3]."""
    total, count = np.zeros((len(index), 3)), 0
    for z in embeddings:
        rows, count = torch.from_numpy(index).to(z.device), count + 1
        gram = z @ z.T if len(z) <= GRAM else None
        for start in range(0, len(index), BATCH):
            chunk = rows[start : start + BATCH]
            sims = triplets.pair_similarities(z[chunk]) if gram is None else triplets.similarities_at(gram, chunk)
            total[start : start + BATCH] += triplets.pair_probabilities(sims).cpu().numpy()
    return total / count


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
    """Choice log-probabilities [b, 3] of a minibatch [b, 3], and the loss's gradients for loc and log_scale.

    The loss is mean(-log p(pair 0)) + complexity / n_train. Only the first term goes through autograd,
    and of it only the rows of the minibatch.
    """
    # exp2: in torch several times faster than exp on a CPU, and as exact.
    spread = (log_scale * math.log2(math.e)).exp2_().mul_(noise)
    x = loc + spread
    # Prior: -d log p / dx = x (r / spike^2 + (1 - r) / slab^2), r the spike's share of the density at x.
    wide, narrow = 1 / config.slab**2, 1 / config.spike**2
    odds = x.new_tensor(math.log(config.pi / (1 - config.pi) * config.slab / config.spike))
    share = torch.addcmul(odds, x, x, value=-(narrow - wide) / 2).sigmoid_()
    grad = (x * (wide / n_train)).addcmul_(x, share, value=(narrow - wide) / n_train)
    # Choices: autograd sees the rows of the minibatch alone, one position at a time, because the derivative of
    # x[..., i, :] fills a [b, 3, d] of zeros for each of its six uses. Rectified here, after sampling.
    flat = index.T.flatten()
    leaves = [part.requires_grad_(True) for part in x.index_select(0, flat).relu_().chunk(3)]
    sims = torch.stack([(leaves[i] * leaves[j]).sum(-1) for i, j in triplets.PAIRS], -1)
    log_p = triplets.pair_log_probabilities(sims)
    by_row = torch.cat(torch.autograd.grad(-log_p[:, 0].mean(), leaves))
    grad.index_add_(0, flat, by_row.mul_(torch.cat(leaves).detach() > 0))
    return log_p.detach(), grad, torch.addcmul(x.new_tensor(-1 / n_train), spread, grad)
