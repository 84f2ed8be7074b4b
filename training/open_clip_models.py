"""Any image tower of open_clip as an encoder: the image embedding that is compared with text, not normalised."""

from pathlib import Path
from typing import Any

from torch import Tensor

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from training.encoders import Encoder, Normalized
from training.images import optional
from training.timm_models import Framing, load_weights, make_spec, read_checkpoint, unfetched


class OpenClipFeatures(Normalized):
    """What open_clip's `encode_image` gives; the text tower is dropped."""

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, size]."""
        out: Any = self.backbone(self.normalized(pixels))
        embedding: Tensor = out[0] if isinstance(out, tuple) else out
        return embedding


def build_open_clip(
    name: str, *, side: int | None, framing: Framing, pretrained: bool, checkpoint: Path | None
) -> Encoder:
    """The image tower of `ARCH/PRETRAINED` or `hf-hub:ORG/NAME`, in eval mode and frozen.

    Raises:
        ValueError: open_clip knows no such model, has no weights or pixels for it, or the checkpoint does not fit.
    """
    open_clip = optional("open_clip")
    # An architecture may itself hold a slash only where it is a hub's.
    arch, _, tag = (name, "", "") if name.startswith("hf-hub:") else name.partition("/")
    hub = arch.startswith("hf-hub:")
    tags = [] if hub else open_clip.list_pretrained_tags_by_model(arch)
    if not hub and arch not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {arch!r}; `open_clip.list_models()` lists those it has.")
    if pretrained and checkpoint is None and not hub and tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} for {arch}; it has {tags}. Write open_clip:{arch}/TAG.")
    fetch = pretrained and checkpoint is None
    options: dict[str, Any] = {"force_image_size": side, "pretrained": (tag or None) if fetch else None}
    try:
        model = open_clip.create_model(arch, load_weights=fetch, **options)
    except Exception as error:  # hub clients raise two dozen types
        if fetch:
            raise unfetched(f"open_clip:{name}", error) from error
        raise
    if checkpoint is not None:
        _load(open_clip, model, checkpoint, name)
    pixels = open_clip_pixels(open_clip.get_model_preprocess_cfg(model), framing)
    module = OpenClipFeatures(model.visual, pixels)
    license_ = "stated on the hub's page of the weights"
    base = BaseModel(name=name, source=f"open_clip {name}", license=license_)
    return Encoder(module.eval().requires_grad_(False), pixels, _width(model.visual, arch), base)


def _width(visual: Any, arch: str) -> int:
    width = getattr(visual, "output_dim", None)
    if width is None:  # towers that timm makes
        from open_clip import get_model_config

        width = get_model_config(arch)["embed_dim"]
    return int(width)


def _load(open_clip: Any, model: Any, file: Path, name: str) -> None:
    """Weights of a whole model in any layout that open_clip converts, or of the image tower alone."""
    state = read_checkpoint(file)
    if not any(key.startswith("visual.") for key in state):
        load_weights(model.visual, state, file, name)
        return
    try:
        found = open_clip.load_checkpoint(model, str(file), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit {name}: {str(error)[:500]}") from error
    missing = [key for key in found.missing_keys if key.startswith("visual.")]
    unexpected = [key for key in found.unexpected_keys if key.startswith("visual.")]
    if missing or unexpected:
        raise ValueError(
            f"{file} does not fit {name}: {len(missing)} weights of the image tower are missing {missing[:3]}, "
            f"{len(unexpected)} are unexpected {unexpected[:3]}."
        )


def open_clip_pixels(config: dict[str, Any], framing: Framing) -> PixelSpec:
    """The pixels of open_clip's evaluation transform; EXIF turned and transparency laid on white.

    Raises:
        ValueError: the model pads its photos, which a PixelSpec cannot say.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mode = config.get("resize_mode") or "shortest"
    if framing == "own" and (mode == "longest" or (mode == "shortest" and height != width)):
        raise ValueError(
            f"open_clip frames photos for this model by resize_mode {mode!r}, {height} x {width}, which the bundle's "
            "pixels cannot say; choose --framing squash."
        )
    short = height if framing == "own" and mode == "shortest" else None
    interpolation = config.get("interpolation") or "bicubic"
    return make_spec(height, width, short, interpolation, config["mean"], config["std"])
