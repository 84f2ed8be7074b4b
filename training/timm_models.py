"""Any model of timm as an encoder: its weights, its feature points, its pixels.

Feature points:

    cls        class token after the final norm
    pooled     mean of the patch tokens after the final norm; the model's own pool where it has one of its own
               (convolutional networks, transformers that average)
    map        multi-head attention pool (SigLIP)
    embedding  what an image-text model compares with text, not normalised (CLIP: projected; SigLIP: its `map`)
    levels     the model's own one of these, then the mean over space of each stage's output; see `training.levels`
"""

import difflib
import math
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from contract.manifest import BaseModel
from contract.pixels import PixelSpec, Resample
from training.encoders import Encoder, Normalized

Output = Literal["cls", "pooled", "map", "embedding", "levels"]
Framing = Literal["own", "squash"]
"""How a photo becomes square: as the library's own evaluation does, or squashed, as AligNet does with every model."""


class TimmFeatures(Normalized):
    """One feature point of a timm model.

    Args:
        output: see the module docstring.

    Raises:
        ValueError: the model has no such feature point.
    """

    def __init__(self, backbone: Any, pixels: PixelSpec, output: Output) -> None:
        super().__init__(backbone, pixels)
        self.output = output
        pool = getattr(backbone, "global_pool", None)
        self.prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        self.mean_of_tokens = output == "pooled" and hasattr(backbone, "num_prefix_tokens") and pool in ("token", "map")
        name = type(backbone).__name__
        if output == "cls" and getattr(backbone, "cls_token", None) is None:
            raise ValueError(f"{name} has no class token; choose --output {own_output(backbone)}.")
        if output == "map" and getattr(backbone, "attn_pool", None) is None:
            raise ValueError(f"{name} has no attention pool; choose --output {own_output(backbone)}.")

    @property
    def size(self) -> int:
        """Length of a feature vector."""
        b: Any = self.backbone
        if self.output == "embedding" and b.num_classes:
            return int(b.num_classes)
        inner = self.output == "cls" or self.mean_of_tokens
        return int(b.num_features if inner else getattr(b, "head_hidden_size", b.num_features))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, size]."""
        b: Any = self.backbone
        return self._read(b.forward_features(self.normalized(pixels)))

    def forward_levels(self, pixels: Tensor) -> list[Tensor]:
        """See `training.levels.HasLevels`; the stages are timm's feature maps, for a transformer its blocks."""
        b: Any = self.backbone
        last, maps = b.forward_intermediates(self.normalized(pixels), output_fmt="NCHW")
        return [self._read(last), *(stage.mean((2, 3)) for stage in maps)]

    def _read(self, x: Tensor) -> Tensor:
        """The feature point of the backbone's last map or tokens."""
        b: Any = self.backbone
        if self.output == "cls" or self.mean_of_tokens:
            x = x[:, 0] if self.output == "cls" else x[:, self.prefix :].mean(1)
            # Where timm averages tokens, the final norm comes after the pool.
            out: Tensor = b.fc_norm(x) if hasattr(b, "fc_norm") else x
        else:
            out = b.forward_head(x, pre_logits=self.output != "embedding")
        return out


def own_output(backbone: Any) -> Output:
    """The feature point that the model's own head stands on."""
    if getattr(backbone, "attn_pool", None) is not None:
        return "map"
    return "cls" if getattr(backbone, "global_pool", None) == "token" else "pooled"


def build_timm(
    name: str,
    *,
    output: Output | None,
    side: int | None,
    framing: Framing,
    pretrained: bool,
    checkpoint: Path | None,
) -> Encoder:
    """The model `name` of timm, in eval mode and frozen.

    Raises:
        ValueError: timm knows no such model, has no weights or pixels for it, or the checkpoint does not fit.
    """
    import timm

    if output == "embedding":
        _require_image_text(name)
    options: dict[str, Any] = {} if output == "embedding" else {"num_classes": 0}
    config = {} if name.startswith(("hf-hub:", "local-dir:")) else _config(name)
    if side is not None and config.get("fixed_input_size") and side != config["input_size"][-1]:
        options["img_size"] = side
    if checkpoint is not None:
        options["pretrained_cfg_overlay"] = _overlay(checkpoint, config, keep_head=output == "embedding")
    backbone: Any
    try:
        backbone = timm.create_model(name, pretrained=pretrained or checkpoint is not None, **options)
    except Exception as error:  # hub clients and checkpoints raise two dozen types
        if checkpoint is not None:
            raise _misfit(checkpoint, name, error) from error
        if pretrained:
            raise unfetched(f"timm:{name}", error) from error
        raise
    pixels = timm_pixels(backbone, side, framing)
    module = TimmFeatures(backbone, pixels, output or own_output(backbone))
    source, license_ = f"timm {name}", str(backbone.pretrained_cfg.get("license") or "not stated by timm")
    base = BaseModel(name=name, source=source, license=license_)
    return Encoder(module.eval().requires_grad_(False), pixels, module.size, base, module.output)


def _overlay(checkpoint: Path, config: dict[str, Any], *, keep_head: bool) -> dict[str, Any]:
    """What makes timm load a local checkpoint, converted by its own rules, and refuse one that does not fit.

    timm is strict only where the number of classes is that of the weights, so a head that is not wanted goes first.
    """
    state = read_checkpoint(checkpoint)
    overlay: dict[str, Any] = {"custom_load": False}
    if not keep_head:
        heads = config.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else heads
        unwanted = {"visual.proj", *(f"{head}.{end}" for head in heads for end in ("weight", "bias"))}
        state = {key: value for key, value in state.items() if key not in unwanted}
        overlay |= {"num_classes": 0, "label_offset": 0}
    return overlay | {"state_dict": state}


def _config(name: str) -> dict[str, Any]:
    """Timm's pretrained configuration of a model. Raises ValueError naming similar ones where there is none."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3)
        raise ValueError(f"timm has no model {name!r}; similar names: {near}.")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        there = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ValueError(f"timm has no weights {name!r}; it has {there}.") from error
    return vars(config) if config is not None else {}


def _require_image_text(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not any(kind in architecture for kind in ("clip", "siglip")) or "_ft_" in tag:
        raise ValueError(f"{name} was not trained with text, so it has no `embedding`; choose cls, pooled or map.")


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """State dict of a .pt, .pth or .safetensors file, bare or under `state_dict` or `model`.

    Names may begin with `backbone.`, as an `Encoder`'s do. Nothing but tensors is unpickled.

    Raises:
        ValueError: not a file, or none that holds tensors by name.
    """
    from timm.models import load_state_dict

    if not file.is_file():
        raise ValueError(f"no checkpoint at {file}.")
    try:
        state: Any = load_state_dict(str(file))
    except Exception as error:  # torch and safetensors raise a dozen types on files that are not theirs
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(
            f"{file} is no checkpoint that can be read safely: {type(error).__name__}: {reason}"
        ) from error
    tensors = isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())
    if not tensors:
        raise ValueError(f"{file} holds no state dict: expected tensors by name, bare or under `state_dict`.")
    return {key.removeprefix("backbone."): value for key, value in state.items()}


def load_weights(module: nn.Module, state: dict[str, Tensor], file: Path, name: str) -> None:
    """Load weights that must fit exactly. Raises ValueError with a short list of what is missing and unexpected."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(file, name, error) from error


def _misfit(file: Path, name: str, error: Exception) -> ValueError:
    lines = [textwrap.shorten(line, 240, placeholder=" …") for line in str(error).splitlines()[:6]]
    return ValueError(f"{file} does not fit {name}:\n" + "\n".join(lines))


def unfetched(name: str, error: Exception) -> ValueError:
    """The error for weights that a hub does not give."""
    reason = textwrap.shorten(str(error), 300)
    advice = "Give a local file with --checkpoint, or ask for random weights."
    return ValueError(f"the weights of {name} could not be fetched: {type(error).__name__}: {reason} {advice}")


def timm_pixels(backbone: Any, side: int | None, framing: Framing) -> PixelSpec:
    """The pixels that timm's own evaluation transform gives the model; EXIF turned and transparency laid on white.

    Raises:
        ValueError: timm's transform is one that a PixelSpec cannot say (padding, two-sided crops).
    """
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
    height, width = config["input_size"][1:]
    height, width = (height, width) if side is None else (side, side)
    mode, fraction = config["crop_mode"], config["crop_pct"]
    short = math.floor(height / fraction)
    if framing == "own" and not (height == width and (mode == "center" or (mode == "squash" and short == height))):
        raise ValueError(
            f"timm frames photos for this model by crop_mode {mode!r}, crop_pct {fraction}, {height} x {width}, "
            "which the bundle's pixels cannot say; choose --framing squash."
        )
    crop = framing == "own" and mode == "center"
    return make_spec(height, width, short if crop else None, config["interpolation"], config["mean"], config["std"])


def make_spec(height: int, width: int, short: int | None, interpolation: str, mean: Any, std: Any) -> PixelSpec:
    """A uint8 spec: squashed, or cropped from `short`. Raises ValueError for a filter that Pillow lacks."""
    if interpolation not in get_args(Resample):
        raise ValueError(f"the model wants {interpolation!r} resizing; expected one of {get_args(Resample)}.")
    red, green, blue = (float(value) for value in mean)
    r, g, b = (float(value) for value in std)
    return PixelSpec(
        height=height,
        width=width,
        resize="squash" if short is None else "crop",
        short_side=short,
        resample=interpolation,  # type: ignore[arg-type]
        dtype="uint8",
        mean=(red, green, blue),
        std=(r, g, b),
    )
