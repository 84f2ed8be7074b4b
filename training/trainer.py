"""One optimiser step of a training, in one process or many, and its checkpoints.

What is learned is an objective: a function of a step and its embeddings. Distillation has its own here, perceptual
alignment in `training.perceptual.objective`.

Under torchrun every process embeds its share of a step's images; embeddings are gathered, every process computes
the loss of the whole batch, and gradients flow through its own share alone. DDP and FSDP average gradients over
processes, so the loss is multiplied by their number: the step is that of one process with the whole batch.

Dropout is the exception: what is dropped is drawn for each process and part, so with dropout neither the number of
processes nor `microbatch` leaves the step as it was, only its distribution.

`microbatch` bounds memory without changing the step, although the loss couples all images: embeddings are computed
first without a graph, then each part again with one, fed with the gradient of the loss at its embeddings (gradient
caching, Gao et al. 2021). It costs one more forward pass.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from contract import triplets
from contract.files import whole
from training.encoders import Encoder
from training.feeds import Step
from training.probing import local_loss
from training.processes import place, require_device
from training.student_model import Adaptation, StudentModel, transformer_blocks

Loss = Literal["kl", "jsd", "hard"]
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Constants of an optimiser and its steps, whatever is learned. Defaults are those of AligNet's released code.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak of Adam, after `warmup` steps, then as `schedule` says.
        decay: decoupled weight decay, theta <- theta - rate * decay * (theta - theta_0).
        decay_to: what theta_0 is: the weights at the start, or zero (a student from scratch).
        head_rate: peak learning rate of the heads (a regression's linear map, and the embedding's own readout where
            it has one), which are not pulled back; it is scheduled as the rate of the rest.
        adaptation: which weights are trained, and the heads.
        augment: `flip` mirrors half of the images, `crop` also cuts out 60 to 100 % of the area; none in the paper.
        precision: `bf16` autocasts the encoder; heads and loss are always float32.
        microbatch: images of one process held in memory at once; None for its whole share.
        parallel: how many processes share the model: `ddp` copies it, `fsdp` shards it.
        checkpoint_every: steps.
        seed: of heads, adapters, dropout and augmentation; the feed has its own.
    """

    steps: int = 100_000
    learning_rate: float = 3e-5
    warmup: int = 5_000
    decay: float = 1.0
    decay_to: Literal["start", "zero"] = "start"
    head_rate: float = 1e-3
    adaptation: Adaptation = field(default_factory=Adaptation)
    augment: Literal["none", "flip", "crop"] = "none"
    precision: Literal["fp32", "bf16"] = "bf16"
    microbatch: int | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_positive("learning_rate", "steps", "checkpoint_every")
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"microbatch is {self.microbatch}; expected 1 or more, or none.")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0.")

    @property
    def schedule(self) -> Literal["cosine", "constant"]:
        """Of the learning rate after the warm-up."""
        return "cosine"

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam."""
        return 0.9, 0.999


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Constants of one distillation. Defaults are those of the released code, the loss is the paper's.

    Attributes:
        loss: `kl` (paper), `jsd` (released code), or `hard`, cross-entropy of the teacher's most similar pair.
        temperature: of the student; divides its dot products.
        teacher_temperature: divides the teacher's; 1 in the paper.
        regression: weight of the cosine regression of the teacher's vectors; 0 for none, as in the paper.
        regress: what is to point where the teacher's vector points: a `linear` map of the embedding, which is no part
            of it, or the `embedding` itself, which is then as long as the teacher's vector.
        neighbours: weight of the neighbours that a photo has in the teacher, kept among the photos of a step as gLocal
            keeps them (`training.probing.local_loss`); 0 for none, as in the paper.
        neighbour_tau: temperature of their cosines.
    """

    loss: Loss = "kl"
    temperature: float = 100.0
    teacher_temperature: float = 1.0
    regression: float = 0.0
    regress: Literal["linear", "embedding"] = "linear"
    neighbours: float = 0.0
    neighbour_tau: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("temperature", "teacher_temperature", "neighbour_tau")
        if self.regress == "embedding" and self.adaptation.triplet_head is not None:
            raise ValueError("the embedding is regressed, but a triplet head is judged; choose one of them.")


def divergence(similarities: Tensor, target: Tensor, *, loss: Loss, temperature: float) -> Tensor:
    """Mean divergence between target and student probabilities, in nats.

    Args:
        similarities: [t, 3] dot products of the student, order 01, 02, 12.
        target: [t, 3] log-probabilities of the teacher.
        loss: which divergence; `hard` is the cross-entropy of the target's most likely pair.
        temperature: divides the similarities.
    """
    log_q = triplets.pair_log_probabilities(similarities, temperature)
    if loss == "hard":
        return nn.functional.nll_loss(log_q, target.argmax(-1))
    if loss == "kl":
        return (target.exp() * (target - log_q)).sum(-1).mean()
    middle = torch.logaddexp(target, log_q) - math.log(2)
    to_middle = target.exp() * (target - middle) + log_q.exp() * (log_q - middle)
    return to_middle.sum(-1).mean() / 2


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine to zero at the last step, or constant."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def decay_towards(parameters: list[Tensor], start: list[Tensor], amount: float) -> None:
    """Pull weights back: theta <- theta - amount * (theta - theta_0), in place."""
    with torch.no_grad():
        for now, then in zip(parameters, start, strict=True):
            now.lerp_(then, amount)


Objective = Callable[[Step, list[Tensor]], tuple[Tensor, dict[str, float]]]
"""A step and its embeddings, [judged vectors [m, k]] or [judged, regressed [m, p]], to the loss and figures to log."""


@dataclass(frozen=True)
class Distillation:
    """The objective of a distillation: the divergence from the teacher's judgments, and the regression.

    Attributes:
        config: constants.
        teacher: [n, k] vectors of all images, compared by dot product; None if every step brings similarities.
        targets: [n, p] vectors that the regression predicts; None for no regression.
    """

    config: DistillConfig
    teacher: Tensor | None
    targets: Tensor | None

    def head(self, encoder: Encoder) -> int | None:
        """Width of the linear map that the regression needs; None where it needs none.

        Raises:
            ValueError: the embedding itself is regressed and is not as long as the vectors.
        """
        width = None if self.targets is None else int(self.targets.shape[1])
        if self.config.regress == "linear":
            return width
        if width not in (None, encoder.size):
            raise ValueError(
                f"the embedding has {encoder.size} values, the vectors to regress {width}; they must agree."
            )
        return None

    def __call__(self, step: Step, embedded: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        z, config, rows = embedded[0], self.config, torch.from_numpy(step.rows)
        index = torch.from_numpy(step.index).to(z.device)
        ours = triplets.similarities_at(z @ z.T, index)
        if step.similarities is not None:
            theirs = torch.from_numpy(step.similarities).to(z.device)
        else:
            assert self.teacher is not None
            vectors = self.teacher[rows].to(z.device)  # [m, k]
            theirs = triplets.similarities_at(vectors @ vectors.T, index)  # [t, 3]
        target = triplets.pair_log_probabilities(theirs, config.teacher_temperature)
        loss = divergence(ours, target, loss=config.loss, temperature=config.temperature)
        metrics = {"divergence": loss.item()}
        if self.targets is not None:
            targets = self.targets[rows].to(z.device)
            distance = 1 - nn.functional.cosine_similarity(embedded[-1], targets).mean()
            metrics["regression"] = distance.item()
            loss = loss + config.regression * distance
        if config.neighbours:
            if self.teacher is None:
                raise ValueError("neighbours need the teacher's vectors; labelled triplets hold similarities only.")
            nearby = local_loss(self.teacher[rows].to(z.device), z, config.neighbour_tau)
            metrics["neighbours"] = nearby.item()
            loss = loss + config.neighbours * nearby
        return loss, metrics


class Trainer:
    """Weights, optimiser and the one step.

    Args:
        encoder: the student with its starting weights; a copy is trained.
        objective: what is learned.
        config: constants.
        device: where to compute.
        regressed: width of a linear head beside the embedding, for the objective; None for no such head.

    Raises:
        ValueError: a microbatch or several processes for a model with batch normalisation, whose step would change
            with them.
    """

    def __init__(
        self, encoder: Encoder, objective: Objective, config: TrainConfig, device: str, *, regressed: int | None = None
    ) -> None:
        self.config, self.objective = config, objective
        require_device(device)
        self.device = torch.device(device)
        model = StudentModel(encoder, regressed, config.adaptation, seed=config.seed)
        if (config.microbatch or place().world > 1) and _has_batch_norm(model):
            raise ValueError(
                "microbatch and several processes change what batch normalisation sees; train this model in one "
                "process and without microbatch."
            )
        # theta_0: after the pretrained weights are loaded and before the first step; on the CPU, whole.
        self.start = copy.deepcopy(model)
        self.model, self.between = _distribute(model.to(self.device).train(), config.parallel, self.device)
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for name, p in trained if not _of_head(name)]
        heads = [p for name, p in trained if _of_head(name)]
        pairs = ((self.parameters, config.learning_rate), (heads, config.head_rate))
        groups = [{"params": params} for params, _ in pairs if params]
        self.peaks = [peak for params, peak in pairs if params]
        self.optimiser = torch.optim.Adam(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.anchor = self._anchor()
        self.rank, self.ranks = place().rank, place().world

    def _anchor(self) -> list[Tensor]:
        """theta_0 of every weight that is pulled back, as this process holds it."""
        zero = self.config.decay_to == "zero"
        return [torch.zeros_like(p) if zero else p.detach().clone() for p in self.parameters]

    def step(self, number: int, pixels: Tensor, step: Step) -> dict[str, float]:
        """One optimiser step.

        Args:
            number: of the step.
            pixels: this process's share of the images, uint8 [m / ranks, 3, height, width].
            step: all images and triplets of the step.

        Raises:
            FloatingPointError: the loss is not finite; the message names the step.
        """
        # All processes split into as many parts as the largest share needs: sharded passes must keep in step.
        largest = -(-len(step.rows) // self.ranks)
        parts = pixels.tensor_split(-(-largest // (self.config.microbatch or largest)))
        with torch.set_grad_enabled(len(parts) == 1):
            embedded = [self._embed(number, i, part) for i, part in enumerate(parts)]
        mine = [torch.cat(columns) for columns in zip(*embedded, strict=True)]
        if len(parts) > 1:
            mine = [x.requires_grad_() for x in mine]
        loss, metrics = self.objective(step, [self._gather(x, len(step.rows)) for x in mine])
        if not math.isfinite(sum(metrics.values())):
            raise FloatingPointError(f"step {number}: the loss is {metrics}; lower the learning rate.")
        self.optimiser.zero_grad()
        (loss * self.ranks).backward()  # type: ignore[no-untyped-call]
        if len(parts) > 1:
            self._backward(number, parts, [x.grad for x in mine])
        rate = learning_rate(self.config, number)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = rate * peak / self.config.learning_rate
        decay_towards(self.parameters, self.anchor, rate * self.config.decay)  # of theta as it was before the step
        self.optimiser.step()
        return metrics | {"learning_rate": rate}

    def _embed(self, number: int, part: int, pixels: Tensor) -> list[Tensor]:
        # Dropout draws the same in both passes over a part, and after a resume.
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, number, self.rank, part]).generate_state(1)[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            out: list[Tensor] = self.model(pixels.to(self.device, non_blocking=True))
        return out

    def _backward(self, number: int, parts: tuple[Tensor, ...], gradients: list[Tensor | None]) -> None:
        """Second pass: each part with a graph, fed with the gradient at its embeddings."""
        start = 0
        for i, part in enumerate(parts):
            with self.between() if i < len(parts) - 1 else contextlib.nullcontext():
                out = self._embed(number, i, part)
                torch.autograd.backward(out, [g[start : start + len(part)] for g in gradients if g is not None])
            start += len(part)

    def _gather(self, mine: Tensor, total: int) -> Tensor:
        """Rows [total, k] of all processes, in their order; only this process's own carry a graph."""
        if self.ranks == 1:
            return mine
        sizes = [len(part) for part in np.array_split(np.arange(total), self.ranks)]
        padded = nn.functional.pad(mine.detach(), (0, 0, 0, sizes[0] - len(mine)))
        rows = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(rows, padded)
        return torch.cat(
            [mine if i == self.rank else x[:size] for i, (x, size) in enumerate(zip(rows, sizes, strict=True))]
        )

    def embed(self, rows: NDArray[np.int64], load: Callable[[NDArray[np.int64]], Tensor], batch: int) -> Tensor:
        """Judged vectors [m, k] of images by the model as it is now, on the CPU; every process must call it.

        Args:
            rows: [m] of the images.
            load: rows to pixels; each process reads its share.
            batch: images of all processes at once.
        """
        self.model.eval()
        out = []
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            filled = np.resize(part, max(len(part), self.ranks))  # none of the processes stays without an image
            own = np.array_split(filled, self.ranks)[self.rank]
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"),
            ):
                mine = self.model(load(own).to(self.device, non_blocking=True))[0]
            out.append(self._gather(mine, len(filled))[: len(part)].cpu())
        self.model.train()
        return torch.cat(out)

    def save(self, file: Path, step: int) -> None:
        """Write a checkpoint, whole or not at all; every process must call it.

        Raises:
            FloatingPointError: a weight is not finite; an earlier checkpoint stays as it is.
        """
        for name, weights in self.model.named_parameters():
            own = weights.to_local() if isinstance(weights, DTensor) else weights  # of sharded weights this rank's part
            if not bool(torch.isfinite(own.detach()).all()):
                raise FloatingPointError(f"after {step} steps {name} is not finite; lower the learning rate.")
        model, optimiser = get_state_dict(self.model, self.optimiser, options=FULL)
        if self.rank == 0:
            state = {"step": step, "model": model, "optimiser": optimiser}
            with whole(file) as stream:
                torch.save(state | {"start": self.start.state_dict()}, stream)

    def resume(self, file: Path) -> int:
        """Load a checkpoint if there is one; the step to go on with."""
        if not file.exists():
            return 0
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        self.start.load_state_dict(state["start"])
        set_model_state_dict(self.model, state["start"], options=FULL)
        self.anchor = self._anchor()
        set_state_dict(
            self.model,
            self.optimiser,
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
            options=FULL,
        )
        return int(state["step"])

    def write(self, folder: Path) -> None:
        """The trained weights, adapters merged; every process must call it."""
        state: Any = get_model_state_dict(self.model, options=FULL)
        if self.rank == 0:
            self.start.write(state, folder)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _of_head(name: str) -> bool:
    return any(part in name for part in ("regression_head.", ".readout.", ".mlp_head."))


def _distribute(
    model: nn.Module, how: Literal["ddp", "fsdp"], device: torch.device
) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]:
    """The model under torch's own engine, and the context in which gradients are not yet exchanged."""
    if not dist.is_initialized():
        return model, contextlib.nullcontext
    if how == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        copied = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        return copied, copied.no_sync
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    found = transformer_blocks(model)
    for block in () if found is None else found[1].children():
        fully_shard(block, mesh=mesh)
    sharded: Any = fully_shard(model, mesh=mesh)

    @contextlib.contextmanager
    def between() -> Any:
        sharded.set_requires_gradient_sync(False)
        yield
        sharded.set_requires_gradient_sync(True)

    return sharded, between
