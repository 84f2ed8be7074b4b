"""From a run to a bundle: whole, honest, the smallest that passes, or nothing at all."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from contract.bundle import Bundle, BundleError, check_golden, check_golden_pixels, read_bundle
from contract.files import sha256_of
from contract.pixels import load_pixels
from export import __main__ as command_line
from export import package as packaging
from export import parity
from export.package import PackageOptions, ParityError
from export.precision import PRECISIONS, Precision
from tests.export.conftest import Exported, Run, package_run
from tests.training.test_student import RECIPE as STUDENT
from tests.training.tiny import CONCEPTS, TINY, tiny_encoder
from training.encoders import features_of
from training.photos import read_photos
from training.run import KERNEL
from training.student import run_students
from training.student_model import load_weights


def golden_of(run: Run) -> tuple[Path, ...]:
    return tuple(run.data / f"images/{name}.png" for name in ("0-0", "1-0", "none-0"))


WANTED: tuple[Precision, ...] = ("int8", "fp16-weights", "fp32")


@pytest.fixture(scope="module")
def made(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(bundle folder, report) of one export."""
    target = tmp_path_factory.mktemp("bundles") / "tiny"
    bundle, report = package_run(
        tiny_run.folder, tiny_run.data, target, precisions=WANTED, golden_photos=golden_of(tiny_run)
    )
    assert bundle.path == target
    return target, report


@pytest.fixture
def quick(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is exported already (of the same sizes), and every precision of it passes."""
    monkeypatch.setattr(
        packaging, "export_graph", lambda model, shape, file, dtype: shutil.copyfile(exported.file, file)
    )
    monkeypatch.setattr(parity, "MAX_COSINE", dict.fromkeys(PRECISIONS, 9.0))
    monkeypatch.setattr(parity, "MAX_FLIPS", dict.fromkeys(PRECISIONS, 1.0))
    monkeypatch.setattr(parity, "MAX_ENTROPY_CHANGE", dict.fromkeys(PRECISIONS, 9.0))
    monkeypatch.setattr(parity, "MAX_LENGTH_CHANGE", dict.fromkeys(PRECISIONS, 99.0))


def test_the_bundle_opens_and_its_graph_gives_its_golden_vectors(made: tuple[Path, str]) -> None:
    bundle = read_bundle(made[0])
    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    vectors = session.run(["aligned", "base"], {"pixels": bundle.golden.pixels})
    check_golden(bundle, dict(zip(("aligned", "base"), vectors, strict=True)))
    check_golden_pixels(bundle)
    assert len(bundle.golden.images) == 3
    assert bundle.manifest.pixels == tiny_encoder().pixels


def test_the_manifest_has_a_parity_row_of_every_precision_asked_for(made: tuple[Path, str]) -> None:
    manifest = read_bundle(made[0]).manifest
    rows = {row["precision"]: row for row in manifest.parity["rows"]}
    assert set(rows) == set(WANTED)
    assert manifest.parity["limits"]["int8"]["flips"] == parity.MAX_FLIPS["int8"]
    assert rows[manifest.precision]["passed"]
    assert rows[manifest.precision]["bytes"] == manifest.files["model.onnx"].bytes
    assert (manifest.parity["photos"], manifest.parity["triplets"]) == (48, packaging.PARITY_TRIPLETS)
    assert [line.split()[0] for line in made[1].splitlines()[1:]] == [p for p in PRECISIONS if p in WANTED]


def test_the_bundle_is_of_the_first_precision_asked_for_that_passed(
    made: tuple[Path, str], tiny_run: Run, tmp_path: Path
) -> None:
    first = read_bundle(made[0]).manifest
    passed = [row["precision"] for row in first.parity["rows"] if row["passed"]]
    assert first.precision == next(precision for precision in WANTED if precision in passed) != "fp32"
    target, golden = tmp_path / "b", golden_of(tiny_run)
    other, _ = package_run(tiny_run.folder, tiny_run.data, target, precisions=("fp32", *WANTED), golden_photos=golden)
    assert other.manifest.precision == "fp32"
    assert other.manifest.spaces["aligned"].fingerprint != first.spaces["aligned"].fingerprint


def test_the_manifest_holds_every_figure_of_the_run_with_its_command(made: tuple[Path, str], tiny_run: Run) -> None:
    figures = json.loads((tiny_run.folder / "figures.json").read_text())["figures"]
    got = read_bundle(made[0]).manifest.figures
    assert len(got) == len(figures) > 10
    for mine, theirs in zip(got, figures, strict=True):
        for key, value in theirs.items():
            assert getattr(mine, key) == value
        assert mine.command == "python -m training run tiny --data DATA --out RUN"


def test_both_spaces_are_calibrated_with_the_temperatures_of_the_run(made: tuple[Path, str], tiny_run: Run) -> None:
    temperature = json.loads((tiny_run.folder / "figures.json").read_text())["temperature"]
    spaces = read_bundle(made[0]).manifest.spaces
    assert {name: space.temperature for name, space in spaces.items()} == temperature
    assert {name: space.similarity for name, space in spaces.items()} == KERNEL
    assert {name: space.size for name, space in spaces.items()} == {"aligned": 8, "base": 64}
    for space in spaces.values():
        assert space.calibrated
        assert "held-out" in space.calibrated_on and "2 splits" in space.calibrated_on


def test_the_manifest_says_what_the_model_was_trained_from(made: tuple[Path, str], tiny_run: Run) -> None:
    manifest = read_bundle(made[0]).manifest
    assert manifest.training["recipe"]["align"]["steps"] == TINY.align.steps
    assert manifest.training["inputs"]["images.csv"] == sha256_of(tiny_run.data / "images.csv")
    assert manifest.base_model == tiny_encoder().base_model
    assert manifest.name == TINY.name
    assert all({"name", "source", "license"} == set(entry) for entry in manifest.training["data"])


@pytest.mark.parametrize("name", ["recipe.json", "transform.npz", "figures.json"])
def test_an_incomplete_run_is_refused_with_what_it_lacks(tiny_run: Run, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ValueError, match=f"run lacks {name}; finish it with `python -m training run` first"):
        package_run(tmp_path / "run", tiny_run.data, tmp_path / "b", precisions=("fp32",), golden_photos=())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def packaged(run: Run, target: Path, **options: Any) -> Bundle:
    given: dict[str, Any] = {"precisions": ("fp32",), "golden_photos": golden_of(run)} | options
    return package_run(run.folder, run.data, target, **given)[0]


def test_an_existing_target_is_refused_and_left_as_it_is(tiny_run: Run, tmp_path: Path, quick: None) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="b exists; remove it or choose another folder"):
        packaged(tiny_run, tmp_path / "b")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["b", "b/mine.txt"]


def test_without_a_precision_that_passes_there_is_no_bundle_but_a_report(
    tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MAX_FLIPS", dict.fromkeys(PRECISIONS, -1.0))
    with pytest.raises(ParityError, match=r"no precision of fp32 passes the parity gate:\nprecision.*\nfp32 .*False"):
        packaged(tiny_run, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda folder, figures: figures["temperature"].update(aligned=-1.0), ValueError),
        (lambda folder, figures: figures["temperature"].pop("aligned"), ValueError),
        (lambda folder, figures: figures["figures"][0].update(value=[1]), BundleError),
    ],
    ids=["temperature below 0", "no temperature", "no number"],
)
def test_a_run_that_makes_no_bundle_leaves_nothing_behind(
    tiny_run: Run, tmp_path: Path, quick: None, spoil: Callable[[Path, Any], Any], error: type[Exception]
) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    figures = json.loads((tmp_path / "run/figures.json").read_text())
    spoil(tmp_path, figures)
    (tmp_path / "run/figures.json").write_text(json.dumps(figures))
    with pytest.raises(error):
        packaged(Run(tiny_run.data, tmp_path / "run"), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_precision_that_overflows_does_not_keep_another_from_leaving(
    tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(source: Path, target: Path, *_: Any) -> None:
        model = onnx.load(str(source))
        for tensor in model.graph.initializer:
            if tuple(tensor.dims) == (8, 64, 1, 1):
                tensor.CopyFrom(numpy_helper.from_array(np.full((8, 64, 1, 1), np.inf, np.float32), tensor.name))
        onnx.save(model, str(target))

    monkeypatch.setattr(packaging, "PRECISIONS", ("fp32", "fp16"))
    monkeypatch.setattr(packaging, "convert", overflow)
    monkeypatch.setattr(parity, "MAX_COSINE", {"fp32": 9.0, "fp16": 1e-3})
    monkeypatch.setattr(parity, "MAX_FLIPS", {"fp32": 1.0, "fp16": 0.002})
    manifest = packaged(tiny_run, tmp_path / "b", precisions=("fp16", "fp32")).manifest
    assert manifest.precision == "fp32"
    assert [row["passed"] for row in manifest.parity["rows"]] == [True, False]


def test_parity_and_calibration_photos_are_different_ones(tiny_run: Run) -> None:
    photos, options = read_photos(tiny_run.data / "images.csv", CONCEPTS), PackageOptions(precisions=("fp32",))
    pixels, calibration = packaging._sample_pixels(photos, tiny_encoder().pixels, options)
    assert (len(pixels), len(calibration)) == (48, 8)
    together = [image.tobytes() for image in (*pixels, *calibration)]
    assert len(set(together)) == 56


def test_too_few_photos_for_parity_are_counted(
    tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "PARITY_PHOTOS", 600)
    with pytest.raises(ValueError, match="68"):
        packaged(tiny_run, tmp_path / "b")


def test_golden_images_are_small_lossless_and_of_the_photos_asked_for(made: tuple[Path, str], tiny_run: Run) -> None:
    images = read_bundle(made[0]).golden.images
    assert all(image.startswith(b"\x89PNG") for image in images)
    for image, photo in zip(images, golden_of(tiny_run), strict=True):
        spec = tiny_encoder().pixels
        same = load_pixels(image, spec), load_pixels(photo.read_bytes(), spec)
        assert np.array_equal(*same)  # 16 x 16: nothing had to shrink


# --- the command line --------------------------------------------------------------------------


def main_with(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    command_line.main()


def test_the_command_prints_the_report_and_the_space(
    tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "b"
    main_with(
        monkeypatch,
        "bundle",
        tiny_run.folder,
        "--data",
        tiny_run.data,
        "--out",
        target,
        "--precision",
        "fp32",
        "--golden",
        *golden_of(tiny_run),
    )
    out = capsys.readouterr().out
    assert out.startswith("precision ")
    assert f"{target}: fp32, " in out
    assert read_bundle(target).manifest.spaces["aligned"].fingerprint in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "data"}, "data lacks recipe.json"),
        ({"run": "nowhere"}, "nowhere is no run folder; a model needs --images"),
        ({"--data": "nowhere"}, "images.csv"),
        ({"--golden": "gone.png"}, "gone.png"),
        ({"--golden": "notes.txt"}, "notes.txt"),
    ],
)
def test_the_command_exits_1_with_the_fault(
    tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "data").mkdir()
    golden = golden_of(tiny_run)[0]
    given = {"run": tiny_run.folder, "--data": tiny_run.data, "--out": tmp_path / "b", "--golden": golden}
    run, *rest = (given | {key: tmp_path / value for key, value in change.items()}).items()
    with pytest.raises(SystemExit) as stopped:
        main_with(monkeypatch, "bundle", run[1], *(part for pair in rest for part in pair))
    assert str(stopped.value.code).startswith("error: ")
    assert message in str(stopped.value.code)
    assert not (tmp_path / "b").exists()


def test_dimensions_get_the_names_of_a_file(
    made: tuple[Path, str], tiny_run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = read_bundle(made[0]).manifest.spaces
    names, file, target = [f"thing {i}" for i in range(spaces["aligned"].size)], tmp_path / "names.txt", tmp_path / "b"
    given = ("bundle", tiny_run.folder, "--data", tiny_run.data, "--precision", "fp32", "--dimensions", file)

    def refused(text: str) -> str:
        file.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main_with(monkeypatch, *given, "--out", target)
        assert not target.exists()
        return str(stopped.value.code)

    assert f"{len(names) - 1} names of dimensions" in refused("\n".join(names[1:]))
    assert "line 3 is 'thing 0', which line 1 has too" in refused("\n".join([*names[:2], names[0], *names[3:]]))
    assert "line 2 is empty" in refused("a\n\nb\n")
    file.write_text("\r\n".join(names) + "\n\n")
    main_with(monkeypatch, *given, "--out", target)
    named = read_bundle(target).manifest.spaces
    assert named["aligned"].dimensions == tuple(names)
    assert "base" not in named or named["base"].dimensions == ()


def test_data_that_the_run_was_not_trained_on_are_refused(tiny_run: Run, tmp_path: Path, quick: None) -> None:
    shutil.copytree(tiny_run.data, tmp_path / "data")
    with (tmp_path / "data/images.csv").open("a") as stream:
        stream.write("images/none-0.png,imagenet,nothing,,\n")
    with pytest.raises(ValueError, match=r"\['images.csv'\] are not the files"):
        package_run(
            tiny_run.folder, tmp_path / "data", tmp_path / "b", precisions=("fp32",), golden_photos=golden_of(tiny_run)
        )


def test_a_student_becomes_a_bundle_with_one_space(tiny_run: Run, tmp_path: Path) -> None:
    recipe, run = replace(STUDENT, split_seeds=(0,)), tmp_path / "student"
    run_students(recipe, tiny_run.folder, tiny_run.data, run)
    with pytest.raises(ValueError, match=r"lacks final/weights.safetensors.*--final"):
        package_run(run, tiny_run.data, tmp_path / "out", precisions=WANTED, golden_photos=golden_of(tiny_run))
    run_students(recipe, tiny_run.folder, tiny_run.data, run, final=True)
    bundle, _ = package_run(
        run, tiny_run.data, tmp_path / "out", precisions=("fp32",), golden_photos=golden_of(tiny_run)
    )
    manifest = read_bundle(bundle.path).manifest
    assert list(manifest.spaces) == ["aligned"] and manifest.name == "tiny-student"
    student = tiny_encoder()
    load_weights(student, run / "final/weights.safetensors")
    expected = features_of(student, torch.from_numpy(bundle.golden.pixels)).numpy()
    np.testing.assert_allclose(bundle.golden.vectors["aligned"], expected, rtol=1e-3, atol=1e-5)
    assert {figure.space for figure in manifest.figures} == {"aligned", "base"}
