"""Uncertainty distillation: bend a frozen representation to people's choices and doubts.

Muttenthaler et al. 2025, equations 2 and 3: an affine map z' = W x + b of standardised features whose
triplet probabilities (softmax over the three dot products, temperature 1) are pulled by KL divergence to
the posterior probabilities of VICE, and whose W is pulled to a multiple of the identity, so that what
people did not judge stays as the backbone saw it.

Faithful to the paper: the loss, the regulariser, the free bias, temperature 1. Our own, because only a few
hundred concepts have photos here (each is a field of `AlignConfig`, and 0 switches it off):

- in-batch triplets: one photo of every concept a step, and many triplets formed among them, so that a step
  costs one matrix product whatever the number of triplets;
- `power`: features are raised to a power below one and scaled to length 1 first (power normalisation,
  Perronnin et al. 2010): rare features count more, one loud feature counts less;
- `components`: the map is learned on the leading principal components of all photos that training may see,
  which needs no label and makes shorter vectors;
- `residuals`: a concept with a single photo borrows the spread of the others: the difference between a photo
  and its concept's mean, taken from a random concept that has at least five photos;
- `noise`: Gaussian noise on the standardised features, a soft limit on the use of any one direction.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract import triplets
from training.stage import read_npz

MIN_PHOTOS_FOR_RESIDUALS = 5

MAY_BE_ZERO = ("penalty", "noise", "residuals")

POWER_FLOOR = 0.001
"""Added before the power is taken. A root is infinitely steep at 0: without a floor the last bit of a silent
feature, which differs between processors and precisions, would move the embedding."""


@dataclass(frozen=True)
class Transform:
    """An affine map of features, in the layout that gLocal published: y = ((x - mean) / std) @ weights + bias.

    With a power, x is `normalize_power(x, power)`. A published file has no power, and mean and std of one number.

    Attributes:
        weights: [p, d], rows are inputs.
        bias: [d].
        mean: [p] or a single number.
        std: a single number.
        power: a single number; NaN for none.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    power: NDArray[np.float32]

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [n, p] to aligned vectors [n, d]."""
        x = features if np.isnan(self.power) else normalize_power(features, float(self.power))
        return (((x - self.mean) / self.std) @ self.weights + self.bias).astype(np.float32)

    def folded(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(weights, bias) of the same map without standardisation: y = x @ weights + bias."""
        weights = self.weights.astype(np.float64) / float(self.std)
        mean = np.broadcast_to(self.mean, weights.shape[:1]).astype(np.float64)
        return weights.astype(np.float32), (self.bias - mean @ weights).astype(np.float32)

    def then(self, second: "Transform") -> "Transform":
        """One map that does this one, then `second`.

        Raises:
            ValueError: `second` takes vectors of another width, or has a power, which no affine map can hold.
        """
        if second.weights.shape[0] != self.weights.shape[1] or not np.isnan(second.power):
            raise ValueError(
                f"the first transform gives {self.weights.shape[1]} numbers, the second takes {second.weights.shape[0]}"
                f"{'' if np.isnan(second.power) else ' and has a power'}; expected as many, and no power."
            )
        weights, bias = second.folded()
        both = self.weights.astype(np.float64) @ weights
        shifted = self.bias.astype(np.float64) @ weights + bias
        return Transform(both.astype(np.float32), shifted.astype(np.float32), self.mean, self.std, self.power)

    def save(self, file: Path) -> None:
        """Write an npz, whole or not at all."""
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, weights=self.weights, bias=self.bias, mean=self.mean, std=self.std, power=self.power)
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read an npz. Raises ValueError when it is no transform of matching shapes; no pickle is ever loaded."""
        found = read_npz(file)
        if missing := sorted({"weights", "mean", "std"} - set(found)):
            raise ValueError(f"{file} lacks {missing}; expected weights, bias, mean, std.")
        if bad := [n for n in ("weights", "bias", "mean") if n in found and not np.isfinite(found[n]).all()]:
            raise ValueError(f"{file}: {bad} hold a value that is not finite.")
        arrays = {name: array.astype(np.float32) for name, array in found.items()}
        weights, mean, std = arrays["weights"], arrays["mean"], arrays["std"]
        bias = arrays.get("bias", np.zeros(weights.shape[-1:], np.float32))
        power = arrays.get("power", np.array(np.nan, np.float32))
        if weights.ndim != 2 or bias.shape != weights.shape[1:] or mean.shape not in ((), weights.shape[:1]):
            raise ValueError(
                f"{file}: weights {weights.shape}, bias {bias.shape}, mean {mean.shape} do not fit together."
            )
        if std.ndim or power.ndim or not 0 < std < np.inf:
            raise ValueError(f"{file}: std {std} and power {power} must be single numbers, std above 0.")
        return cls(weights, bias, mean, std, power)


def normalize_power(features: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """(x + POWER_FLOOR) ** power, scaled to length 1, of non-negative features [n, p].

    Raises:
        ValueError: a feature is negative.
    """
    if (features < 0).any():
        raise ValueError("features are negative somewhere; power normalisation is for the output of a ReLU.")
    x = (features + POWER_FLOOR) ** power
    out: NDArray[np.float32] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return out


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Constants of uncertainty distillation. The defaults suit features of any sign that are used whole.

    Attributes:
        power: of power normalisation; None for none.
        components: principal components kept; None keeps every feature and does not rotate.
        penalty: lambda of the paper, on ||W - mean(diag W) I||_F squared.
        steps: optimiser steps; one photo of every concept each.
        learning_rate: of Adam, warmed up over ten steps, then cosine to zero.
        triplets: formed among the photos of one step.
        noise: standard deviation of the Gaussian noise, in units of standardised features.
        residuals: how much of a borrowed within-concept difference is added to single photos.
    """

    power: float | None = None
    components: int | None = None
    penalty: float = 0.3
    steps: int = 300
    learning_rate: float = 1e-3
    triplets: int = 20_000
    noise: float = 1.0
    residuals: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in ("power", "components"):
                continue
            if not (math.isfinite(value) and value >= 0 and (value > 0 or field.name in MAY_BE_ZERO)):
                raise ValueError(f"{field.name} is {value}; expected a finite number above 0.")
        if self.power is not None and self.power > 1:
            raise ValueError(f"power is {self.power}; expected at most 1.")


def uncertainty_distillation(
    features: NDArray[np.float32],
    concept: NDArray[np.int64],
    train: NDArray[np.int64],
    hidden: NDArray[np.int64],
    vice: NDArray[np.floating[Any]],
    config: AlignConfig,
    *,
    seed: int,
    description: str = "align",
) -> Transform:
    """Learn the transform on the photos of the training concepts.

    Args:
        features: [n, p], finite.
        concept: [n] concept number of each photo; negative where it has none.
        train: concept numbers to learn from, each with at least one photo.
        hidden: concept numbers whose photos are used for nothing at all, not even the principal components;
            photos of neither kind (no concept) have no label to give and serve for the components only.
        vice: where the target probabilities come from: the mean embedding [concepts, dimensions], or rectified
            samples of the posterior [R, concepts, dimensions], over which probabilities (neither similarities nor
            logits) are averaged, as the paper does with R = 50. Samples need 4 R c^2 bytes for c training concepts.
        config: constants.
        seed: of the photos, triplets, noise and blends drawn.
        description: of the progress bar.

    Raises:
        ValueError: fewer than three concepts, a concept without photos, or features or VICE not finite.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    if not np.isfinite(features).all():
        row = int((~np.isfinite(features)).any(1).argmax())
        raise ValueError(f"features of photo {row} are not finite.")
    if vice.ndim not in (2, 3) or not np.isfinite(vice).all():
        raise ValueError(f"VICE is {vice.shape}; expected finite [concepts, dimensions] or [R, concepts, dimensions].")
    rows_of = [np.flatnonzero(concept == c) for c in train]
    if len(train) < 3 or any(len(rows) == 0 for rows in rows_of):
        empty = [int(c) for c, rows in zip(train, rows_of, strict=True) if len(rows) == 0]
        raise ValueError(
            f"{len(train)} training concepts, of which {empty} have no photo; expected 3 or more with photos."
        )
    if config.components is not None and config.components > features.shape[1]:
        raise ValueError(f"components is {config.components}; the features have {features.shape[1]}.")
    power = np.array(np.nan if config.power is None else config.power, np.float32)
    inputs = features if config.power is None else normalize_power(features, config.power)
    mean, basis, std = _standardise(inputs[~np.isin(concept, hidden)], config.components)
    x = torch.from_numpy((((inputs - mean) @ basis) / std).astype(np.float32))
    target = Targets(torch.from_numpy(vice[..., train, :].astype(np.float32)))
    draw = _Sampler(x, rows_of, config, seed)

    # [k, k], in the space of the components
    weights = (_initial_scale(x, rows_of, target.similarities) * torch.eye(x.shape[1])).requires_grad_(True)
    bias = torch.zeros(x.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=config.learning_rate, betas=(0.9, 0.99))
    with tqdm(range(config.steps), desc=description, unit="step", leave=False) as bar:
        for step in bar:
            optimiser.param_groups[0]["lr"] = config.learning_rate * _schedule(step, config.steps)
            photos, index = draw.photos(), draw.triplets()  # [c, k], [t, 3]
            loss = _kl(photos @ weights + bias, target, index) + config.penalty * _identity_penalty(weights)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the learning rate.")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    learned = (basis @ weights.detach().numpy()).astype(np.float32)  # [p, k] @ [k, k]: rotation, then the map
    return Transform(learned, bias.detach().numpy(), mean.astype(np.float32), np.array(std, np.float32), power)


def _standardise(
    inputs: NDArray[np.float32], components: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean [p], principal axes [p, k] and one standard deviation of [n, p].

    Scaled by one number, so that the geometry between photos stays the backbone's.
    """
    wide = inputs.astype(np.float64)
    mean = wide.mean(0)
    centred = wide - mean
    basis = np.eye(wide.shape[1])
    if components is not None:
        _, axes = np.linalg.eigh(centred.T @ centred)
        basis = axes[:, ::-1][:, :components]
    return mean, basis, float((centred @ basis).std())


def _schedule(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 10)
    return warm_up * 0.5 * (1 + float(np.cos(np.pi * (step + 1) / steps)))


class Targets:
    """What people choose among the training concepts: softmax probabilities, averaged over samples of VICE.

    Args:
        vice: [c, dimensions], or [R, c, dimensions] for R samples of the posterior, rectified.
    """

    def __init__(self, vice: Tensor) -> None:
        grams = (vice if vice.ndim == 3 else vice[None]) @ vice.mT  # [R, c, c]
        self.similarities = grams.mean(0)
        self._grams = grams.permute(1, 2, 0).contiguous()  # a pair's R similarities side by side

    def log_probabilities(self, index: Tensor) -> Tensor:
        """Of the pairs of triplets [t, 3]: [t, 3], the logarithm of the mean over samples."""
        each = triplets.pair_log_probabilities(triplets.similarities_at(self._grams, index))  # [t, R, 3]
        return each.logsumexp(1) - math.log(each.shape[1])


def _kl(aligned: Tensor, targets: Targets, index: Tensor) -> Tensor:
    """Mean KL(p* || q) over triplets, in nats (equation 3, first term)."""
    log_p = targets.log_probabilities(index)
    log_q = triplets.pair_log_probabilities(triplets.similarities_at(aligned @ aligned.T, index))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _identity_penalty(weights: Tensor) -> Tensor:
    """||W - mean(diag W) I||_F squared (equation 3, second term)."""
    scaled_identity = torch.eye(len(weights)) * weights.diagonal().mean()
    return ((weights - scaled_identity) ** 2).sum()


def _initial_scale(x: Tensor, rows_of: list[NDArray[np.int64]], similarities: Tensor) -> float:
    """Scale a of W = a I such that the spread of pair similarities starts at a quarter of VICE's."""
    means = torch.stack([x[rows].mean(0) for rows in rows_of])
    i, j = torch.triu_indices(len(means), len(means), 1)
    ours, theirs = (means @ means.T)[i, j].std(), similarities[i, j].std()
    return float((theirs / ours / 4).sqrt())


class _Sampler:
    """Draws the photos and the triplets of each step."""

    def __init__(self, x: Tensor, rows_of: list[NDArray[np.int64]], config: AlignConfig, seed: int) -> None:
        self._x, self._rows_of, self._config = x, rows_of, config
        self._rng = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._single = torch.tensor([len(rows) == 1 for rows in rows_of])
        spread = [
            # n / (n - 1): a photo is closer to the mean of few photos than to its concept's true mean.
            (x[rows] - x[rows].mean(0)) * float(np.sqrt(len(rows) / (len(rows) - 1)))
            for rows in rows_of
            if len(rows) >= MIN_PHOTOS_FOR_RESIDUALS
        ]
        self._residuals = torch.cat(spread) if spread else torch.zeros(1, x.shape[1])

    def photos(self) -> Tensor:
        """One photo of every concept, [c, k]."""
        config, n = self._config, len(self._rows_of)
        x = self._x[[int(rows[self._rng.integers(len(rows))]) for rows in self._rows_of]]
        borrowed = self._residuals[self._rng.integers(len(self._residuals), size=n)]
        x = x + config.residuals * self._single[:, None] * borrowed
        return x + config.noise * torch.randn(x.shape, generator=self._noise)

    def triplets(self) -> Tensor:
        """Triplets [t, 3] of three different rows of `photos`; t is a little less than asked."""
        index = self._rng.integers(len(self._rows_of), size=(self._config.triplets, 3))
        i, j, k = index.T
        return torch.from_numpy(index[(i != j) & (j != k) & (i != k)])
