"""A student's embedding as a linear readout of its last blocks, which starts where least squares puts it.

Few photos bend a pretrained network's features before a head that starts at random has learned anything (Kumar et
al. 2022, "Fine-tuning can distort pretrained features"). So the head comes first, in closed form: a ridge
regression of the teacher's vectors on what the last blocks already say, the class token and the mean patch of each
(the features of DINOv2's linear evaluation, Oquab et al. 2024). Distillation then trains blocks and head together,
and the head's output is the embedding: it is what is judged, exported and served.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contract.files import whole
from training.encoders import Encoder, Normalized
from training.processes import place


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """What the embedding is read from.

    Attributes:
        blocks: last transformer blocks whose class token and mean patch are read.
        penalty: of the ridge regression, on features of variance 1.
        dropout: share of the features that distillation hides from the readout.
    """

    blocks: int = 4
    penalty: float = 1.0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.blocks < 1 or not self.penalty > 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"{self}; expected blocks of at least 1, a penalty above 0, a dropout from 0 to below 1.")


class BlockFeatures(Normalized):
    """Class token and mean patch of the last blocks of a timm ViT, each after the final norm, side by side.

    Raises:
        ValueError: the backbone is no ViT of timm with a class token, or has fewer blocks.
    """

    def __init__(self, normalized: nn.Module, encoder: Encoder, blocks: int) -> None:
        backbone: Any = getattr(normalized, "backbone", None)
        depth = len(getattr(backbone, "blocks", ()))
        if getattr(backbone, "cls_token", None) is None or not hasattr(backbone, "forward_intermediates"):
            raise ValueError(
                f"{encoder.base_model.name} is no ViT of timm with a class token; it has no block features."
            )
        if blocks > depth:
            raise ValueError(f"{encoder.base_model.name} has {depth} blocks; {blocks} of them cannot be read.")
        super().__init__(backbone, encoder.pixels)
        self.blocks = blocks

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, blocks * 2 * width]."""
        backbone: Any = self.backbone
        read = backbone.forward_intermediates(
            self.normalized(pixels),
            indices=self.blocks,
            norm=True,
            output_fmt="NLC",
            return_prefix_tokens=True,
            intermediates_only=True,
        )
        return torch.cat([x for patches, prefix in read for x in (prefix[:, 0], patches.mean(1))], 1)


class Readout(nn.Module):
    """Block features, standardised as they were before training, and the linear map that gives the embedding."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: BlockFeatures, size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(size, width)

    @property
    def backbone(self) -> nn.Module:
        """The network as its library knows it."""
        return self.features.backbone

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, width], float32."""
        features = self.features(pixels).float()
        with torch.autocast(pixels.device.type, enabled=False):
            out: Tensor = self.readout(self.dropout((features - self.mean) / self.std))
        return out

    def own_state(self) -> dict[str, Tensor]:
        """State dict without the backbone's."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("features.")}


def block_features(encoder: Encoder, blocks: int) -> Encoder:
    """The encoder whose output is the features of its last blocks. Raises ValueError, see `BlockFeatures`."""
    module = BlockFeatures(encoder.module, encoder, blocks).eval().requires_grad_(False)
    size = blocks * 2 * int(module.backbone.embed_dim)  # type: ignore[arg-type]
    return replace(encoder, module=module, size=size, output=None)


def with_readout(features: Encoder, width: int, *, dropout: float = 0.0) -> Encoder:
    """An encoder of `width` values on block features; its readout is yet to be fitted or loaded."""
    assert isinstance(features.module, BlockFeatures)
    module = Readout(features.module, features.size, width, dropout).eval().requires_grad_(False)
    return replace(features, module=module, size=width)


def fit_readout(encoder: Encoder, features: NDArray[np.float32], vectors: NDArray[np.float32], penalty: float) -> None:
    """Put the ridge regression of `vectors` on standardised `features` into the encoder's readout.

    Args:
        encoder: of `with_readout`.
        features: [n, p] block features of the photos that training may see.
        vectors: [n, k] that the embedding is to be.
        penalty: on the squared weights, a photo; features have variance 1.

    Raises:
        ValueError: features or vectors that are not finite, or of other shapes.
    """
    module = encoder.module
    assert isinstance(module, Readout)
    expected = (len(features), module.readout.in_features), (len(features), module.readout.out_features)
    if (features.shape, vectors.shape) != expected:
        raise ValueError(f"features {features.shape} and vectors {vectors.shape}; expected {expected}.")
    if not (np.isfinite(features).all() and np.isfinite(vectors).all()):
        raise ValueError("features or vectors for the readout are not finite.")
    x, y = features.astype(np.float64), vectors.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    weights = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(0)) / len(x))
    arrays = {"mean": mean, "std": std, "readout.weight": weights.T, "readout.bias": y.mean(0)}
    _load(module, {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()})


def start_readout(
    encoder: Encoder, features: NDArray[np.float32], vectors: NDArray[np.float32], penalty: float, file: Path
) -> None:
    """Fit the readout once, by one process, and read it: another fit, on other threads, differs in its last bits.

    Args:
        encoder, features, vectors, penalty: see `fit_readout`.
        file: where the fit is kept.
    """
    assert isinstance(encoder.module, Readout)
    here = place()
    if here.rank == 0 and not file.exists():
        fit_readout(encoder, features, vectors, penalty)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_readout(encoder.module, file)
    here.wait()
    read_readout(encoder.module, file)


def readout_like(encoder: Encoder, file: Path) -> Encoder:
    """The encoder with a readout as wide as the one in `file`, which is yet to be loaded."""
    width, size = load_file(file)["readout.weight"].shape
    features = block_features(encoder, 1)
    blocks, rest = divmod(size, features.size)
    if rest:
        raise ValueError(f"{file} reads {size} features; {encoder.base_model.name} has {features.size} a block.")
    return with_readout(block_features(encoder, blocks), width)


def read_out(features: NDArray[np.float32], file: Path) -> NDArray[np.float32]:
    """Embeddings [n, k] that the readout in `file` gives of block features [n, p], without dropout."""
    state = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    standard = (features - state["mean"]) / state["std"]
    out: NDArray[np.float32] = standard @ state["readout.weight"].T + state["readout.bias"]
    return out


def write_readout(module: Readout, file: Path) -> None:
    """Write a readout without its backbone, whole or not at all."""
    with whole(file) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in module.own_state().items()}))


def read_readout(module: Readout, file: Path) -> None:
    """Load what `write_readout` wrote. Raises ValueError naming the file where it does not fit."""
    state = load_file(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.own_state().items()}
    if (given := {name: tuple(tensor.shape) for name, tensor in state.items()}) != shapes:
        raise ValueError(f"{file} holds {given}; expected {shapes}.")
    _load(module, state)


def _load(module: Readout, state: dict[str, Tensor]) -> None:
    module.load_state_dict(state, strict=False)
