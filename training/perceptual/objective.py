"""The perceptual objective: a hinge on the difference of two distances (Fu et al. 2023, section 4)."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contract import triplets
from training.feeds import Feed, Step, labelled_feed
from training.perceptual.trials import Trials
from training.student_model import Adaptation
from training.trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(TrainConfig):
    """Constants of one perceptual alignment. Defaults are those of DreamSim's code for a single backbone with LoRA.

    Its alpha is 32 there, 8 for the ensemble, and 0.5 in Sundaram et al. 2024: adapters are scaled by alpha / rank, so
    it is a constant like any other, and recorded.

    Attributes:
        margin: of the hinge.
        batch: trials a step.
        first_beta: of Adam.
        after_warmup: the learning rate stays, or falls as a cosine.
        patience: validations without a better loss after which training stops; None never stops early.
        strengths: steps after which the weights are kept besides the best ones: how much alignment is too much is
            another question for every task (Sundaram et al. 2024, section 5). Multiples of `checkpoint_every`; training
            does not stop early before the last of them.
        feed_seed: of the order of trials.
    """

    margin: float = 0.05
    batch: int = 32
    steps: int = 3_475
    learning_rate: float = 3e-4
    head_rate: float = 3e-4
    warmup: int = 0
    decay: float = 0.0
    adaptation: Adaptation = field(
        default_factory=lambda: Adaptation(lora_rank=16, lora_alpha=32.0, lora_dropout=0.2, lora_targets=("qkv",))
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = 434
    first_beta: float = 0.5
    after_warmup: Literal["constant", "cosine"] = "constant"
    patience: int | None = 3
    strengths: tuple[int, ...] = ()
    feed_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("margin", "batch")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}; expected 1 or more, or none.")
        if odd := [step for step in self.strengths if not 0 < step <= self.steps or step % self.checkpoint_every]:
            raise ValueError(
                f"strengths {odd} cannot be kept; expected multiples of checkpoint_every ({self.checkpoint_every}), "
                f"up to {self.steps} steps."
            )
        if self.adaptation.triplet_head is not None:
            raise ValueError("a triplet head is judged in place of the embedding; perceptual alignment has none.")

    @property
    def schedule(self) -> Literal["cosine", "constant"]:
        """Of the learning rate after the warm-up."""
        return self.after_warmup

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam."""
        return self.first_beta, 0.999

    def require_no_augmentation(self) -> None:
        """Raises ValueError where images are to change at every step: features computed once have no pixels."""
        if self.augment != "none":
            raise ValueError(
                f"augment is {self.augment!r}, and a head is trained on features that are computed once; expected none "
                "or a recipe without a head."
            )


def hinge(distance: Tensor, votes: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin - (d_left - d_right) y), y = 1 where the right one has more votes, else -1.

    Args:
        distance: [t, 2] from the reference to the left and the right image.
        votes: [t] share of people who chose the right one.
        margin: by which the nearer is to be nearer.
    """
    y = torch.where(votes > 0.5, 1.0, -1.0).to(distance.dtype)
    return torch.relu(margin - (distance[:, 0] - distance[:, 1]) * y).mean()


def trial_distances(vectors: Tensor, index: Tensor) -> Tensor:
    """1 - cosine between the reference and each alternative, [t, 2], of vectors [m, k] at positions [t, 3]."""
    return 1 - triplets.pair_similarities(vectors[index], "cosine")[:, :2]


@dataclass(frozen=True)
class Perceptual:
    """The hinge of a step's trials, as an objective of `training.trainer`."""

    margin: float

    def __call__(self, step: Step, embedded: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """See `training.trainer.Objective`."""
        assert step.votes is not None
        z = embedded[0]
        votes = torch.from_numpy(step.votes).to(z.device)
        distance = trial_distances(z, torch.from_numpy(step.index).to(z.device))
        loss = hinge(distance, votes, self.margin)
        right = ((distance[:, 1] < distance[:, 0]) == (votes > 0.5)).double()
        right[distance[:, 0] == distance[:, 1]] = 0.5
        return loss, {"hinge": loss.item(), "accuracy": right.mean().item()}


def step_of(trials: Trials) -> Step:
    """All trials as one step, for validation."""
    rows, index = np.unique(trials.index, return_inverse=True)
    return Step(rows.astype(np.int64), index.reshape(-1, 3).astype(np.int64), votes=trials.votes)


def trial_feed(trials: Trials, *, batch: int, seed: int) -> Feed:
    """`batch` trials a step, each once an epoch, in an order of its own every epoch.

    Raises:
        ValueError: fewer trials than a batch.
    """
    if batch > len(trials):
        raise ValueError(f"{trials.source}: {len(trials)} trials to learn from, {batch} a step; expected no fewer.")
    feed = labelled_feed(trials.index, trials.votes.astype(np.float32)[:, None], batch=batch, seed=seed)

    def step(number: int) -> Step:
        drawn = feed(number)
        assert drawn.similarities is not None
        return Step(drawn.rows, drawn.index, votes=drawn.similarities[:, 0].astype(np.float64))

    return step
