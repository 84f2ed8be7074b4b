"""Joint alignment: semantic triplets and perceptual judgments, weighted, in one run.

AligNet's judgments sort images by what they show, perceptual ones by how they look, and each kind of alignment costs
some of the other. A step embeds photos, of which triplets are judged as the aligned teacher judges them (Muttenthaler
et al. 2025, equation 4), and the images of two-alternative trials (Fu et al. 2023, the hinge), and goes down

    (1 - weight) * divergence + weight * scale * hinge

so that weight 0 is AligNet alone and weight 1 perceptual alignment alone. Nobody has published this sum; `scale` is a
constant that makes the two losses about as large as each other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.distill import Load
from training.feeds import Feed, FeedConfig, Sampling, Step, feed_of, random_triplets
from training.perceptual.objective import Perceptual, PerceptualConfig
from training.trainer import Distillation, DistillConfig, Loss

VALIDATION_TRIPLETS = 5_000


@dataclass(frozen=True, kw_only=True)
class JointConfig(PerceptualConfig):
    """Constants of one joint alignment; `batch` is trials a step, as in perceptual alignment.

    Attributes:
        weight: of the perceptual part, from 0 (AligNet alone) to 1 (perceptual alone).
        scale: multiplies the hinge.
        photos: a step.
        per_group: photos of each cluster in a step.
        triplets_per_step: judged among the photos of a step.
        sampling: of the triplets, see `FeedConfig`.
        loss: the divergence.
        temperature: of the model's dot products.
        teacher_temperature: of the teacher's.
    """

    weight: float = 0.5
    scale: float = 1.0
    photos: int = 128
    per_group: int = 8
    triplets_per_step: int = 20_000
    sampling: Sampling = "random"
    loss: Loss = "kl"
    temperature: float = 100.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("scale", "temperature", "teacher_temperature", "photos", "triplets_per_step")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; expected 0 (AligNet alone) to 1 (perceptual alone).")

    @property
    def feed(self) -> FeedConfig:
        """Of the photos."""
        return FeedConfig(
            batch=self.photos,
            per_group=self.per_group,
            triplets_per_step=self.triplets_per_step,
            sampling=self.sampling,
            feed_seed=self.feed_seed,
        )

    @property
    def distillation(self) -> DistillConfig:
        """Of the semantic part."""
        return DistillConfig(loss=self.loss, temperature=self.temperature, teacher_temperature=self.teacher_temperature)


@dataclass(frozen=True, kw_only=True)
class JointStep(Step):
    """Photos and triplets, then images and trials; a part whose weight is 0 is None, and its images are not embedded.

    Attributes:
        semantic: rows of photos, triplets as positions among them.
        perceptual: rows of trials' images, trials as positions among them.
    """

    semantic: Step | None
    perceptual: Step | None


def joint_step(semantic: Step | None, perceptual: Step | None, photos: int) -> JointStep:
    """One step of two.

    Args:
        semantic: of photos, rows below `photos`.
        perceptual: of the trials' images, rows of their own.
        photos: rows of the trials' images come after so many.
    """
    rows = [] if semantic is None else [semantic.rows]
    rows += [] if perceptual is None else [perceptual.rows + photos]
    every = np.concatenate(rows)
    return JointStep(every, np.empty((0, 3), np.int64), semantic=semantic, perceptual=perceptual)


@dataclass(frozen=True)
class Joint:
    """The weighted sum, as an objective of `training.trainer`."""

    semantic: Distillation
    perceptual: Perceptual
    weight: float
    scale: float

    def __call__(self, step: Step, embedded: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """See `training.trainer.Objective`."""
        assert isinstance(step, JointStep)
        z = embedded[0]
        figures: dict[str, float] = {}
        photos = 0 if step.semantic is None else len(step.semantic.rows)
        total = z.new_zeros(())
        if step.semantic is not None:
            loss, own = self.semantic(step.semantic, [z[:photos]])
            total, figures = total + (1 - self.weight) * loss, figures | own
        if step.perceptual is not None:
            loss, own = self.perceptual(step.perceptual, [z[photos:]])
            total, figures = total + self.weight * self.scale * loss, figures | own
        return total, {"loss": total.item(), **figures}


def joint_objective(config: JointConfig, teacher: NDArray[np.float32]) -> Joint:
    """The objective of a config, and of a teacher's vectors [photos, k]."""
    semantic = Distillation(config.distillation, torch.from_numpy(teacher), None)
    return Joint(semantic, Perceptual(config.margin), config.weight, config.scale)


def joint_feed(
    config: JointConfig, rows: NDArray[np.int64], label: NDArray[np.int64], trials: Feed, photos: int
) -> Feed:
    """Photos and trials of every step.

    Args:
        config: constants.
        rows: of the photos that training sees.
        label: [photos] cluster of each photo, where it is in `rows`.
        trials: as `trial_feed` gives them.
        photos: how many there are in all.
    """
    semantic = feed_of(config.feed, rows, label)

    def step(number: int) -> Step:
        return joint_step(
            semantic(number) if config.weight < 1 else None, trials(number) if config.weight > 0 else None, photos
        )

    return step


def validation_step(config: JointConfig, rows: NDArray[np.int64], trials: Step, photos: int) -> JointStep:
    """Photos `rows`, random triplets of them, and trials, none of which training sees.

    Raises:
        ValueError: fewer than three photos.
    """
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} photos to choose weights on; expected three or more.")
    triplets = random_triplets(len(rows), VALIDATION_TRIPLETS, np.random.default_rng(config.feed_seed))
    semantic = Step(rows, triplets)
    return joint_step(semantic if config.weight < 1 else None, trials if config.weight > 0 else None, photos)


def joint_load(photos: Load, images: Load, n: int) -> Load:
    """Rows below n are photos, those above it images of trials."""

    def load(rows: NDArray[np.int64]) -> Tensor:
        first = rows < n
        parts = [
            (loader(part), torch.from_numpy(np.flatnonzero(where)))
            for loader, part, where in ((photos, rows[first], first), (images, rows[~first] - n, ~first))
            if len(part)
        ]
        out = parts[0][0].new_empty((len(rows), *parts[0][0].shape[1:]))
        for part, at in parts:
            out[at] = part
        return out

    return load
