"""Other precisions: each opens, each is near, and each stores what its name says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.graph import AlignedModel, export_graph
from export.parity import one_minus_cosine, open_session, torch_vectors
from export.precision import PRECISIONS, Precision, convert
from tests.export.conftest import Exported
from tests.training.tiny import tiny_encoder

NEAR = {
    "fp32": 1e-6,
    "fp16-weights": 1e-4,
    "bf16-weights": 1e-3,
    "fp16": 1e-3,
    "bf16": 1e-2,
    "int8-weights": 1e-3,
    "int8": 0.1,
}


@pytest.fixture(scope="module")
def files(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("precisions")
    out = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    for precision, file in out.items():
        convert(exported.file, file, precision, exported.pixels[:8])
    return out


def run_graph(file: Path, pixels: NDArray[Any]) -> list[NDArray[np.float32]]:
    return list(open_session(file, file.stem).run(["aligned", "base"], {"pixels": pixels}))


def initializers(file: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer}


def convolution_weights(file: Path) -> list[str]:
    """What makes the weights of each convolution, first to last: an operator, or `stored`."""
    graph = onnx.load(str(file)).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return [made_by.get(node.input[1], "stored") for node in graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_opens_and_gives_nearly_torchs_vectors(
    exported: Exported, files: dict[Precision, Path], precision: Precision
) -> None:
    expected = torch_vectors(exported.model, exported.pixels)
    for got, space in zip(run_graph(files[precision], exported.pixels), ("aligned", "base"), strict=True):
        assert got.dtype == np.float32
        assert one_minus_cosine(expected[space], got) < NEAR[precision], space


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_keeps_the_inputs_and_outputs(files: dict[Precision, Path], precision: Precision) -> None:
    session = open_session(files[precision], precision)
    assert [(i.name, i.type) for i in session.get_inputs()] == [("pixels", "tensor(uint8)")]
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("aligned", "tensor(float)"),
        ("base", "tensor(float)"),
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_a_valid_graph(files: dict[Precision, Path], precision: Precision) -> None:
    onnx.checker.check_model(onnx.load(str(files[precision])), full_check=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_gives_a_photo_the_same_bits_alone_and_in_a_batch(
    exported: Exported, files: dict[Precision, Path], precision: Precision
) -> None:
    for i in (0, 3):
        alone, together = (run_graph(files[precision], exported.pixels[part]) for part in (slice(i, i + 1), slice(8)))
        for a, b in zip(alone, together, strict=True):
            assert np.array_equal(a[0], b[i])


def test_half_weights_are_stored_in_half_the_bytes_and_small_tensors_in_full(
    exported: Exported, files: dict[Precision, Path]
) -> None:
    stored = initializers(files["fp16-weights"])
    large = [array for array in stored.values() if array.size >= 4096]
    assert len(large) == 2 and all(array.dtype == np.float16 for array in large)
    assert any(array.dtype == np.float32 for array in stored.values())
    assert all(array.dtype != np.float16 for array in stored.values() if array.size < 4096)
    assert files["fp16-weights"].stat().st_size / exported.file.stat().st_size == pytest.approx(0.53, abs=0.06)


def test_half_weights_compute_in_full_precision(exported: Exported, files: dict[Precision, Path]) -> None:
    # The same as torch in float32 with the large weights rounded once.
    rounded = AlignedModel(tiny_encoder(), exported.transform).eval()
    for parameter in rounded.parameters():
        if parameter.numel() >= 4096:
            parameter.data = parameter.data.half().float()
    expected = torch_vectors(rounded, exported.pixels)["aligned"]
    got = run_graph(files["fp16-weights"], exported.pixels)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_bfloat16_weights_are_torchs_and_compute_in_full_precision(
    exported: Exported, files: dict[Precision, Path]
) -> None:
    rounded = AlignedModel(tiny_encoder(), exported.transform).eval()
    for parameter in rounded.parameters():
        if parameter.numel() >= 4096:
            parameter.data = parameter.data.bfloat16().float()
    expected = torch_vectors(rounded, exported.pixels)["aligned"]
    got = run_graph(files["bf16-weights"], exported.pixels)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    stored = {t.name: t.data_type for t in onnx.load(str(files["bf16-weights"])).graph.initializer}
    assert sum(kind == TensorProto.BFLOAT16 for kind in stored.values()) == 2
    assert files["bf16-weights"].stat().st_size == pytest.approx(files["fp16-weights"].stat().st_size, rel=0.01)


def test_half_precision_computes_convolutions_in_half_and_the_power_in_full(files: dict[Precision, Path]) -> None:
    graph = onnx.load(str(files["fp16"])).graph
    weights = [array.dtype for array in initializers(files["fp16"]).values() if array.ndim == 4]
    assert weights == [np.float16] * 4
    widened = {
        node.output[0] for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT
    }
    (power,) = [node for node in graph.node if node.op_type == "Pow"]
    assert set(power.input) <= widened


def test_int8_quantises_every_convolution_but_the_first_and_the_head(files: dict[Precision, Path]) -> None:
    made_by = convolution_weights(files["int8"])
    assert made_by == ["stored", "DequantizeLinear", "DequantizeLinear", "stored"]
    assert sum(array.dtype == np.int8 and array.ndim == 4 for array in initializers(files["int8"]).values()) == 2


def test_int8_leaves_the_first_and_the_head_alone_where_there_is_no_other_convolution(
    exported: Exported, tmp_path: Path
) -> None:
    encoder = tiny_encoder()
    encoder.module.layers = encoder.module.layers[:1]  # as a vision transformer: one convolution, then the head
    whole = exported.transform
    narrow = replace(whole, weights=whole.weights[:16], mean=whole.mean[:16])
    export_graph(AlignedModel(encoder, narrow).eval(), (3, 8, 8), tmp_path / "fp32.onnx")
    convert(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", "int8", exported.pixels[:8])
    assert convolution_weights(tmp_path / "int8.onnx") == ["stored", "stored"]


def test_int8_ranges_come_from_the_calibration_images(exported: Exported, tmp_path: Path) -> None:
    expected = torch_vectors(exported.model, exported.pixels)["base"]
    errors = []
    for name, calibration in (("honest", exported.pixels[:8]), ("dark", exported.pixels[:8] // 50)):
        convert(exported.file, tmp_path / f"{name}.onnx", "int8", calibration)
        errors.append(np.abs(run_graph(tmp_path / f"{name}.onnx", exported.pixels)[1] - expected).mean())
    assert errors[0] * 5 < errors[1]


def test_only_the_converted_files_are_left(files: dict[Precision, Path]) -> None:
    folder = files["int8"].parent
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{precision}.onnx" for precision in PRECISIONS)


def test_the_model_in_memory_is_not_touched_by_an_export(exported: Exported, tmp_path: Path) -> None:
    model = AlignedModel(tiny_encoder(), exported.transform).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_graph(model, (3, 8, 8), tmp_path / "m.onnx")
    convert(tmp_path / "m.onnx", tmp_path / "h.onnx", "fp16-weights", exported.pixels[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
