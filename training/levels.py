"""What every stage of a network sees, beside its own feature point.

A network's last features say what a photo shows, its earlier ones how it looks, and people who compare photos use
both (Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric"). The output `levels`
is the own feature point and, after it, the mean over space of each stage's output, first stage first, as they are.
"""

from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from training.encoders import Encoder


class HasLevels(Protocol):
    """An encoder's module that can say what its stages see."""

    def forward_levels(self, pixels: Tensor) -> list[Tensor]:
        """uint8 [n, 3, height, width] to the own features [n, size] and the mean [n, width] of each stage's output."""
        ...


class Levels(nn.Module):
    """The own features and the levels of a module, side by side.

    Attributes:
        sizes: of the parts, own features first.
    """

    def __init__(self, module: nn.Module, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        self.sizes = sizes

    @property
    def backbone(self) -> nn.Module:
        """The network as its library knows it."""
        return cast(nn.Module, self.module.backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, sum of sizes]."""
        module: Any = self.module
        return torch.cat(cast(HasLevels, module).forward_levels(pixels), 1)


def with_levels(encoder: Encoder) -> Encoder:
    """The encoder whose output is `levels`. Raises ValueError: a network whose stages cannot be read."""
    module: Any = encoder.module
    if not hasattr(module, "forward_levels"):
        raise ValueError(f"{encoder.base_model.name} does not say what its stages see; timm's networks do.")
    with torch.inference_mode():
        parts = cast(HasLevels, module).forward_levels(torch.zeros(1, *encoder.pixels.shape, dtype=torch.uint8))
    out = Levels(encoder.module, tuple(part.shape[1] for part in parts)).eval().requires_grad_(False)
    return replace(encoder, module=out, size=sum(out.sizes), output="levels")
