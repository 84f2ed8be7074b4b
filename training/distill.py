"""The student: a ViT learns the teacher's soft judgments (Muttenthaler et al. 2025, equation 4).

For every triplet the teacher's probabilities over its three pairs are the target, the student's are the
softmax of its dot products divided by `temperature` (100 in the paper), and the loss is their divergence:
KL as in the paper, Jensen-Shannon as in the released code. Weights are pulled back to where they started
(decoupled decay: theta <- theta - lr * decay * (theta - theta_0), as in the released code).

Beyond the paper, and 0 by default: `regression`, the cosine distance between the teacher's vector and a
linear map of the student's, which teaches more per image where images are few.

A run is resumed exactly: steps are functions of (seed, step), and checkpoints hold weights, optimiser,
theta_0 and the step. Under torchrun each process embeds its share of a step's images; embeddings are
gathered, so the loss and its gradient are those of one process with the whole batch.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from tqdm import tqdm

from contract import triplets
from training.feeds import Feed

Loss = Literal["kl", "jsd"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Constants of one distillation.

    Attributes:
        loss: `kl` (paper) or `jsd` (released code).
        temperature: of the student; divides its dot products.
        teacher_temperature: divides the teacher's; 1 in the paper, the fitted one makes targets calibrated.
        steps: optimiser steps.
        learning_rate: peak of Adam, after `warmup` steps, then cosine to zero.
        decay: decoupled, towards the weights at the start.
        regression: weight of the cosine regression of the teacher's vectors.
        precision: `bf16` autocasts the encoder; the loss is always float32.
        checkpoint_every: steps.
        seed: of the regression head; the feed has its own.
    """

    loss: Loss
    temperature: float
    teacher_temperature: float
    steps: int
    learning_rate: float
    warmup: int
    decay: float
    regression: float
    precision: Literal["fp32", "bf16"]
    checkpoint_every: int
    seed: int


def divergence(similarities: Tensor, target: Tensor, *, loss: Loss, temperature: float) -> Tensor:
    """Mean divergence between target and student probabilities, in nats.

    Args:
        similarities: [t, 3] dot products of the student, order 01, 02, 12.
        target: [t, 3] log-probabilities of the teacher.
    """
    log_q = triplets.pair_log_probabilities(similarities, temperature)
    if loss == "kl":
        return (target.exp() * (target - log_q)).sum(-1).mean()
    middle = torch.logaddexp(target, log_q) - math.log(2)
    to_middle = target.exp() * (target - middle) + log_q.exp() * (log_q - middle)
    return to_middle.sum(-1).mean() / 2


def learning_rate(config: DistillConfig, step: int) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def decay_to_start(parameters: list[Tensor], start: list[Tensor], amount: float) -> None:
    """Pull weights back: theta <- theta - amount * (theta - theta_0), in place."""
    with torch.no_grad():
        for now, then in zip(parameters, start, strict=True):
            now.lerp_(then, amount)


def distill(
    student: nn.Module,
    load: Callable[[NDArray[np.int64]], Tensor],
    teacher: NDArray[np.float32],
    feed: Feed,
    config: DistillConfig,
    out: Path,
) -> nn.Module:
    """Train `student` in place, or go on with the checkpoint in `out`.

    Args:
        student: uint8 pixels [m, 3, height, width] to [m, d].
        load: rows of images to their pixels.
        teacher: [n, k] aligned vectors of all images, compared by dot product.
        feed: what each step embeds and judges.
        config: constants.
        out: folder for `checkpoint.pt` and `log.jsonl`.

    Raises:
        ValueError: the teacher's vectors are not finite, or the checkpoint is of another configuration.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    if not np.isfinite(teacher).all():
        raise ValueError(f"the teacher's vector of image {int((~np.isfinite(teacher)).any(1).argmax())} is not finite.")
    out.mkdir(parents=True, exist_ok=True)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(config.seed)
    trainer = _Trainer(student, torch.from_numpy(teacher), config)
    start = trainer.resume(out / "checkpoint.pt")
    log = _Log(out / "log.jsonl", start) if rank == 0 else None
    student.train()
    with tqdm(range(start, config.steps), initial=start, total=config.steps, unit="step", disable=rank > 0) as bar:
        for number in bar:
            began = time.perf_counter()
            step = feed(number)
            share = -(-len(step.rows) // ranks)
            pixels = load(step.rows[rank * share : (rank + 1) * share])
            metrics = trainer.step(number, pixels, step.rows, torch.from_numpy(step.index))
            if log is not None:
                log.write(number, metrics | {"images_per_second": len(step.rows) / (time.perf_counter() - began)})
                bar.set_postfix(loss=f"{metrics['divergence']:.4f}")
            done = number + 1
            if rank == 0 and (done % config.checkpoint_every == 0 or done == config.steps):
                trainer.save(out / "checkpoint.pt", done)
    return student.eval()


class _Trainer:
    """Weights, optimiser and the one step."""

    def __init__(self, student: nn.Module, teacher: Tensor, config: DistillConfig) -> None:
        self.config = config
        self.student = student
        self.teacher = teacher
        with torch.no_grad():
            self.head = nn.LazyLinear(teacher.shape[1])
        self.parameters: list[Tensor] = []
        self.optimiser: torch.optim.Adam | None = None
        self.start: list[Tensor] = []

    def _prepare(self, width: int) -> torch.optim.Adam:
        """Head, optimiser and theta_0, once the student's width is known."""
        if self.optimiser is None:
            self.head(torch.zeros(1, width))
            self.parameters = [*self.student.parameters(), *self.head.parameters()]
            # theta_0 is captured after the pretrained weights are loaded and before the first step.
            self.start = [p.detach().clone() for p in self.parameters]
            self.optimiser = torch.optim.Adam(self.parameters, lr=self.config.learning_rate, betas=(0.9, 0.999))
        return self.optimiser

    def step(self, number: int, pixels: Tensor, rows: NDArray[np.int64], index: Tensor) -> dict[str, float]:
        """One optimiser step on this process's share of the images.

        Args:
            pixels: this process's images, [m / ranks, 3, height, width].
            rows: [m] rows of ALL images of the step, in the order of the ranks.
            index: [t, 3] triplets as positions among all m.
        """
        config = self.config
        bf16 = config.precision == "bf16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            z = self.student(pixels)
        z = z.float()  # [m / ranks, d]
        optimiser = self._prepare(z.shape[1])
        if dist.is_initialized():
            # The last rank may have fewer images; all send as many rows as the first.
            share = -(-len(rows) // dist.get_world_size())
            padded = nn.functional.pad(z, (0, 0, 0, share - len(z)))
            z = torch.cat(all_gather(padded))[: len(rows)]  # type: ignore[no-untyped-call]  # [m, d]
        vectors = self.teacher[torch.from_numpy(rows)]  # [m, k]
        theirs, ours = (triplets.similarities_at(x @ x.T, index) for x in (vectors, z))  # [t, 3]
        target = triplets.pair_log_probabilities(theirs, config.teacher_temperature)
        loss = divergence(ours, target, loss=config.loss, temperature=config.temperature)
        metrics = {"divergence": loss.item()}
        if config.regression:
            distance = 1 - nn.functional.cosine_similarity(self.head(z), vectors).mean()
            metrics["regression"] = distance.item()
            loss = loss + config.regression * distance
        if not math.isfinite(sum(metrics.values())):
            raise FloatingPointError(f"step {number}: the loss is {metrics}; lower the learning rate.")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized():
            self._average_gradients()
        rate = learning_rate(config, number)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        decay_to_start(self.parameters, self.start, rate * config.decay)
        return metrics | {"learning_rate": rate}

    def _average_gradients(self) -> None:
        """Mean over processes: each computed the loss of the whole batch, so the sum would count it `ranks` times."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def save(self, file: Path, step: int) -> None:
        """Write a checkpoint, whole or not at all."""
        assert self.optimiser is not None
        state = {
            "step": step,
            "config": vars(self.config),
            "student": self.student.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "start": self.start,
        }
        temporary = file.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(file)

    def resume(self, file: Path) -> int:
        """Load a checkpoint if there is one; the step to go on with."""
        if not file.exists():
            return 0
        state: dict[str, Any] = torch.load(file, weights_only=True)
        if state["config"] != vars(self.config):
            raise ValueError(
                f"{file} is of another configuration: {state['config']}; remove it or choose another folder."
            )
        self.student.load_state_dict(state["student"])
        optimiser = self._prepare(state["head"]["weight"].shape[1])
        self.head.load_state_dict(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        self.start = state["start"]
        return int(state["step"])


class _Log:
    """Metrics as JSON lines; lines after the checkpoint that a run resumes from are cut off."""

    def __init__(self, file: Path, start: int) -> None:
        lines = file.read_text().splitlines()[:start] if file.exists() else []
        file.write_text("".join(line + "\n" for line in lines))
        self._file = file

    def write(self, step: int, metrics: dict[str, float]) -> None:
        with self._file.open("a") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
