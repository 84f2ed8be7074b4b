"""Every kind of vision tower: random weights through the graph, in every precision, against torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from export import parity
from export.graph import AlignedModel, EmbeddingModel, export_graph
from export.precision import convert, is_transformer
from training.align import Transform
from training.encoders import Encoder, features_of
from training.models import build
from training.readout import block_features, with_readout
from training.timm_models import TimmFeatures


def open_clip_tower(folder: Path) -> Encoder:
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    (folder / "clip-of-export.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    return build("open_clip:clip-of-export", pretrained=False)


def dinov2(_: Path) -> Encoder:
    """Layer scale, registers without positions, and a position grid of 4 x 4 resampled to 5 x 5, as for a new side."""
    shape: dict[str, Any] = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 2}
    backbone = VisionTransformer(**shape, reg_tokens=4, no_embed_class=True, init_values=0.1, num_classes=0)
    backbone.set_input_size((70, 70))
    spec = PixelSpec(height=70, width=70, resize="squash", dtype="uint8", mean=(0.5,) * 3, std=(0.2,) * 3)
    module = TimmFeatures(backbone, spec, "cls").eval().requires_grad_(False)
    return Encoder(module, spec, 64, BaseModel(name="dinov2", source="random", license="none"), "cls")


def student(_: Path) -> Encoder:
    """Class token and mean patch of two blocks, standardised, and a linear map of them."""
    features = block_features(build("timm:test_vit", side=64, pretrained=False), 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_readout(features, 24)


TOWERS: dict[str, Callable[[Path], Encoder]] = {
    "class token": lambda _: build("timm:test_vit", side=64, pretrained=False),
    "registers, averaged": lambda _: build("timm:test_vit2", side=64, pretrained=False),
    "SigLIP's attention pool": lambda _: build("timm:test_vit3", output="map", side=64, pretrained=False),
    "CLIP, projected": open_clip_tower,
    "DINOv2, resampled positions": dinov2,
    "a student's readout": student,
    "EfficientNet": lambda _: build("timm:test_efficientnet", side=64, pretrained=False),
}


@dataclass(frozen=True)
class Tower:
    """A model with random weights, its float32 graph, forty images and what torch makes of them."""

    encoder: Encoder
    file: Path
    pixels: NDArray[np.uint8]
    reference: parity.Vectors


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    folder = tmp_path_factory.mktemp("tower")
    encoder = TOWERS[request.param](folder)
    rng = np.random.default_rng(0)
    weights = np.eye(encoder.size, 16, dtype=np.float32) + 0.3 * rng.normal(size=(encoder.size, 16)).astype(np.float32)
    numbers = (np.array(value, np.float32) for value in (0.0, 1.0, np.nan))
    model = AlignedModel(encoder, Transform(weights, np.zeros(16, np.float32), *numbers)).eval()
    export_graph(model, encoder.pixels.shape, folder / "fp32.onnx")
    coarse = rng.integers(0, 256, (40, 3, 4, 4)).astype(np.uint8)
    side = encoder.pixels.height
    pixels = np.repeat(np.repeat(coarse, side // 4 + 1, 2), side // 4 + 1, 3)[..., :side, :side]
    return Tower(encoder, folder / "fp32.onnx", pixels, parity.torch_vectors(model, pixels))


TRIPLETS = np.random.default_rng(0).permuted(np.tile(np.arange(40), (1000, 1)), axis=1)[:, :3]


def compared(tower: Tower, file: Path, precision: Any) -> parity.Parity:
    runtime = parity.onnx_runtime(file, tuple(tower.reference), tower.encoder.pixels, precision)
    return parity.compare(runtime, precision, tower.reference, tower.pixels, TRIPLETS, "cosine", 0.1)


def test_the_float32_graph_judges_as_torch_does(tower: Tower) -> None:
    row = compared(tower, tower.file, "fp32")
    assert row.passed and row.flips == 0 and row.one_minus_cosine <= 1e-5
    assert row.batch_difference == 0


@pytest.mark.parametrize(
    ("precision", "cosine"),
    [("fp16-weights", 1e-4), ("bf16-weights", 1e-3), ("fp16", 1e-3), ("bf16", 1e-3), ("int8-weights", 1e-2)],
)
def test_smaller_weights_stay_near(tower: Tower, tmp_path: Path, precision: Any, cosine: float) -> None:
    convert(tower.file, tmp_path / "m.onnx", precision, tower.pixels)
    row = compared(tower, tmp_path / "m.onnx", precision)
    assert 0 < row.one_minus_cosine < cosine
    assert row.flips < 0.05
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_int8_is_dynamic_for_transformers_and_static_for_convolutions(tower: Tower, tmp_path: Path) -> None:
    convert(tower.file, tmp_path / "m.onnx", "int8", tower.pixels[:8])
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    wide = onnx.load(tower.file)
    assert ("DynamicQuantizeLinear" in kinds) == is_transformer(wide)
    assert ("QuantizeLinear" in kinds) != is_transformer(wide)
    assert 0 < compared(tower, tmp_path / "m.onnx", "int8").one_minus_cosine < 0.1
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_tower_alone_has_one_space_and_a_free_batch(tower: Tower, tmp_path: Path) -> None:
    export_graph(EmbeddingModel(tower.encoder), tower.encoder.pixels.shape, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.name for node in graph.output] == ["aligned"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    base = {"aligned": tower.reference["base"]}
    runtime = parity.onnx_runtime(tmp_path / "m.onnx", ("aligned",), tower.encoder.pixels)
    assert parity.compare(runtime, "fp32", base, tower.pixels, TRIPLETS, "cosine", 0.1).passed


def test_a_readout_gives_a_photo_the_same_bits_alone_and_in_a_batch(tmp_path: Path) -> None:
    encoder = student(tmp_path)
    export_graph(EmbeddingModel(encoder), encoder.pixels.shape, tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 64, 64)).astype(np.uint8)
    reference = {"aligned": features_of(encoder, torch.from_numpy(pixels)).numpy()}
    runtime = parity.onnx_runtime(tmp_path / "m.onnx", ("aligned",), encoder.pixels)
    row = parity.compare(runtime, "fp32", reference, pixels, TRIPLETS, "dot", 0.1)
    assert row.passed and row.flips == 0
    assert row.batch_difference == 0
