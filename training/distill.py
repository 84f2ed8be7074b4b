"""Distillation: a ViT learns the teacher's soft judgments (Muttenthaler et al. 2025, equation 4).

For every triplet the teacher's probabilities over its three pairs are the target, the student's are the
softmax of its dot products divided by `temperature` (100 in the paper), and the loss is their divergence:
KL as in the paper, Jensen-Shannon as in the released code. Weights are pulled back to where they started
(decoupled decay: theta <- theta - lr * decay * (theta - theta_0), as in the released code).

Beyond the paper, and 0 by default: `regression`, the cosine distance between the teacher's vector and a
linear map of the student's, which teaches more per image where images are few.

A run is resumed exactly: steps are functions of (seed, step), and checkpoints hold weights, optimiser,
theta_0 and the step.

    OUT/config.json            constants, digests of all inputs, versions
    OUT/checkpoint.pt          all that going on needs
    OUT/log.jsonl              a line a step
    OUT/weights.safetensors    the encoder, adapters merged; written last, so a folder that has it is complete
"""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract.ahead import ahead
from training.encoders import Encoder, weights_digest
from training.feeds import Feed, Step
from training.images import Images, digest_of
from training.processes import Place, place
from training.stage import claim
from training.student_model import load_weights
from training.trainer import Distillation, DistillConfig, TrainConfig, Trainer
from training.triplet_files import digest

Load = Callable[[NDArray[np.int64]], Tensor]
"""Rows of images to their uint8 pixels [m, 3, height, width]."""


def distill(
    encoder: Encoder,
    load: Load,
    teacher: NDArray[np.float32] | None,
    feed: Feed,
    config: DistillConfig,
    out: Path,
    *,
    inputs: Mapping[str, Any],
    targets: NDArray[np.float32] | None = None,
    device: str = "cpu",
) -> None:
    """Train an encoder, or go on with the checkpoint in `out`; at the end it holds the trained weights.

    Args:
        encoder: the student with its starting weights; it has the trained ones at the end.
        load: rows of images to their pixels.
        teacher: [n, k] aligned vectors of all images, compared by dot product; None if the feed's steps bring
            similarities.
        feed: what each step embeds and judges.
        config: constants.
        out: folder for `checkpoint.pt`, `log.jsonl` and `weights.safetensors`.
        inputs: what `load` and `feed` are made of, as `inputs_of` gives it; recorded beside digests of the encoder and
            the vectors. A checkpoint is gone on with only where all of it is the same.
        targets: [n, p] vectors that the regression predicts; the teacher's if not given.
        device: where to compute.

    Raises:
        ValueError: vectors that are not finite, a regression without vectors, or `out` belongs to another
            configuration or other inputs; the message names those that differ.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    vectors = [_checked(x, name) for x, name in ((teacher, "teacher's vector"), (targets, "regression target"))]
    regressed = (vectors[1] if vectors[1] is not None else vectors[0]) if config.regression else None
    if config.regression and regressed is None:
        raise ValueError("regression needs the teacher's vectors; labelled triplets hold similarities only.")
    out.mkdir(parents=True, exist_ok=True)
    here = place()
    if here.rank == 0:
        # Two processes take the steps of one: how many there are, and how they share the model, is no identity.
        same = {"microbatch": None, "parallel": "ddp"}
        learned = _digests(encoder, teacher, targets)
        identity = {"config": asdict(config) | same, "inputs": {**inputs, **learned}}
        claim(out / "config.json", identity, ("numpy", "timm", "torch"))
    here.wait()
    if not (out / "weights.safetensors").exists():
        objective = Distillation(config, vectors[0], regressed)
        trainer = Trainer(encoder, objective, config, device, regressed=objective.head(encoder))
        start = trainer.resume(out / "checkpoint.pt")
        take_steps(trainer, feed, load, out, start, "distill")
        trainer.write(out)
        here.wait()
    load_weights(encoder, out / "weights.safetensors")


def inputs_of(images: Images, feed: Mapping[str, Any], **arrays: NDArray[Any]) -> dict[str, Any]:
    """What the steps of a distillation are made of, for its record.

    Args:
        images: those that rows are of; names and sizes are hashed, in their order, see `digest_of`.
        feed: its constants.
        arrays: all else that it draws from: the group of each image [n], or triplets and their similarities, [t, 3].

    Returns:
        The feed's constants, and a sha256 of each of the others.
    """
    return {"feed": dict(feed), "images": digest_of(images)} | {name: digest(a) for name, a in arrays.items()}


def take_steps(
    trainer: Trainer,
    feed: Feed,
    load: Load,
    out: Path,
    start: int,
    name: str,
    before_checkpoint: Callable[[int], bool] | None = None,
) -> None:
    """Train from step `start` on, with a bar, a line in `log.jsonl` a step, and checkpoints.

    Args:
        trainer: as it was at that step.
        feed: what each step embeds and judges.
        load: rows of images to their pixels.
        out: folder for `checkpoint.pt` and `log.jsonl`.
        start: number of steps that are done.
        name: of the bar.
        before_checkpoint: called with the number of steps done before each checkpoint is written, in every process;
            where it says False, that step is the last.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step.
    """
    here, config = place(), trainer.config
    log = Log(out / "log.jsonl", start) if here.rank == 0 else None
    prepare = functools.partial(_prepared, feed, load, config, here)
    with (
        # The next step is read while this one is trained on.
        ahead(prepare, range(start, config.steps), threads=1, depth=1, name="prefetch") as steps,
        tqdm(total=config.steps, initial=start, desc=name, unit="step", disable=here.rank > 0) as bar,
    ):
        for number, step, pixels in steps:
            began = time.perf_counter()
            metrics = trainer.step(number, pixels, step)
            if log is not None:
                rate = len(step.rows) / (time.perf_counter() - began)
                size = {"images": len(step.rows), "triplets": len(step.index)}
                log.write(number, metrics | size | {"images_per_second": rate})
                bar.set_postfix(loss=f"{next(iter(metrics.values())):.4f}", refresh=False)
            bar.update()
            if (number + 1) % config.checkpoint_every == 0 or number + 1 == config.steps:
                go_on = before_checkpoint is None or before_checkpoint(number + 1)
                trainer.save(out / "checkpoint.pt", number + 1)
                if not go_on:
                    return


def _checked(vectors: NDArray[np.float32] | None, name: str) -> Tensor | None:
    if vectors is None:
        return None
    if not np.isfinite(vectors).all():
        raise ValueError(f"the {name} of image {int((~np.isfinite(vectors)).any(1).argmax())} is not finite.")
    return torch.from_numpy(vectors)


def _digests(
    encoder: Encoder, teacher: NDArray[np.float32] | None, targets: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Sha256 of what is trained and of the vectors that it learns from; the pixels that it sees."""
    vectors = {"teacher": teacher, "targets": targets}
    digests = {name: digest(array) for name, array in vectors.items() if array is not None}
    return digests | {"encoder": weights_digest(encoder.module), "pixels": encoder.pixels.to_json()}


Prepared = tuple[int, Step, Tensor]
"""Number of a step, the step, and this process's share of its pixels."""


def _prepared(feed: Feed, load: Load, config: TrainConfig, here: Place, number: int) -> Prepared:
    step = feed(number)
    if len(step.rows) < here.world:
        raise ValueError(f"a step embeds {len(step.rows)} images in {here.world} processes; expected one for each.")
    own = np.array_split(np.arange(len(step.rows)), here.world)[here.rank]
    # A generator for each image: however many processes there are, it is mirrored and cropped alike.
    rngs = [np.random.default_rng([config.seed, number, int(position)]) for position in own]
    return number, step, _augment(load(step.rows[own]), config.augment, rngs)


def _augment(pixels: Tensor, how: str, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Mirrored and cropped copies of uint8 pixels [m, 3, height, width], with a generator for each."""
    if how == "none":
        return pixels
    from torchvision.transforms.v2 import functional

    out = []
    height, width = pixels.shape[-2:]
    for image, rng in zip(pixels, rngs, strict=True):
        if how == "crop":
            side = float(np.sqrt(rng.uniform(0.6, 1.0)))
            h, w = max(1, round(side * height)), max(1, round(side * width))
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            image = functional.resized_crop(image, top, left, h, w, [height, width], antialias=True)
        out.append(image.flip(-1) if rng.random() < 0.5 else image)
    return torch.stack(out)


class Log:
    """Metrics as JSON lines; of lines that are there already the first `start` are kept."""

    def __init__(self, file: Path, start: int) -> None:
        lines = file.read_text().splitlines()[:start] if file.exists() else []
        file.write_text("".join(line + "\n" for line in lines))
        self._file = file

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line."""
        with self._file.open("a") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
