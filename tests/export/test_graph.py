"""One graph: what training computed, in torch and in ONNX, whatever shares the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from contract.pixels import PixelSpec, normalize
from export import graph
from export.graph import AlignedModel, FloatPixels, export_graph
from export.parity import torch_vectors
from tests.export.conftest import Exported
from tests.training.tiny import tiny_encoder
from training.encoders import features_of


def run_graph(file: Path, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip(("aligned", "base"), session.run(["aligned", "base"], {"pixels": pixels}), strict=True))


@pytest.mark.parametrize("power", [np.nan, 0.15, 1.0])
def test_the_torch_model_is_the_transform_of_the_features(exported: Exported, power: float) -> None:
    transform, encoder = replace(exported.transform, power=np.array(power, np.float32)), tiny_encoder()
    features = features_of(encoder, torch.from_numpy(exported.pixels)).numpy()
    got = torch_vectors(AlignedModel(encoder, transform), exported.pixels)
    np.testing.assert_allclose(got["base"], features, rtol=1e-5, atol=1e-6)
    expected = transform.apply(features)
    np.testing.assert_allclose(got["aligned"], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("power", [np.nan, 0.4])
def test_the_graph_gives_what_torch_gives(exported: Exported, tmp_path: Path, power: float) -> None:
    transform = replace(exported.transform, power=np.array(power, np.float32))
    model = AlignedModel(tiny_encoder(), transform).eval()
    export_graph(model, (3, 8, 8), tmp_path / "model.onnx")
    expected, got = torch_vectors(model, exported.pixels), run_graph(tmp_path / "model.onnx", exported.pixels)
    for space in ("aligned", "base"):
        size = np.abs(expected[space]).max()
        np.testing.assert_allclose(got[space], expected[space], atol=1e-5 * size, err_msg=space)


@pytest.mark.parametrize("given", [{}, {"value_range": (0.0, 255.0), "mean": (127.0,) * 3, "std": (128.0,) * 3}])
def test_a_graph_of_float32_pixels_gives_what_the_model_gives_of_the_bytes(
    exported: Exported, tmp_path: Path, given: dict[str, Any]
) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    options: dict[str, Any] = {"mean": mean, "std": std, "dtype": "float32"} | given
    spec = PixelSpec(height=8, width=8, resize="squash", **options)
    export_graph(FloatPixels(exported.model, spec), (3, 8, 8), tmp_path / "model.onnx", "float32")
    expected = torch_vectors(exported.model, exported.pixels)
    got = run_graph(tmp_path / "model.onnx", normalize(exported.pixels, spec))
    for space in ("aligned", "base"):
        np.testing.assert_allclose(got[space], expected[space], atol=1e-5 * np.abs(expected[space]).max())
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(float)"


def test_a_published_transform_with_a_mean_of_one_number_is_exported_alike(exported: Exported) -> None:
    one = np.array(0.1, np.float32)
    plain = AlignedModel(tiny_encoder(), replace(exported.transform, mean=one))
    wide = AlignedModel(tiny_encoder(), replace(exported.transform, mean=np.full(64, 0.1, np.float32)))
    ours, theirs = plain.head.state_dict(), wide.head.state_dict()
    assert set(ours) == {"weight", "bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_graph_takes_pixels_of_any_batch_and_gives_both_spaces_in_float32(exported: Exported) -> None:
    session = ort.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixels", "tensor(uint8)", [3, 8, 8])
    assert isinstance(given.shape[0], str)
    outputs = [(o.name, o.type, o.shape[1]) for o in session.get_outputs()]
    assert outputs == [("aligned", "tensor(float)", 8), ("base", "tensor(float)", 64)]
    for n in (1, 2, 7, 40):
        assert run_graph(exported.file, exported.pixels[:n])["aligned"].shape == (n, 8)


def test_a_vector_is_the_same_bit_for_bit_whatever_else_is_in_its_batch(exported: Exported) -> None:
    together = run_graph(exported.file, exported.pixels)
    order = np.random.default_rng(1).permutation(40)
    shuffled = run_graph(exported.file, exported.pixels[order])
    for space in ("aligned", "base"):
        alone = [run_graph(exported.file, exported.pixels[i : i + 1])[space][0] for i in range(0, 40, 5)]
        assert np.array_equal(together[space][::5], np.stack(alone)), space
        assert np.array_equal(shuffled[space], together[space][order]), space


def test_the_graph_is_one_valid_file_without_data_beside_it(exported: Exported) -> None:
    assert [file.name for file in exported.file.parent.iterdir()] == ["fp32.onnx"]
    model = onnx.load(str(exported.file))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}  # any runtime has these operators


def test_a_silent_feature_stays_finite_under_a_power(exported: Exported) -> None:
    black = np.zeros((1, 3, 8, 8), np.uint8)
    got = run_graph(exported.file, black)
    assert (got["base"] == 0).any()  # the case is real
    assert np.isfinite(got["aligned"]).all()
    np.testing.assert_allclose(got["aligned"], exported.transform.apply(got["base"]), rtol=1e-3, atol=1e-3)


def test_a_model_exported_twice_is_the_same_file_and_names_no_path(exported: Exported, tmp_path: Path) -> None:
    for name in ("first.onnx", "second.onnx"):
        export_graph(AlignedModel(tiny_encoder(), exported.transform), (3, 8, 8), tmp_path / name)
    first, second = (tmp_path / name for name in ("first.onnx", "second.onnx"))
    assert first.read_bytes() == second.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in first.read_bytes()


def test_a_graph_with_operators_of_one_runtime_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(exported.file))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    monkeypatch.setattr(graph, "_onnx", lambda *_: model)
    with pytest.raises(ValueError, match=r"needs .*com.microsoft.* opset 18 only"):
        export_graph(exported.model, (3, 8, 8), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
