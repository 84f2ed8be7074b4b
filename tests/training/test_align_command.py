"""`python -m training align`: what it learns and writes, held-out concepts, and faults with their file and row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.files import sha256_of
from tests.training.tiny import write_rows
from training.__main__ import main
from training.align import AlignConfig, Transform, uncertainty_distillation
from training.vice import Posterior

CONCEPTS, WIDTH = 30, 6
QUICK = ["--steps", "60", "--learning-rate", "0.02", "--triplets", "500", "--penalty", "0.01", "--noise", "0.1"]
CONFIG = AlignConfig(steps=60, learning_rate=0.02, triplets=500, penalty=0.01, noise=0.1)


def write_world(folder: Path) -> dict[str, Any]:
    """Two photos a concept and four without; people see the first two features."""
    rng = np.random.default_rng(0)
    vice = 2 * rng.random((CONCEPTS, 2)).astype(np.float32)
    concept = np.concatenate([np.repeat(np.arange(CONCEPTS), 2), [-1] * 4])
    loud = 3 * rng.normal(size=(len(concept), WIDTH - 2))
    features = np.concatenate([vice[concept], loud], 1).astype(np.float32)
    held_out = np.arange(20, CONCEPTS)
    arrays = {"features": features, "concepts": concept, "vice": vice, "held-out": held_out}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


def align(folder: Path, *more: str, **files: str) -> None:
    given = {"features": "features.npy", "concepts": "concepts.npy", "vice": "vice.npy", "out": "out"} | files
    options = [part for name, file in given.items() for part in (f"--{name}", f"{folder}/{file}")]
    main(["align", *options, *QUICK, *more])


def test_it_is_the_librarys_transform_and_judges_held_out_concepts_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = write_world(tmp_path)
    align(tmp_path, "--hold-out", f"{tmp_path}/held-out.npy", "--seed", "3")
    summary = json.loads(capsys.readouterr().out)
    expected = uncertainty_distillation(
        world["features"], world["concepts"], np.arange(20), world["held-out"], world["vice"], CONFIG, seed=3
    )
    np.testing.assert_array_equal(Transform.load(tmp_path / "out/transform.npz").weights, expected.weights)
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["concepts"], summary["concepts_held_out"], summary["photos_held_out"]) == (20, 10, 20)
    found = summary["agreement"]
    assert found["untransformed"]["value"] < 0.6 < found["aligned"]["value"]
    assert summary["inputs"]["vice"] == sha256_of(tmp_path / "vice.npy")


def test_photos_of_held_out_concepts_have_no_influence(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    learned = []
    for out in ("one", "two"):
        align(tmp_path, "--hold-out", f"{tmp_path}/held-out.npy", out=out)
        learned.append(Transform.load(tmp_path / out / "transform.npz").weights)
        world["features"][np.isin(world["concepts"], world["held-out"])] *= -5
        np.save(tmp_path / "features.npy", world["features"])
    assert np.array_equal(*learned)


def test_a_manifest_and_a_text_file_serve_as_well_as_arrays(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    cells = [["x.jpg", "" if c < 0 else c] for c in world["concepts"]]
    write_rows(tmp_path / "images.csv", [["path", "things_index"], *cells])
    (tmp_path / "held-out.txt").write_text("".join(f"{c}\n" for c in world["held-out"]))
    align(tmp_path, "--hold-out", f"{tmp_path}/held-out.npy", out="arrays")
    align(tmp_path, "--hold-out", f"{tmp_path}/held-out.txt", out="text", concepts="images.csv")
    a, b = (Transform.load(tmp_path / out / "transform.npz").weights for out in ("arrays", "text"))
    assert np.array_equal(a, b)


def test_a_posterior_gives_targets_from_its_pruned_samples(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    loc = np.concatenate([world["vice"] + 0.5, np.full((CONCEPTS, 1), -9.0, np.float32)], 1)  # the last is no dimension
    scale = np.full_like(loc, 0.2)
    Posterior(loc, scale).save(tmp_path / "parameters.npz")
    align(tmp_path, "--samples", "4", vice="parameters.npz")
    draws = Posterior(loc, scale).prune().draws(4, seed=0)
    vice = np.stack([z.numpy() for z in draws])
    assert vice.shape == (4, CONCEPTS, 2)
    none = np.empty(0, np.int64)
    expected = uncertainty_distillation(
        world["features"], world["concepts"], np.arange(CONCEPTS), none, vice, CONFIG, seed=0
    )
    np.testing.assert_array_equal(Transform.load(tmp_path / "out/transform.npz").weights, expected.weights)
    assert json.loads((tmp_path / "out/identity.json").read_text())["samples"] == 4


def test_a_second_call_learns_nothing_again_and_another_seed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_world(tmp_path)
    align(tmp_path)
    monkeypatch.setattr("training.align_stage.uncertainty_distillation", None)
    align(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*identity\.json was made with another seed"):
        align(tmp_path, "--seed", "1")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features", {(5, 2): np.nan}, r"features\.npy, row 5: a feature is not finite"),
        ("concepts", {3: CONCEPTS}, r"concepts\.npy, row 3: concept 30; expected 0 to 29\.$"),
        ("vice", {(2, 0): -1}, r"vice\.npy is .* expected a finite, non-negative matrix"),
        ("held-out", {0: CONCEPTS}, r"held-out\.npy, row 0: concept 30; expected 0 to 29"),
        ("held-out", {0: -1}, r"held-out\.npy, row 0: -1; expected 0 to 29"),
    ],
)
def test_a_faulty_value_is_named_with_its_file_and_row(
    tmp_path: Path, name: str, change: dict[Any, float], message: str
) -> None:
    array = write_world(tmp_path)[name]
    for place, value in change.items():
        array[place] = value
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        align(tmp_path, "--hold-out", f"{tmp_path}/held-out.npy")


def test_one_based_concepts_and_files_of_other_lengths_are_refused(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    np.save(tmp_path / "one-based.npy", np.where(world["concepts"] < 0, -1, world["concepts"] + 1))
    np.save(tmp_path / "short.npy", world["concepts"][1:])
    np.save(tmp_path / "halves.npy", world["concepts"] / 2)
    for file, message in (
        ("one-based.npy", r"one-based\.npy, row 58: concept 30; expected 0 to 29\. Is it 1-based\?"),
        ("short.npy", r"short\.npy has 63 rows, .*features\.npy 64"),
        ("halves.npy", r"halves\.npy is float64 \(64,\); expected whole numbers"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            align(tmp_path, concepts=file)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--components", "7"], "components is 7; the features have 6"),
        (["--power", "2"], "power is 2.0; expected at most 1"),
        (["--steps", "0"], "steps is 0; expected a finite number above 0"),
        (["--power", "0.5"], "features are negative somewhere"),
        (["--hold-out", "none.npy"], r"No such file.*none\.npy"),
    ],
)
def test_constants_that_cannot_be_are_refused(tmp_path: Path, option: list[str], message: str) -> None:
    write_world(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        align(tmp_path, *option)
