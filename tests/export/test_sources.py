"""Models that no run made: by name, with a checkpoint, a transform or a triplet head, to a whole bundle or an error."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from contract.bundle import check_golden_pixels, read_bundle
from export import __main__ as command_line
from export import graph, package, parity
from export.graph import Spaces, export_graph
from export.sources import ModelOptions, read_model, read_triplet_head, serving
from tests.export.test_package import main_with
from tests.training.tiny import tiny_encoder, write_photos
from training.align import Transform
from training.encoders import Encoder, features_of
from training.models import build
from training.readout import block_features, fit_readout, with_readout
from training.student_model import Adaptation, StudentModel

RANDOM = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty photos in a folder, fewer than the report takes unless it is told."""
    write_photos(tmp_path / "photos", 60)
    return tmp_path / "photos"


@pytest.fixture
def transform(tmp_path: Path) -> Path:
    """A published one: a matrix, a mean and a std of one number, no bias, no power."""
    weights = RANDOM.normal(size=(64, 8)).astype(np.float32)
    np.savez(tmp_path / "transform.npz", weights=weights, mean=np.float32(0.1), std=np.float32(0.5))
    return tmp_path / "transform.npz"


def exported(monkeypatch: pytest.MonkeyPatch, photos: Path, out: Path, *more: object) -> Any:
    given = ("--images", photos, "--out", out, "--parity-photos", 32, "--calibration-photos", 8)
    wanted = () if "--precision" in more else ("--precision", "fp32")
    monkeypatch.setattr(package, "LEAST_PHOTOS", 8)
    main_with(monkeypatch, "bundle", "tiny", *given, *wanted, *more)
    return read_bundle(out)


def test_a_model_alone_has_one_space_compared_by_cosine(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(monkeypatch, photos, tmp_path / "b")
    space = bundle.manifest.spaces["aligned"]
    assert list(bundle.manifest.spaces) == ["aligned"]
    assert (space.similarity, space.calibrated, space.size) == ("cosine", False, 64)
    expected = features_of(tiny_encoder(), torch.from_numpy(bundle.golden.pixels)).numpy()
    np.testing.assert_allclose(bundle.golden.vectors["aligned"], expected, rtol=1e-4, atol=1e-5)
    assert len(bundle.golden.images) == 4  # patterns: no photo was given
    check_golden_pixels(bundle)
    assert bundle.manifest.parity["photos"] == 32
    assert not bundle.manifest.parity["forced"]


@pytest.mark.parametrize("space", ["both", "aligned"])
def test_a_published_transform_is_the_head_and_its_base_stands_beside_if_wanted(
    photos: Path, transform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    bundle = exported(monkeypatch, photos, tmp_path / "b", "--transform", transform, "--space", space)
    assert list(bundle.manifest.spaces) == (["aligned", "base"] if space == "both" else ["aligned"])
    features = features_of(tiny_encoder(), torch.from_numpy(bundle.golden.pixels)).numpy()
    expected = Transform.load(transform).apply(features)
    np.testing.assert_allclose(bundle.golden.vectors["aligned"], expected, rtol=1e-3, atol=1e-4)
    assert "transform.npz" in bundle.manifest.training["inputs"]
    assert bundle.manifest.parity["command"].startswith("python -m export bundle tiny --transform transform.npz --out")


def test_a_graph_of_float32_pixels_is_compared_with_torch_on_the_bytes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(monkeypatch, photos, tmp_path / "b", "--input", "float32", "--precision", "fp32", "int8")
    manifest = bundle.manifest
    assert manifest.pixels == replace(tiny_encoder().pixels, dtype="float32")
    assert bundle.golden.pixels.dtype == np.float32
    check_golden_pixels(bundle)
    exact, int8 = manifest.parity["rows"]
    assert exact["passed"] and exact["one_minus_cosine"] < 1e-9
    assert 0 < int8["one_minus_cosine"] < 0.01  # ranges were measured on float32 pixels too
    assert manifest.parity["command"].endswith("--precision fp32 int8 --input float32")
    # pixels of another normalisation than the manifest's are another photo, and the gate sees it
    real = package.parity.taken
    monkeypatch.setattr(package.parity, "taken", lambda pixels, spec: real(pixels, replace(spec, std=(0.5,) * 3)))
    with pytest.raises(SystemExit, match="no precision of fp32 passes"):
        exported(monkeypatch, photos, tmp_path / "wrong", "--input", "float32", "--precision", "fp32")


def test_a_triplet_head_is_the_linear_map_of_the_student(tmp_path: Path) -> None:
    head = torch.nn.Linear(64, 12)
    safetensors.torch.save_file(head.state_dict(), tmp_path / "triplet_head.safetensors")
    source = read_model(ModelOptions(model="tiny", triplet_head=tmp_path / "triplet_head.safetensors"))
    pixels = RANDOM.integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    got = parity.torch_vectors(source.model, pixels)
    with torch.inference_mode():
        expected = head(features_of(tiny_encoder(), torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(got["aligned"], expected, rtol=1e-4, atol=1e-5)
    assert source.kernel == {"aligned": "dot", "base": "cosine"}


def test_a_students_weights_are_served_at_the_side_they_were_trained_at(tmp_path: Path) -> None:
    trained = read_model(ModelOptions(model="timm:test_vit", random_weights=3, side=64))
    file = tmp_path / "weights.safetensors"
    state = {k: v.contiguous() for k, v in trained.model.encoder.backbone.state_dict().items()}  # type: ignore[union-attr,operator]
    safetensors.torch.save_file(state, file)
    again = read_model(ModelOptions(model="timm:test_vit", checkpoint=file, side=64))
    pixels = RANDOM.integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    first, second = (parity.torch_vectors(source.model, pixels)["aligned"] for source in (trained, again))
    assert np.array_equal(first, second)
    assert again.name == "test_vit"
    assert again.training["inputs"]["weights.safetensors"]


@pytest.fixture
def student(tmp_path: Path) -> tuple[Encoder, Path]:
    """One with a fitted readout of two blocks, and its weights as a distillation writes them."""
    read = block_features(build("timm:test_vit", pretrained=False, side=64, seed=5), 2)
    encoder, pixels = with_readout(read, 4), torch.from_numpy(RANDOM.integers(0, 256, (24, 3, 64, 64)).astype(np.uint8))
    vectors = RANDOM.normal(size=(24, 4)).astype(np.float32)
    fit_readout(encoder, features_of(read, pixels).numpy(), vectors, penalty=1.0)
    trained = StudentModel(encoder, None, Adaptation(), seed=0)
    trained.write(trained.state_dict(), tmp_path)
    return encoder, tmp_path / "weights.safetensors"


def test_a_students_readout_beside_its_weights_is_served(student: tuple[Encoder, Path]) -> None:
    encoder, file = student
    pixels = RANDOM.integers(0, 256, (3, 3, 64, 64)).astype(np.uint8)
    source = read_model(ModelOptions(model="timm:test_vit", checkpoint=file, side=64))
    got = parity.torch_vectors(source.model, pixels)["aligned"]
    expected = features_of(encoder, torch.from_numpy(pixels)).numpy()
    assert got.shape == (3, 4)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert source.kernel == {"aligned": "dot"}
    assert set(source.training["inputs"]) == {"weights.safetensors", "readout.safetensors"}
    assert source.description == "test_vit with the weights weights.safetensors and readout.safetensors."


def test_a_readout_that_does_not_fit_is_refused(student: tuple[Encoder, Path]) -> None:
    file = student[1]
    with pytest.raises(ValueError, match="--output pooled is for a model without a readout"):
        read_model(ModelOptions(model="timm:test_vit", checkpoint=file, side=64, output="pooled"))
    file.with_name("readout.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"readout.safetensors and weights.safetensors are not what `distill` writes"):
        read_model(ModelOptions(model="timm:test_vit", checkpoint=file, side=64))


# --- what is refused -------------------------------------------------------------------------------


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main_with(monkeypatch, "bundle", *arguments)
    assert str(stopped.value.code).startswith("error: ")
    return str(stopped.value.code)


def test_a_transform_of_another_width_is_refused(transform: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"transform.npz maps 64 features, but timm:test_efficientnet gives"):
        read_model(ModelOptions(model="timm:test_efficientnet", random_weights=0, transform=transform, side=32))


def test_a_checkpoint_that_does_not_fit_names_its_keys(tmp_path: Path) -> None:
    safetensors.torch.save_file({"head.extra": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"(?s)w.safetensors does not fit test_vit.*(Missing|Unexpected) key.*"):
        read_model(ModelOptions(model="timm:test_vit", checkpoint=tmp_path / "w.safetensors"))


def test_an_image_too_large_for_the_graph_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pixels.height is 4112; expected 1 to 4096"):
        read_model(ModelOptions(model="timm:test_efficientnet", random_weights=0, side=4112))


def test_a_base_space_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny has one space"):
        serving(read_model(ModelOptions(model="tiny")), "both")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.zeros(4, 64)}, "expected weight"),
        ({"weight": torch.zeros(4, 64), "bias": torch.zeros(3)}, "bias"),
    ],
)
def test_a_head_that_is_none_is_refused(tmp_path: Path, state: Any, said: str) -> None:
    safetensors.torch.save_file(state, tmp_path / "h.safetensors")
    with pytest.raises(ValueError, match=said):
        read_triplet_head(tmp_path / "h.safetensors")
    (tmp_path / "h.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_triplet_head(tmp_path / "h.safetensors")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("saved_model.pb", "TensorFlow SavedModel"),
        ("weights.safetensors", "give --checkpoint"),
        ("x", "lacks recipe.json"),
    ],
)
def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / file).write_text("")
    assert said in refusal(monkeypatch, tmp_path / "m", "--images", tmp_path, "--out", tmp_path / "b")


def test_options_that_do_not_fit_the_source_are_refused(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    rest = ("--images", photos, "--out", tmp_path / "b")
    assert "--entry, --mean and --std, all three" in refusal(monkeypatch, "tiny", *rest, "--mean", 1)
    assert "a model needs --images" in refusal(monkeypatch, "tiny", "--data", photos, "--out", tmp_path / "b")
    assert "expected fp32" in refusal(monkeypatch, "tiny", *rest, "--precision", "int4")
    assert "60 photos; the parity report takes 48 and" in refusal(
        monkeypatch, "tiny", *rest, "--calibration-photos", 40
    )
    assert not (tmp_path / "b").exists()


class _Unwritable(Spaces):
    outputs = ("aligned",)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.linalg.qr(pixels.float().flatten(2))[0].flatten(1),)


class _FixedBatch(Spaces):
    outputs = ("aligned",)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (pixels.float().reshape(2, -1),)


@pytest.mark.parametrize(("model", "said"), [(_Unwritable(), "linalg_qr"), (_FixedBatch(), "fix its batch size")])
def test_a_layer_or_a_shape_that_no_graph_holds_is_named(tmp_path: Path, model: Spaces, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        export_graph(model, (3, 8, 8), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_one_file_cannot_hold_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"bytes in float32; one ONNX file, and so a bundle, holds at most 1000"):
        export_graph(read_model(ModelOptions(model="tiny")).model, (3, 8, 8), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_photo_that_does_not_decode_is_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in photos.iterdir():
        file.write_bytes(b"no photo")
    rest = ("--images", photos, "--out", tmp_path / "b", "--parity-photos", 32, "--calibration-photos", 8)
    monkeypatch.setattr(package, "LEAST_PHOTOS", 8)
    assert ".png: " in refusal(monkeypatch, "tiny", *rest)


def test_a_disk_that_fills_up_leaves_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        exported(monkeypatch, photos, tmp_path / "out/b")
    assert list((tmp_path / "out").iterdir()) == []


def test_int8_above_its_limits_leaves_by_force_only_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MAX_FLIPS", dict.fromkeys(parity.MAX_FLIPS, -1.0))
    int8 = ("--precision", "int8-weights", "fp32")
    with pytest.raises(SystemExit, match=r"(?s)no precision of int8-weights, fp32 passes.*with --force"):
        exported(monkeypatch, photos, tmp_path / "b", *int8)
    with pytest.raises(SystemExit, match="passes the parity gate"):
        exported(monkeypatch, photos, tmp_path / "b", "--precision", "fp32", "--force")
    manifest = exported(monkeypatch, photos, tmp_path / "b", *int8, "--force").manifest
    assert manifest.precision == "int8-weights" and manifest.parity["forced"]
    assert "above its limits" in command_line.card(manifest)
