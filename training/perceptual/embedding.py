"""What is aligned: one backbone or several side by side, their own embedding or class token and mean patch, a head.

Branches are concatenated as they are by default, as DreamSim does (DINO, CLIP and OpenCLIP): a branch with large
vectors then weighs more. `unit` gives every branch the same weight.

`levels` puts what a network's stages see beside its own embedding. How much each counts is learned: one number a level
holds for kinds of difference that training has not seen, where a head of a million weights learns the kinds by heart.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contract.files import whole
from contract.manifest import BaseModel
from training.encoders import Encoder
from training.levels import Levels, with_levels
from training.readout import block_features
from training.stage import write_json

HEAD = "mlp_head.safetensors"
SHAPE = "embedding.json"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How an embedding is put together.

    Attributes:
        branches: names for `training.models.build`, in the order of their values.
        side: of the square input in pixels; the models' own if None.
        output: `own` is each model's feature point; `cls_patch` the class token and the mean patch, after the final
            norm, side by side (the patch-level objective); `levels` the own features and, weighed against them, the
            mean of each stage's output (one frozen branch with a head).
        normalise: of each branch before they are put side by side: `none`, or to `unit` length.
        hidden: width of the hidden layer of a residual head on frozen branches; None trains the branches themselves.
    """

    branches: tuple[str, ...]
    side: int | None = None
    output: Literal["own", "cls_patch", "levels"] = "own"
    normalise: Literal["none", "unit"] = "none"
    hidden: int | None = None

    def __post_init__(self) -> None:
        if not self.branches or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"branches {self.branches}, hidden {self.hidden}; expected at least one, and 1 or more.")
        if self.output == "levels" and (len(self.branches) > 1 or self.hidden is None):
            raise ValueError("levels are weighed by a head on one frozen branch; give one branch, and hidden.")

    @property
    def start(self) -> Self:
        """What an alignment is compared with: levels are no part of a network's own embedding."""
        return replace(self, output="own", hidden=None) if self.output == "levels" else self


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Weights that an alignment starts from.

    Attributes:
        pretrained: False where they were drawn at random.
        seed: of what was drawn: random weights, and the head's first layer.
    """

    pretrained: bool = True
    seed: int = 0


class Ensemble(nn.Module):
    """Embeddings of several backbones side by side."""

    def __init__(self, branches: Sequence[nn.Module], normalise: Literal["none", "unit"]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.normalise = normalise

    @property
    def backbone(self) -> nn.Module:
        """The networks as their libraries know them; names begin with the number of the branch."""
        return nn.ModuleList([_backbone(branch) for branch in self.branches])

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, sum of sizes]."""
        out: list[Tensor] = [branch(pixels).float() for branch in self.branches]
        if self.normalise == "unit":
            out = [nn.functional.normalize(z, dim=1) for z in out]
        return torch.cat(out, 1)


class Balance(nn.Module):
    """Own features and levels, each of unit length, the levels standardised first and weighed.

    All weights start at one: what there is to see counts as much as the network's own embedding. That alone is worth
    much of what training gives, so a run reports it too, as `untrained`.

    Args:
        sizes: of the parts, own features first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.register_buffer("mean", torch.zeros(sum(self.sizes[1:])))
        self.register_buffer("std", torch.ones(sum(self.sizes[1:])))
        self.log_weight = nn.Parameter(torch.zeros(len(self.sizes) - 1))

    def fit(self, features: Tensor) -> None:
        """Take mean and deviation of the levels from features [n, sum of sizes] of training images."""
        levels = features[:, self.sizes[0] :].double()
        self.mean.copy_(levels.mean(0))
        # A feature that never changes says nothing, whatever it is divided by.
        self.std.copy_(levels.std(0, correction=0).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """[n, sum of sizes] to the same, balanced."""
        own, levels = x[:, : self.sizes[0]], (x[:, self.sizes[0] :] - self.mean) / self.std
        parts = [nn.functional.normalize(own, dim=1)]
        for weight, level in zip(self.log_weight.exp(), torch.split(levels, list(self.sizes[1:]), 1), strict=True):
            parts.append(weight * nn.functional.normalize(level, dim=1))
        return torch.cat(parts, 1)


class Headed(nn.Module):
    """A frozen network, always in eval mode, and a residual head z + W2 relu(W1 z + b1) + b2, which alone is trained.

    W2 and b2 start at zero, so the embedding starts as the network's own, or as that of balanced levels.
    """

    def __init__(self, inner: nn.Module, size: int, hidden: int) -> None:
        super().__init__()
        self.inner = inner
        self.balance = Balance(inner.sizes) if isinstance(inner, Levels) else None
        self.mlp_head = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        for parameter in self.mlp_head[2].parameters():
            nn.init.zeros_(parameter)

    @property
    def backbone(self) -> nn.Module:
        """The network as its library knows it."""
        return _backbone(self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [n, 3, height, width], or features [n, size] of the network that are there already, to [n, size]."""
        z = (self.inner(x) if x.ndim == 4 else x).float()
        with torch.autocast(z.device.type, enabled=False):
            if self.balance is not None:
                z = self.balance(z)
            out: Tensor = z + self.mlp_head(z)
        return out

    def train(self, mode: bool = True) -> Self:
        """The head alone has a training mode: statistics of the frozen network stay."""
        super().train(mode)
        self.inner.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """The head alone can be trained."""
        super().requires_grad_(False)
        self.mlp_head.requires_grad_(requires_grad)
        if self.balance is not None:
            self.balance.requires_grad_(requires_grad)
        return self

    def own_state(self) -> dict[str, Tensor]:
        """State dict without the network's: the head's names, and `balance.` before those of the levels."""
        balance = {} if self.balance is None else self.balance.state_dict(prefix="balance.")
        return {**self.mlp_head.state_dict(), **balance}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` gives. Raises RuntimeError where it does not fit."""
        own = self.own_state()
        if set(state) != set(own):
            raise RuntimeError(f"it has {sorted(state)}; expected {sorted(own)}.")
        self.load_state_dict(
            {name if name.startswith("balance.") else f"mlp_head.{name}": tensor for name, tensor in state.items()},
            strict=False,
        )


def shaped(branches: Sequence[Encoder], shape: Shape, *, seed: int = 0) -> Encoder:
    """The encoder of a shape from the encoders of its branches.

    Args:
        branches: in the shape's order.
        shape: how they are put together.
        seed: of the head's first layer.

    Raises:
        ValueError: other branches than the shape's, a branch that wants its pixels otherwise than the first, or one
            without patches where they are asked for.
    """
    if len(branches) != len(shape.branches):
        raise ValueError(
            f"{len(branches)} branches for a shape of {len(shape.branches)}: {', '.join(shape.branches)}. An ensemble "
            "is read with training.perceptual.run.read_embedding."
        )
    read = {"own": lambda branch: branch, "cls_patch": lambda branch: block_features(branch, 1), "levels": with_levels}
    parts = [read[shape.output](branch) for branch in branches]
    out = parts[0] if len(parts) == 1 else _ensemble(parts, shape)
    if len(parts) == 1 and shape.normalise == "unit" and shape.hidden is None:
        raise ValueError("one branch has nothing to be normalised against; cosine distance needs no unit length.")
    if shape.hidden is None:
        return out
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return replace(out, module=Headed(out.module, out.size, shape.hidden).eval().requires_grad_(False))


def _ensemble(parts: Sequence[Encoder], shape: Shape) -> Encoder:
    # Mean and std are applied inside each branch; what is read from the file must be the same for all.
    framing = [replace(part.pixels, mean=(0.0,) * 3, std=(1.0,) * 3, value_range=(0.0, 1.0)) for part in parts]
    for name, one in zip(shape.branches, framing, strict=True):
        if one != framing[0]:
            raise ValueError(
                f"{name} wants its pixels as {one}, {shape.branches[0]} as {framing[0]}; branches see the same pixels. "
                "Give a side where sizes differ, squash where framings do, or leave the branch out."
            )
    bases = [part.base_model for part in parts]
    base = BaseModel(
        name=" + ".join(base.name for base in bases),
        source="; ".join(base.source for base in bases),
        license="; ".join(dict.fromkeys(base.license for base in bases)),
    )
    module = Ensemble([part.module for part in parts], shape.normalise).eval().requires_grad_(False)
    return Encoder(module, parts[0].pixels, sum(part.size for part in parts), base)


def write_shape(shape: Shape, file: Path, origin: Origin | None = None) -> None:
    """Write a shape, so that the weights beside it can be read as what they are, and what they started from."""
    write_json(file, asdict(shape) | ({} if origin is None else {"origin": asdict(origin)}))


def read_shape(file: Path) -> Shape:
    """The shape that `write_shape` wrote."""
    stored = json.loads(file.read_text())
    stored.pop("origin", None)
    return Shape(**(stored | {"branches": tuple(stored["branches"])}))


def read_origin(file: Path) -> Origin:
    """The origin that `write_shape` wrote; pretrained weights where it wrote none, as runs of before did."""
    return Origin(**json.loads(file.read_text()).get("origin", {}))


def write_head(module: Headed, file: Path) -> None:
    """Write the head without its network, whole or not at all."""
    with whole(file) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in module.own_state().items()}))


def read_head(module: Headed, file: Path) -> None:
    """Load what `write_head` wrote. Raises ValueError naming the file where it does not fit."""
    try:
        module.load_own_state(load_file(file))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file} is no head for this network: {error}") from error


def _backbone(module: nn.Module) -> nn.Module:
    inner = getattr(module, "backbone", module)
    assert isinstance(inner, nn.Module)
    return inner
