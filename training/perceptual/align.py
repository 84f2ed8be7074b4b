"""Perceptual alignment of one embedding: steps on judged trials, the best weights by validation, early stopping.

    OUT/config.json            constants, digests of all inputs, versions
    OUT/checkpoint.pt          all that going on needs
    OUT/log.jsonl              a line a step
    OUT/validation.jsonl       a line a validation: before the first step and at every checkpoint
    OUT/best/                  the best weights so far, until the end
    OUT/strength-STEP/         weights and shape after so many steps, of the steps in `strengths`
    OUT/weights.safetensors    the best weights, adapters merged; written last, so a folder that has it is complete
    OUT/embedding.json, mlp_head.safetensors    how the embedding is put together, and its head if it has one

A run is resumed exactly, as a distillation is: the same trainer takes the steps.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract.files import whole
from training.distill import Load, Log, take_steps
from training.encoders import Encoder, weights_digest
from training.feeds import Feed, Step
from training.images import digest_of
from training.perceptual.embedding import HEAD, SHAPE, Origin, Shape, write_shape
from training.perceptual.objective import Perceptual, PerceptualConfig, step_of, trial_feed
from training.perceptual.trials import Trials
from training.processes import place
from training.stage import claim
from training.student_model import READOUT, load_weights
from training.trainer import Objective, Trainer

VALIDATION_BATCH = 64
"""Images embedded at once in a validation."""


def align(
    encoder: Encoder,
    shape: Shape,
    trials: Trials,
    load: Load,
    config: PerceptualConfig,
    out: Path,
    *,
    origin: Origin | None = None,
    device: str = "cpu",
) -> None:
    """Train an encoder on the trials of the split `train`, or go on with the checkpoint in `out`.

    Args:
        encoder: with its starting weights, shaped; it has the best ones at the end.
        shape: of the encoder, written beside the weights.
        trials: with the splits `train` and `val`; those in which people tie are left out.
        load: rows of the trials' images to pixels, or to features where the encoder has a head.
        config: constants.
        out: folder to make or to continue.
        origin: of the starting weights, written beside the shape: what the result is compared with is built again from
            it. Pretrained weights if not given.
        device: where to compute.

    Raises:
        ValueError: no trials to learn or to choose from, adapters that do not fit, or a checkpoint of another
            configuration.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    train, val = (trials.of_split(split).decided() for split in ("train", "val"))
    feed = trial_feed(train, batch=config.batch, seed=config.feed_seed)
    learn(
        encoder,
        shape,
        Lesson(Perceptual(config.margin), feed, step_of(val), load, trials_digests(trials)),
        config,
        out,
        origin=origin,
        device=device,
    )


@dataclass(frozen=True)
class Lesson:
    """What an alignment learns from.

    Attributes:
        objective: of a step and its embeddings.
        feed: the steps.
        validation: one step of what training does not see; weights with the least loss on it are kept.
        load: rows to pixels, or to features where the encoder has a head.
        inputs: digests of all that the steps are made of.
    """

    objective: Objective
    feed: Feed
    validation: Step
    load: Load
    inputs: dict[str, str]


def learn(
    encoder: Encoder,
    shape: Shape,
    lesson: Lesson,
    config: PerceptualConfig,
    out: Path,
    *,
    origin: Origin | None = None,
    device: str = "cpu",
) -> None:
    """Take the steps of a lesson, or go on with them, and leave the best weights in the encoder and in `out`.

    Args and errors are those of `align`.
    """
    out.mkdir(parents=True, exist_ok=True)
    here = place()
    if here.rank == 0:
        # How many processes there are, and how they share the model, is no identity: see `training.distill`.
        same = {"microbatch": None, "parallel": "ddp"}
        inputs = {"encoder": weights_digest(encoder.module)} | lesson.inputs
        identity = {"config": asdict(config) | same, "shape": asdict(shape), "inputs": inputs}
        claim(out / "config.json", identity, ("numpy", "peft", "timm", "torch"))
        write_shape(shape, out / SHAPE, origin)
    here.wait()
    if not (out / "weights.safetensors").exists():
        trainer = Trainer(encoder, lesson.objective, config, device)
        start = trainer.resume(out / "checkpoint.pt")
        validation = _Validation(trainer, lesson, config, out, start)
        if not start and not validation.lines:
            validation(0)
        if not validation.spent:
            take_steps(trainer, lesson.feed, lesson.load, out, start, "perceptual", validation)
        if here.rank == 0:
            _finish(out)
        here.wait()
    load_weights(encoder, out / "weights.safetensors")


def trials_digests(trials: Trials) -> dict[str, str]:
    """Sha256 of the images' names and sizes, and of which trials there are and how people judged them."""
    digest = hashlib.sha256()
    for array in (trials.index, trials.votes):
        digest.update(np.ascontiguousarray(array).data)
    digest.update("\n".join(trials.split.tolist()).encode())
    return {"images": digest_of(trials.images), "trials": digest.hexdigest()}


class _Validation:
    """The loss of the lesson's validation step; keeps the best weights, and says when there was no better for long.

    Lines after the checkpoint that a run resumes from are cut off; the steps behind them are taken again alike, and
    the weights that `best` may hold already are written again.
    """

    def __init__(self, trainer: Trainer, lesson: Lesson, config: PerceptualConfig, out: Path, start: int) -> None:
        self.trainer, self.lesson, self.config, self.out = trainer, lesson, config, out
        file = out / "validation.jsonl"
        read = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = [line for line in read if line["step"] <= start] if start else []
        self.lines: list[dict[str, Any]] = done
        place().wait()  # all have read before one cuts
        self.log = Log(file, len(done)) if place().rank == 0 else None

    @property
    def best(self) -> int:
        """Number of the line with the least loss; the earliest of equals."""
        return int(np.argmin([line["loss"] for line in self.lines]))

    @property
    def spent(self) -> bool:
        """Whether the last `patience` validations brought nothing better, and no strength is still to come."""
        patience = self.config.patience
        if patience is None or not self.lines or self.lines[-1]["step"] < max(self.config.strengths, default=0):
            return False
        return len(self.lines) - 1 - self.best >= patience

    def __call__(self, step: int) -> bool:
        """Validate after so many steps; False where that is to be the last."""
        step_shown = self.lesson.validation
        vectors = self.trainer.embed(step_shown.rows, self.lesson.load, VALIDATION_BATCH).double()
        loss, figures = self.trainer.objective(step_shown, [vectors])
        self.lines.append({"step": step, "loss": loss.item(), **figures})
        if self.log is not None:
            self.log.write(step, {"loss": loss.item(), **figures})
        if self.best == len(self.lines) - 1:
            (self.out / "best").mkdir(exist_ok=True)
            self.trainer.write(self.out / "best")
        if step in self.config.strengths:
            folder = strength_folder(self.out, step)
            folder.mkdir(exist_ok=True)
            with whole(folder / SHAPE) as stream:
                stream.write((self.out / SHAPE).read_bytes())
            self.trainer.write(folder)
        return not self.spent


def strength_folder(out: Path, step: int) -> Path:
    """Where the weights after so many steps are kept."""
    return out / f"strength-{step:06d}"


def _finish(out: Path) -> None:
    """Move the best weights to their place, the file that says that all is there last."""
    for name in (READOUT, HEAD, "weights.safetensors"):
        if (out / "best" / name).exists():
            (out / "best" / name).replace(out / name)
    (out / "best").rmdir()
