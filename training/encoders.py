"""Frozen backbones: pixels in, the representation that a transform is learned on out."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contract.manifest import BaseModel
from contract.pixels import PixelSpec


@dataclass(frozen=True)
class Encoder:
    """A backbone and all that using it needs.

    Attributes:
        module: uint8 pixels [n, 3, height, width] to features [n, size]; normalises inside, in eval mode.
        pixels: how the module wants its images.
        size: length of a feature vector.
        base_model: origin and licence of the weights.
        output: feature point that the module gives, where its backbone has several; see `training.timm_models`.
    """

    module: nn.Module
    pixels: PixelSpec
    size: int
    base_model: BaseModel
    output: str | None = None


class Normalized(nn.Module):
    """A backbone behind the pixel normalisation of its spec; subclasses say which features they take.

    The backbone's own module names stay reachable under `backbone.`, for LoRA and for checkpoints; mean and std
    are no part of a state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, pixels: PixelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        low, high = pixels.value_range
        scale = 255 / (high - low)
        for name, values, shift in (("mean", pixels.mean, low), ("std", pixels.std, 0.0)):
            channels = torch.tensor([value - shift for value in values]).view(3, 1, 1) * scale
            self.register_buffer(name, channels, persistent=False)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to float32, mean subtracted, divided by std."""
        return (pixels.float() - self.mean) / self.std


def features_of(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Features [n, size] of uint8 pixels, without gradients."""
    with torch.inference_mode():
        out: Tensor = encoder.module(pixels.contiguous(memory_format=torch.channels_last))
    return out


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names, types, shapes and values of everything in the state dict, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
