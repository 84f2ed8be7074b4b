"""What every block of a vision transformer sees: the mean of its spatial tokens, all blocks side by side."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training.encoders import Encoder
from training.student_model import transformer_blocks


class LayerMeans(nn.Module):
    """Mean spatial token of each block's output, before any norm that follows (Muttenthaler et al. 2025, by layer).

    Args:
        module: an encoder's module, of timm or open_clip; uint8 pixels in.

    Raises:
        ValueError: no stack of transformer blocks in it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        found = transformer_blocks(module)
        if found is None:
            raise ValueError("no transformer blocks")
        name, stack = found
        self.module = module
        self.seen: list[Tensor] = []
        owner: Any = module.get_submodule(name.rpartition(".")[0])
        # timm counts its class and register tokens; open_clip's resblocks lie one level deeper, and its tower has one.
        self.skipped = int(getattr(owner, "num_prefix_tokens", 1))
        self.depth = len(list(stack.children()))
        for block in stack.children():
            block.register_forward_hook(self._see)

    def _see(self, _: nn.Module, __: Any, output: Any) -> None:
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        self.seen.append(tokens[:, self.skipped :].float().mean(1))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, blocks * width], first block first."""
        self.seen.clear()
        self.module(pixels)
        out = torch.cat(self.seen, 1)
        self.seen.clear()
        return out


def layer_means(encoder: Encoder) -> tuple[Encoder, int]:
    """(the encoder whose output is the mean of each block, number of blocks). Raises ValueError, see `LayerMeans`."""
    module = LayerMeans(encoder.module).eval()
    with torch.inference_mode():
        size = module(torch.zeros(1, *encoder.pixels.shape, dtype=torch.uint8)).shape[1]
    return replace(encoder, module=module, size=size, output=None), module.depth
