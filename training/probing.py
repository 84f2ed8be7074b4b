"""Linear transforms learned on human triplets: hard, global, gLocal and uncertainty distillation.

One feature vector for each object (THINGS: 1,854), and triplets of objects of which people chose the odd one. An
affine map y = ((x - mean) / std) @ W + b is learned whose dot products explain the choices (Muttenthaler et al.
2025, equations 1 to 3; gLocal: Muttenthaler et al. 2023). The four objectives, each a mean over a minibatch:

    hard      -log q(chosen pair)                                       + penalty ||W||_F
    global    -log q(chosen pair)                                       + penalty ||W - mean(diag W) I||_F squared
    glocal    (1 - alpha) (-log q(chosen pair)) + alpha local           + the same
    soft      KL(posterior probabilities || q)                          + the same

q is a softmax over the three dot products, temperature 1. `local` keeps neighbours where they were: on features of
any other photos, the cross-entropy between the softmax over cosines of each photo with all others before the
transform (`tau`) and after it. The bias is never penalised.

What differs from the reference code on purpose:

- The local term standardises its features by the same mean and std as everything else. The reference gives it raw
  ones, and so protects the neighbours of a map that is never applied.
- The bias starts at 0, not at sigma: at step 0 the map is the untransformed space, times sigma.
- The learning rate is constant, or warmed up and then a cosine to zero. The reference steps torch's `LinearLR`
  with its defaults, which STARTS at a third of the rate given and RISES to it at the last epoch: under early
  stopping no fit reaches the rate in its name. It is not offered.
- The step of the lowest validation loss is kept, of the fold of the lowest cross-entropy; the reference saves the
  last step of the last fold. Nothing is shared between folds.
- gLocal is validated by the loss that it minimises, (1 - alpha) and alpha included, on photos held out for it; the
  reference adds both terms unweighted.
- Progress is counted in steps, because an epoch of THINGS is thousands of them.

Inside this module a triplet is three 0-based object numbers, the ODD ONE LAST: pair 0 of `contract.triplets.PAIRS`
is the one that people chose.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract import triplets
from contract.triplets import TieRule
from training.align import Transform
from training.folds import Fold, check_rows
from training.stage import blocks

Objective = Literal["hard", "global", "glocal", "soft"]
Optimiser = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine"]

TIE_RULE: TieRule = "strict"
"""Of every accuracy of this stage."""

CHUNK = 4096
"""Triplets whose vectors are in memory at once in validation."""

CLEAR = 4.0
"""Standard errors by which the last pair must be the likelier before probabilities are said to be reversed."""

SUM_TOLERANCE = 1e-3
"""How far three probabilities may be from 1 together: half-precision files are."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Constants of a fit. The defaults are those of the reference code's command line, but for the bias.

    Attributes:
        objective: what is minimised.
        penalty: lambda, of the regulariser. With sgd, a product of learning rate and penalty near 1 diverges.
        learning_rate: the largest of the schedule.
        optimiser: adam or sgd.
        momentum: of sgd.
        schedule: constant, or cosine to zero at the last step.
        warm_up: steps over which the cosine's rate rises from zero; a constant rate has none.
        sigma: W starts as sigma I.
        bias: whether b is learned; 0 otherwise. The paper's map has one, the reference's only if asked.
        clip: largest norm of the gradient; None for no clipping.
        batch: triplets in a minibatch.
        steps: at most.
        min_steps: before which nothing stops.
        validate_every: steps between two validations.
        patience: validations in a row without improvement after which a fit stops.
        min_delta: what counts as an improvement for patience. The best step is kept however small its lead.
        alpha: weight of the local term of glocal.
        tau: temperature of the local term.
        local_batch: photos of the local term in a step.
    """

    objective: Objective
    penalty: float = 1e-3
    learning_rate: float = 1e-3
    optimiser: Optimiser = "adam"
    momentum: float = 0.9
    schedule: Schedule = "constant"
    warm_up: int = 0
    sigma: float = 1e-3
    bias: bool = True
    clip: float | None = None
    batch: int = 256
    steps: int = 20_000
    min_steps: int = 0
    validate_every: int = 100
    patience: int = 10
    min_delta: float = 1e-4
    alpha: float = 0.1
    tau: float = 1.0
    local_batch: int = 1024

    def __post_init__(self) -> None:
        for name, choices in (("objective", Objective), ("optimiser", Optimiser), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}.")
        if type(self.bias) is not bool:  # "False" is true
            raise ValueError(f"bias is {self.bias!r}; expected True or False.")
        may_be_zero = ("penalty", "momentum", "warm_up", "min_steps", "min_delta", "alpha")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and type(value) is not int:
                raise ValueError(f"{field.name} is {value!r}; expected a whole number.")
            if isinstance(value, bool | str) or (field.name == "clip" and value is None):
                continue
            if not (math.isfinite(value) and value >= 0 and (value > 0 or field.name in may_be_zero)):
                raise ValueError(f"{field.name} is {value}; expected a finite number above 0.")
        if self.warm_up and (self.schedule == "constant" or self.warm_up >= self.steps):
            raise ValueError(f"warm_up is {self.warm_up}; expected fewer steps than {self.steps}, and a cosine after.")
        if not (self.momentum < 1 and self.alpha <= 1):
            raise ValueError(f"momentum is {self.momentum}, alpha {self.alpha}; expected below 1, and at most 1.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """A config from names and values. Raises ValueError for a name that is no constant."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"no such constants of probing: {', '.join(unknown)}; there are {', '.join(known)}.")
        if "objective" not in values:
            raise ValueError(f"objective is missing; expected one of {', '.join(get_args(Objective))}.")
        return cls(**values)


@dataclass(frozen=True)
class ProbeData:
    """What a transform is learned from.

    Attributes:
        features: [m, p], one row an object.
        rows: [n, 3] object numbers, odd one last.
        probabilities: [n, 3] posterior probabilities of the PAIRS 01, 02, 12 of each row; for soft only.
        local: [photos, p] of the same encoder and layer, for glocal only; may be mapped from a file.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]] | None = None
    local: NDArray[np.float32] | None = None

    def standardisation(self) -> tuple[np.float32, np.float32]:
        """One mean and one standard deviation (ddof 0) of ALL features, as published: the geometry stays."""
        wide = self.features.astype(np.float64)
        return np.float32(wide.mean()), np.float32(wide.std())

    def check(self, config: ProbeConfig) -> None:
        """Refuse data that the objective cannot be computed from.

        Raises:
            ValueError: what is wrong, and in which row.
        """
        _check_features("features", self.features)
        if not self.standardisation()[1] > 0:
            raise ValueError("features are all one number; there is nothing to transform.")
        check_rows(self.rows, len(self.features))
        given = {"soft": self.probabilities is not None, "glocal": self.local is not None}
        for objective, what in (("soft", "probabilities"), ("glocal", "local features")):
            if given[objective] != (config.objective == objective):
                verb = "needs" if config.objective == objective else "has no use for"
                raise ValueError(f"the objective {config.objective} {verb} {what}.")
        if self.probabilities is not None:
            check_probabilities(self.probabilities, len(self.rows))
        if self.local is not None:
            _check_features("local features", self.local)
            if self.local.shape[1] != self.features.shape[1] or len(self.local) < 6:
                raise ValueError(
                    f"local features are {self.local.shape}; expected 6 rows or more, as wide as the features "
                    f"{self.features.shape}: of the same encoder and layer."
                )

    def sha256(self) -> dict[str, str | None]:
        """Of each array's bytes; None where there is none."""
        return {field.name: _sha256(getattr(self, field.name)) for field in fields(self)}


def _check_features(what: str, features: NDArray[Any]) -> None:
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise ValueError(f"{what} are {features.dtype} {features.shape}; expected floating-point [rows, features].")
    for start, block in blocks(features):
        finite = np.isfinite(block).all(1)
        if not finite.all():
            raise ValueError(f"{what}, row {start + int((~finite).argmax())}: a value is not finite.")


def check_probabilities(probabilities: NDArray[Any], n: int) -> None:
    """Refuse what cannot be pair probabilities of `n` triplets, odd one last. Raises ValueError naming the row."""
    if probabilities.shape != (n, 3):
        raise ValueError(f"probabilities are {probabilities.shape}; expected ({n}, 3), a row for each triplet.")
    # Written so that NaN is wrong too.
    right = (probabilities >= 0).all(1) & (np.abs(probabilities.sum(1) - 1) <= SUM_TOLERANCE)
    if not right.all():
        row = int((~right).argmax())
        raise ValueError(f"probabilities of triplet {row} are {probabilities[row].tolist()}; expected a sum of 1.")
    lead = probabilities[:, 2].astype(np.float64) - probabilities[:, 0]
    if lead.mean() > CLEAR * lead.std() / math.sqrt(n) and n > 1:
        raise ValueError(
            "probabilities favour pair 12 over pair 01, the one that people chose. Are they those of each IMAGE being "
            "the odd one, or is the odd one first? Expected pairs 01, 02, 12 and the odd one last."
        )


def _sha256(array: NDArray[Any] | None) -> str | None:
    if array is None:
        return None
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for start in range(0, len(array), CHUNK):
        digest.update(np.ascontiguousarray(array[start : start + CHUNK]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """What one loss is computed from.

    Attributes:
        x: [objects, p] standardised features.
        index: [b, 3] rows of `x`, odd one last.
        target: [b, 3] pair probabilities, or None where pair 0 was chosen.
        local: [photos, p] standardised features for the local term, or None.
    """

    x: Tensor
    index: Tensor
    target: Tensor | None = None
    local: Tensor | None = None


def objective_value(weights: Tensor, bias: Tensor, batch: Batch, config: ProbeConfig) -> Tensor:
    """What a fit minimises, regulariser included."""
    objects, position = torch.unique(batch.index, return_inverse=True)  # each object is mapped once
    loss = choice_loss(triplets.pair_similarities((batch.x[objects] @ weights + bias)[position]), batch.target)
    if batch.local is not None:
        nearby = local_loss(batch.local, batch.local @ weights + bias, config.tau)
        loss = (1 - config.alpha) * loss + config.alpha * nearby
    regulariser = norm_penalty if config.objective == "hard" else identity_penalty
    return loss + config.penalty * regulariser(weights)


def choice_loss(similarities: Tensor, target: Tensor | None = None) -> Tensor:
    """Mean over triplets, in nats, of -log q(pair 0), or of KL(target || q); similarities and target are [b, 3]."""
    log_q = triplets.pair_log_probabilities(similarities)
    if target is None:
        return -log_q[:, 0].mean()
    return -((target * log_q).sum(-1) + triplets.entropy(target)).mean()


def local_loss(before: Tensor, after: Tensor, tau: float) -> Tensor:
    """Mean over photos of the cross-entropy of their neighbours' softmax, `before` the target of `after`.

    Similarities are cosines divided by `tau`; a photo is no neighbour of itself.
    """
    p, log_q = (_without_diagonal(triplets.similarity_matrix(z, z, "cosine")) / tau for z in (before, after))
    return -(p.softmax(-1) * log_q.log_softmax(-1)).sum(-1).mean()


def _without_diagonal(matrix: Tensor) -> Tensor:
    """[n, n] to [n, n - 1]: behind each element of the diagonal, n others until the next."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def norm_penalty(weights: Tensor) -> Tensor:
    """||W||_F, not squared, as in the reference."""
    norm: Tensor = torch.linalg.matrix_norm(weights)
    return norm


def identity_penalty(weights: Tensor) -> Tensor:
    """||W - mean(diag W) I||_F squared."""
    diagonal = weights.diagonal()
    return ((weights - torch.diag(diagonal.mean().expand(len(diagonal)))) ** 2).sum()


def learning_rate(step: int, config: ProbeConfig) -> float:
    """Of optimiser step `step`, from 0."""
    if config.schedule == "constant":
        return config.learning_rate
    rise = min(1.0, (step + 1) / config.warm_up) if config.warm_up else 1.0
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


@dataclass(frozen=True)
class Fitted:
    """The best step of one fit, and what is known about it.

    Attributes:
        transform: at the best step.
        figures: `best_step` (0 is the untransformed space), `steps` done, `stopped` (patience or steps), on the
            validation triplets `loss`, `cross_entropy`, `accuracy` (and for soft `divergence`) of the best step and
            `untransformed_accuracy`.
    """

    transform: Transform
    figures: dict[str, Any]


def fit_probe(
    data: ProbeData, fold: Fold, config: ProbeConfig, *, seed: int, device: str = "cpu", description: str = "probe"
) -> Fitted:
    """Learn a transform on the fold's training triplets; the step of the lowest validation loss is kept.

    The validation triplets decide the step and nothing else; features of validated objects enter the two numbers
    of the standardisation, no label does.

    Args:
        data: features and judgments.
        fold: which triplets train and which validate.
        config: constants.
        seed: of the order of triplets and the photos of the local term. With the same seed, data, device and
            number of threads, the result is the same bit for bit (on the CPU).
        device: where torch computes.
        description: of the progress bar.

    Raises:
        ValueError: bad data.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    data.check(config)
    return _Fit(data, fold, config, seed, device).train(description)


class _Fit:
    """One fit: its tensors, its random numbers, its best step so far."""

    def __init__(self, data: ProbeData, fold: Fold, config: ProbeConfig, seed: int, device: str) -> None:
        self._config, self._device, self._fold, self._local = config, device, fold, data.local
        self._mean, self._std = data.standardisation()
        self._x = self._standardised(data.features)
        self._index = torch.from_numpy(np.ascontiguousarray(data.rows, np.int64)).to(device)
        self._target = None
        if data.probabilities is not None:
            exact = np.asarray(data.probabilities, np.float64)
            exact = exact / exact.sum(1, keepdims=True)
            self._target = torch.from_numpy(exact.astype(np.float32)).to(device)
        self._rng = np.random.default_rng([seed, fold.number])
        if data.local is not None:
            # A fifth of the photos, at most a batch of them, is held out for validation.
            order = self._rng.permutation(len(data.local))
            held_out = min(config.local_batch, len(order) // 5 + 1)
            self._local_train, self._local_validation = np.sort(order[held_out:]), np.sort(order[:held_out])
        width = self._x.shape[1]
        self._weights = (config.sigma * torch.eye(width, device=device)).requires_grad_(True)
        self._bias = torch.zeros(width, device=device, requires_grad=config.bias)
        self._learned = [self._weights, self._bias] if config.bias else [self._weights]

    def train(self, description: str) -> Fitted:
        config = self._config
        if config.optimiser == "adam":
            optimiser: torch.optim.Optimizer = torch.optim.Adam(self._learned, lr=config.learning_rate)
        else:
            optimiser = torch.optim.SGD(self._learned, lr=config.learning_rate, momentum=config.momentum)
        best = self._validate(0)
        untransformed, reference, waited, stopped = best["accuracy"], best["loss"], 0, "steps"
        kept, batches, step = self._transform(), self._batches(), 0
        with tqdm(total=config.steps, desc=description, unit="step", leave=False) as bar:
            while step < config.steps and stopped == "steps":
                optimiser.param_groups[0]["lr"] = learning_rate(step, config)
                loss = objective_value(self._weights, self._bias, next(batches), config)
                _require_finite(loss, step)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                if config.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self._learned, config.clip)
                optimiser.step()
                step += 1
                bar.update()
                if step % config.validate_every and step < config.steps:
                    continue
                now = self._validate(step)
                if now["loss"] < best["loss"]:
                    best, kept = now, self._transform()
                improved = now["loss"] < reference - config.min_delta
                reference, waited = (now["loss"], 0) if improved else (reference, waited + 1)
                if waited >= config.patience and step >= config.min_steps:
                    stopped = "patience"
                bar.set_postfix(validation=f"{now['loss']:.4f}", best=f"{best['loss']:.4f}", refresh=False)
        figures = best | {"steps": step, "stopped": stopped, "untransformed_accuracy": untransformed}
        return Fitted(kept, figures)

    def _batches(self) -> Iterator[Batch]:
        """Every training triplet once an epoch, in an order of its own; the last batch of an epoch may be short."""
        config, rows = self._config, self._fold.train
        while True:
            order = rows[self._rng.permutation(len(rows))]
            for start in range(0, len(order), config.batch):
                local = None
                if self._local is not None:
                    size = min(config.local_batch, len(self._local_train))
                    photos = self._local_train[self._rng.choice(len(self._local_train), size, replace=False)]
                    local = self._standardised(self._local[photos])
                yield self._batch(order[start : start + config.batch], local)

    def _batch(self, rows: NDArray[np.int64], local: Tensor | None = None) -> Batch:
        chosen = torch.from_numpy(rows).to(self._device)
        target = None if self._target is None else self._target[chosen]
        return Batch(self._x, self._index[chosen], target, local)

    def _standardised(self, features: NDArray[Any]) -> Tensor:
        """As `Transform.apply` does it."""
        return torch.from_numpy(((features - self._mean) / self._std).astype(np.float32)).to(self._device)

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, Any]:
        """Figures of the map as it is, on all validation triplets."""
        config, rows = self._config, self._fold.validation
        z = self._x @ self._weights + self._bias
        total, right, doubt = 0.0, 0, 0.0
        for start in range(0, len(rows), CHUNK):
            batch = self._batch(rows[start : start + CHUNK])
            sims = triplets.pair_similarities(z[batch.index])
            total += float(choice_loss(sims, batch.target)) * len(sims)
            right += int((triplets.odd_one_out(sims, TIE_RULE) == 2).sum())
            if batch.target is not None:
                doubt += float(triplets.entropy(batch.target).sum())
        loss = cross_entropy = (total + doubt) / len(rows)
        if self._local is not None:
            photos = self._standardised(self._local[self._local_validation])
            nearby = float(local_loss(photos, photos @ self._weights + self._bias, config.tau))
            loss = (1 - config.alpha) * cross_entropy + config.alpha * nearby
        _require_finite(torch.tensor(loss), step)
        figures = {"best_step": step, "loss": loss, "cross_entropy": cross_entropy, "accuracy": right / len(rows)}
        return figures if self._target is None else figures | {"divergence": total / len(rows)}

    def _transform(self) -> Transform:
        weights, bias = (tensor.detach().cpu().numpy().copy() for tensor in (self._weights, self._bias))
        return Transform(weights, bias, np.array(self._mean), np.array(self._std), np.array(np.nan, np.float32))


def _require_finite(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the learning rate or the penalty.")
