"""`python -m training transform`: the layouts it reads, what it writes, and what it refuses."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import stage, transform_stage
from training.__main__ import main
from training.align import Transform
from training.transform_stage import Legacy, read_transform

WIDTH = 4
RNG = np.random.default_rng(0)
FEATURES = (2.5 * RNG.normal(size=(50, WIDTH)) + 1).astype(np.float32)
W, B = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32), RNG.normal(size=WIDTH).astype(np.float32)
EXPECTED = (FEATURES - 1) / 2.5 @ W + B
MEAN, STD = np.float32(1), np.float32(2.5)


def write(folder: Path, features: Any = FEATURES, **arrays: Any) -> None:
    np.save(folder / "features.npy", features)
    np.savez(folder / "transform.npz", **({"weights": W, "bias": B, "mean": MEAN, "std": STD} | arrays))


def transform(folder: Path, *more: str, file: str = "transform.npz") -> Any:
    given = {"features": "features.npy", "transform": file, "out": "out"}
    main(["transform", *(part for name, path in given.items() for part in (f"--{name}", f"{folder}/{path}")), *more])
    return np.load(folder / "out/aligned.npy", mmap_mode="r")


def test_a_published_transform_is_applied_block_by_block_to_a_file_that_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "BLOCK", 7 * WIDTH * 4)  # the last block is short
    write(tmp_path)
    aligned = transform(tmp_path)
    assert isinstance(aligned, np.memmap)
    assert (aligned.dtype, aligned.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(aligned, EXPECTED, atol=1e-5)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["width"]) == (50, [WIDTH, WIDTH])
    assert summary["standardised"]["std"] == pytest.approx(((FEATURES - 1) / 2.5).std(dtype=np.float64))
    assert summary["standardised"]["mean"] == pytest.approx(((FEATURES - 1) / 2.5).mean(dtype=np.float64))
    assert stage.read_features(tmp_path / "out/aligned.npy")[0].shape == (50, WIDTH)


def test_our_own_transform_with_a_power_is_applied(tmp_path: Path) -> None:
    own = Transform(W, B, np.full(WIDTH, 0.5, np.float32), np.array(0.2, np.float32), np.array(0.4, np.float32))
    write(tmp_path, np.abs(FEATURES))
    own.save(tmp_path / "transform.npz")
    np.testing.assert_allclose(transform(tmp_path), own.apply(np.abs(FEATURES)), atol=1e-6)


def test_a_file_without_a_bias_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", FEATURES)
    np.savez(tmp_path / "transform.npz", weights=W, mean=np.float64(1), std=np.float64(2.5))
    np.testing.assert_allclose(transform(tmp_path), EXPECTED - B, atol=1e-5)


def test_a_second_call_does_nothing_again_and_other_features_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    transform(tmp_path)
    monkeypatch.setattr(transform_stage, "_write_aligned", None)
    transform(tmp_path)
    np.save(tmp_path / "features.npy", FEATURES + 1)
    with pytest.raises(SystemExit, match=r"error: .*identity\.json was made with another inputs"):
        transform(tmp_path)


def test_features_of_another_scale_are_worth_a_warning(tmp_path: Path) -> None:
    write(tmp_path, FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True))
    with pytest.warns(UserWarning, match=r"features\.npy has mean -0\.\d+ and deviation 0\.\d+, not 0 and 1"):
        transform(tmp_path)


@pytest.mark.parametrize(
    ("features", "arrays", "message"),
    [
        (FEATURES[:, 1:].copy(), {}, r"features\.npy is \(50, 3\); .*transform\.npz maps 4 features a row"),
        (FEATURES.astype(np.float64), {}, r"features\.npy is float64 \(50, 4\); expected C-ordered float32"),
        (np.where(np.arange(200).reshape(50, 4) == 9, np.nan, FEATURES), {}, r"features\.npy, row 2: a feature is not"),
        (FEATURES, {"power": np.float32(0.5)}, r"features\.npy, rows 0 to 49: features are negative somewhere"),
        (FEATURES, {"weights": W * np.nan}, r"transform\.npz: \['weights'\] hold a value that is not finite"),
        (FEATURES, {"weights": np.full_like(W, 3e38)}, r"features\.npy, row \d+: it is not finite aligned"),
        (
            FEATURES,
            {"bias": np.array([{"a": 1}], object)},
            r"transform\.npz is no \.npz of plain arrays: Object arrays",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_what_does_not_fit_is_refused_by_file_and_row(
    tmp_path: Path, features: Any, arrays: dict[str, Any], message: str
) -> None:
    write(tmp_path, features, **arrays)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        transform(tmp_path)
    assert not (tmp_path / "out/aligned.npy").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY", b"weights: 1"])
def test_a_file_of_another_kind_is_no_transform(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "transform.npz").write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*transform\.npz is no \.npz of plain arrays"):
        transform(tmp_path)


# --- gLocal's DINOv2-B, and the legacy pickle -------------------------------------------------


def test_the_dino_file_is_refused_under_the_name_of_dinov2_and_worth_a_warning_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("dinov2-vit-base-p14", "dino-vit-base-p16"):
        (tmp_path / model).mkdir()
        write(tmp_path / model)
    monkeypatch.setattr(
        transform_stage,
        "DINO_IN_PLACE_OF_DINOV2",
        transform_stage.sha256_of(tmp_path / "dino-vit-base-p16/transform.npz"),
    )
    with pytest.raises(ValueError, match="for DINOv2 it is wrong"):
        read_transform(tmp_path / "dinov2-vit-base-p14/transform.npz")
    with pytest.warns(UserWarning, match="it is right for DINO only"):
        assert read_transform(tmp_path / "dino-vit-base-p16/transform.npz").weights.shape == (WIDTH, WIDTH)


ENTRY = ["--entry", "custom", "clip_ViT-L/14", "visual", "--mean", "1", "--std", "2.5"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_legacy_pickle_of_arrays_is_read(tmp_path: Path, protocol: int, with_bias: bool) -> None:
    np.save(tmp_path / "features.npy", FEATURES)
    matrix = np.concatenate([W, B[:, None]], 1) if with_bias else W
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"custom": {"clip_ViT-L/14": {"visual": matrix}}}, protocol))
    np.testing.assert_allclose(transform(tmp_path, *ENTRY, file="t.pkl"), EXPECTED - (not with_bias) * B, atol=1e-5)


class Evil:
    """What a hostile file would hold: a call on loading."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self._file,)


def test_a_pickle_that_holds_anything_else_is_refused_before_it_runs(tmp_path: Path) -> None:
    for harm in (Evil(tmp_path / "harm"), eval, np.load, [Path("x")]):
        (tmp_path / "t.pkl").write_bytes(pickle.dumps({"custom": {"m": {"l": harm}}}))
        with pytest.raises(ValueError, match=r"t\.pkl is not read: it holds .*only numpy arrays are read"):
            read_transform(tmp_path / "t.pkl", Legacy(("custom", "m", "l"), 0.0, 1.0))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("entry", "std", "message"),
    [
        (("custom", "m", "other"), 1.0, r"expected 'other' among \['l', 'scalar', 'slim', 'text'\]"),
        (("custom", "n", "l"), 1.0, r"expected 'n' among \['m'\]"),
        (("custom", "m", "slim"), 1.0, r"is \(4, 2\); expected finite \[p, p\] or \[p, p \+ 1\]"),
        (("custom", "m", "text"), 1.0, "is no floating-point matrix"),
        (("custom", "m", "scalar"), 1.0, "is no floating-point matrix"),
        (("custom", "m", "l"), 0.0, "mean is 0.0, std 0.0; expected finite, and std above 0"),
    ],
)
def test_a_legacy_entry_that_cannot_be_is_refused(
    tmp_path: Path, entry: tuple[str, str, str], std: float, message: str
) -> None:
    layers = {"l": W, "slim": W[:, :2], "text": np.array([["a"]]), "scalar": 3.0}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"custom": {"m": layers}}))
    with pytest.raises(ValueError, match=message):
        read_transform(tmp_path / "t.pkl", Legacy(entry, 0.0, std))


def test_pickles_and_npz_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t.npz").write_bytes(pickle.dumps({}))
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"custom": W})[:-30])
    with pytest.raises(SystemExit, match=r"t\.npz is a pickle; say which --entry"):
        transform(tmp_path, file="t.npz")
    with pytest.raises(SystemExit, match=r"transform\.npz is no pickle; it has no --entry"):
        transform(tmp_path, *ENTRY)
    with pytest.raises(SystemExit, match=r"cut\.pkl is not read"):
        transform(tmp_path, *ENTRY, file="cut.pkl")
    with pytest.raises(SystemExit, match="--entry, --mean and --std belong together"):
        transform(tmp_path, "--mean", "1")
