"""A run end to end: every figure, nothing twice, nothing mixed, nothing leaked; and its command line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import triplets
from tests.training.tiny import CONCEPTS, TINY, TINY_MODEL, write_photo, write_rows, write_tiny_data
from training import __main__ as command_line
from training import run as stages
from training.align import Transform, uncertainty_distillation
from training.models import MODELS
from training.people import POSTERIOR
from training.run import read_data, run, split_concepts, two_animals_and_a_vehicle
from training.things import read_vice

ON_BOTH_SPACES = {
    "agreement with VICE's most likely choice",
    "RSA with VICE",
    "entropy correlation with VICE",
    "KL from VICE's posterior",
    "Caltech-101 1-NN, classes not trained on",
    "two animals and a vehicle: the vehicle is odd",
    "two animals and a vehicle: probability of the vehicle",
    "agreement with single human responses",
    "Caltech-101 1-NN",
}


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(data folder, run folder) of one finished run; tests copy what they change."""
    root = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY_MODEL)
        run(TINY, write_tiny_data(root / "data"), root / "run")
    yield root / "data", root / "run"


@pytest.fixture
def mine(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `finished` that the test may spoil."""
    for folder in finished:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "data", tmp_path / "run"


def counted(monkeypatch: pytest.MonkeyPatch, dies_at: int = 1000) -> list[str]:
    """What is distilled from now on, by name; the process is killed at the `dies_at`-th."""
    done: list[str] = []

    def distil(*args: Any, description: str, **options: Any) -> Transform:
        if len(done) + 1 == dies_at:
            raise KeyboardInterrupt
        done.append(description)
        return uncertainty_distillation(*args, description=description, **options)

    monkeypatch.setattr(stages, "uncertainty_distillation", distil)
    return done


def test_a_run_measures_every_figure_on_both_spaces(finished: tuple[Path, Path]) -> None:
    figures = json.loads((finished[1] / "figures.json").read_text())
    for space in ("base", "aligned"):
        mine = [figure for figure in figures["figures"] if figure["space"] == space]
        assert sorted(figure["name"] for figure in mine) == sorted(ON_BOTH_SPACES)
        for figure in mine:
            assert np.isfinite([figure["value"], figure["low"], figure["high"]]).all()
            assert figure["low"] <= figure["high"]
            assert figure["n"] > 0
            assert figure["unit"] and figure["note"]
    assert set(figures["temperature"]) == {"base", "aligned"}
    assert all(0 < t < 1e3 for t in figures["temperature"].values())


def test_a_run_writes_the_files_that_its_docstring_lists(finished: tuple[Path, Path]) -> None:
    out = finished[1]
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    splits = {f"splits/seed-{seed}.npz" for seed in TINY.split_seeds}
    human = {"human/without-0-1-2.npz", "human/without-4-5-7.npz"}
    features = {f"features/{name}" for name in ("identity.json", "features.npy", "names.txt", "index.json")}
    assert files == {"recipe.json", "figures.json", "transform.npz"} | splits | human | features
    assert Transform.load(out / "transform.npz").weights.shape == (64, TINY.align.components)


def test_the_record_holds_the_recipe_the_inputs_and_the_versions(finished: tuple[Path, Path]) -> None:
    record = json.loads((finished[1] / "recipe.json").read_text())
    assert record["recipe"]["align"]["steps"] == TINY.align.steps
    assert set(record["inputs"]) == set(stages.INPUTS) - {POSTERIOR}  # there is a published embedding
    assert all(len(digest) == 64 for digest in record["inputs"].values())
    assert set(record["versions"]) >= {"python", "numpy", "torch", "pillow"}


def test_running_again_computes_nothing_again(
    mine: tuple[Path, Path], finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(stages, "uncertainty_distillation", refuse)
    monkeypatch.setattr("training.embed.features_of", refuse)
    again = run(TINY, *mine)
    assert again == json.loads((finished[1] / "figures.json").read_text())


def test_a_run_killed_between_stages_goes_on_and_ends_with_the_same_figures(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = counted(monkeypatch, dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, finished[0], tmp_path / "run")
    assert done == ["align seed-0", "align seed-1"]
    assert not (tmp_path / "run/figures.json").exists()
    rest = counted(monkeypatch)
    run(TINY, finished[0], tmp_path / "run")
    assert rest == ["align transform", "align without-0-1-2", "align without-4-5-7"]
    assert (tmp_path / "run/figures.json").read_bytes() == (finished[1] / "figures.json").read_bytes()


def test_a_lost_split_is_learned_again_alone_and_gives_the_same_figures(
    mine: tuple[Path, Path], finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine[1] / "splits/seed-1.npz").unlink()
    done = counted(monkeypatch)
    run(TINY, *mine)
    assert done == ["align seed-1"]
    assert (mine[1] / "figures.json").read_bytes() == (finished[1] / "figures.json").read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"draws": 3}, {"align": replace(TINY.align, steps=21)}])
def test_a_folder_of_another_recipe_is_refused(mine: tuple[Path, Path], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"recipe\.json was made with another recipe; remove it or choose another"):
        run(replace(TINY, **change), *mine)


@pytest.mark.parametrize("name", ["images.csv", "things/concepts.csv", "things/human_test_responses.csv"])
def test_a_folder_of_other_inputs_is_refused(mine: tuple[Path, Path], name: str) -> None:
    lines = (mine[0] / name).read_text().splitlines()
    (mine[0] / name).write_text("\n".join([*lines, lines[-1]]) if "concepts" not in name else "\n".join(lines))
    with pytest.raises(ValueError, match="was made with another inputs"):
        run(TINY, *mine)


def test_photos_of_held_out_concepts_never_reach_the_transform_that_is_judged_on_them(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    _, held_out = split_concepts(np.arange(CONCEPTS), TINY.held_out, seed=0)
    assert 2 in held_out  # and it stands in the human triplet 0, 1, 2
    run(TINY, write_tiny_data(tmp_path / "data", repainted=[2]), tmp_path / "run")
    for name, blind in (("splits/seed-0", True), ("human/without-0-1-2", True), ("transform", False)):
        ours, theirs = (Transform.load(out / f"{name}.npz") for out in (tmp_path / "run", finished[1]))
        assert np.array_equal(ours.weights, theirs.weights) == blind, name
        assert np.array_equal(ours.mean, theirs.mean) == blind, name


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_a_split_is_a_partition_of_the_asked_size(fraction: float) -> None:
    concepts = np.array([3, 5, 8, 13, 21, 34, 55, 89, 144, 233])
    train, held_out = split_concepts(concepts, fraction, seed=0)
    assert len(held_out) == round(10 * fraction)
    assert sorted([*train, *held_out]) == concepts.tolist()
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_splits_are_random_by_their_seed() -> None:
    first, again, other = (split_concepts(np.arange(40), 0.5, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_two_animals_come_first_and_the_vehicle_last(finished: tuple[Path, Path]) -> None:
    data = read_data(finished[0])
    vehicle = data.photos.concept % 2  # odd concepts are vehicles
    by_kind, constant = np.eye(2, dtype=np.float32)[vehicle], np.ones((len(vehicle), 2), np.float32)
    noise = np.random.default_rng(0).normal(size=(len(vehicle), 50)).astype(np.float32)
    for vectors, expected, within in ((by_kind, 1, 0), (constant, 0, 0), (noise, 1 / 3, 0.1)):
        sims = two_animals_and_a_vehicle(data, vectors, range(8), "dot", seed=0)
        assert sims.shape == (2000, 3)
        assert (triplets.odd_one_out(sims) == 2).mean() == pytest.approx(expected, abs=within)


def test_the_two_animals_are_different_ones_of_the_concepts_asked_for(finished: tuple[Path, Path]) -> None:
    data = read_data(finished[0])
    one_hot = np.eye(CONCEPTS, dtype=np.float32)[np.maximum(data.photos.concept, 0)]
    assert two_animals_and_a_vehicle(data, one_hot, range(8), "dot", seed=0).max() == 0  # no concept meets itself
    outside = np.where(data.photos.concept[:, None] < 8, 0.0, np.nan) * one_hot
    assert np.isfinite(two_animals_and_a_vehicle(data, outside, range(8), "dot", seed=0)).all()


@pytest.mark.parametrize(("concepts", "found"), [([0, 1, 3], "1 animals and 2"), ([0, 2, 4], "3 animals and 0")])
def test_too_few_animals_or_vehicles_are_counted(finished: tuple[Path, Path], concepts: list[int], found: str) -> None:
    data = read_data(finished[0])
    with pytest.raises(ValueError, match=f"{found} vehicles; expected at least two and one"):
        two_animals_and_a_vehicle(data, np.ones((len(data.photos), 2), np.float32), concepts, "dot", seed=0)


def test_concepts_and_vice_of_different_lengths_are_refused(mine: tuple[Path, Path]) -> None:
    file = mine[0] / "things/concepts.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=f"{CONCEPTS - 1} concepts, but VICE has {CONCEPTS} rows"):
        read_data(mine[0])


def test_a_concepts_file_without_categories_is_refused_by_name(mine: tuple[Path, Path]) -> None:
    write_rows(mine[0] / "things/concepts.csv", [["things_index"], *([c] for c in range(CONCEPTS))])
    with pytest.raises(ValueError, match=r"concepts\.csv.*categories"):
        read_data(mine[0])


def test_data_without_human_triplets_gives_all_other_figures(mine: tuple[Path, Path], tmp_path: Path) -> None:
    header = ["concept_0", "concept_1", "concept_2", "odd_position"]
    write_rows(mine[0] / "things/human_test_responses.csv", [header])
    figures = run(replace(TINY, split_seeds=(0,)), mine[0], tmp_path / "other")
    assert {figure["name"] for figure in figures["figures"]} == ON_BOTH_SPACES - {
        "agreement with single human responses"
    }


def test_human_responses_are_judged_in_the_order_they_saw_by_the_transform_that_has_not_seen_them(
    finished: tuple[Path, Path],
) -> None:
    data, features = read_data(finished[0]), np.load(finished[1] / "features/features.npy")
    base, aligned = stages._human(replace(TINY, draws=400), data, features, finished[1])
    for figure, is_aligned in ((base, False), (aligned, True)):
        hits = []
        for concepts, odd in zip(data.responses.concepts, data.responses.odd, strict=True):
            name = "-".join(map(str, sorted(concepts)))
            x = Transform.load(finished[1] / f"human/without-{name}.npz").apply(features) if is_aligned else features
            every = np.array(list(product(*map(data.photos.of_concept, concepts))))
            sims = triplets.pair_similarities(x[every].astype(np.float64), "dot" if is_aligned else "cosine")
            hits.append((triplets.odd_one_out(sims) == odd).mean())
        assert figure["n"] == 5
        assert figure["value"] == pytest.approx(np.mean(hits), abs=0.03)
    assert "2 of the" in aligned["note"]


def test_neighbours_are_sought_among_caltech_photos_in_each_space(finished: tuple[Path, Path]) -> None:
    data = read_data(finished[0])
    labels = sorted(set(data.photos.label))
    perfect = np.eye(len(labels), dtype=np.float32)[[labels.index(label) for label in data.photos.label]]
    base, aligned = stages._shipped(data, np.random.default_rng(0).normal(size=(68, 3)).astype(np.float32), perfect)
    assert (base["space"], aligned["space"]) == ("base", "aligned")
    assert base["value"] < 0.5
    assert base["n"] == aligned["n"] == data.photos.dataset.count("caltech101") == 48
    assert aligned["value"] == pytest.approx(32 / 48)  # 16 concepts have one Caltech photo, and so no neighbour


def test_the_transform_that_is_exported_is_the_one_measured_last(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []

    def shipped(*given: Any) -> list[Any]:
        measured.extend(given)
        return []

    monkeypatch.setattr(stages, "_shipped", shipped)
    run(TINY, *mine)
    _, features, vectors = measured
    assert np.array_equal(vectors, Transform.load(mine[1] / "transform.npz").apply(features))


def test_neighbours_of_a_split_are_sought_for_classes_not_trained_on(finished: tuple[Path, Path]) -> None:
    data, figures = read_data(finished[0]), json.loads((finished[1] / "figures.json").read_text())["figures"]
    concept = data.photos.concept[np.array(data.photos.dataset) == "caltech101"]
    trained = [split_concepts(data.photos.concepts, TINY.held_out, seed)[0] for seed in TINY.split_seeds]
    expected = np.mean([np.count_nonzero(~np.isin(concept, train)) for train in trained])
    (n, other_n) = (f["n"] for f in figures if f["name"] == "Caltech-101 1-NN, classes not trained on")
    assert n == other_n == round(expected) < 48


# --- the command line --------------------------------------------------------------------------


def main_with(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    command_line.main()


def test_the_command_prints_each_figure_with_its_interval(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.recipes.starter.RECIPE", TINY)
    main_with(monkeypatch, "run", "starter", "--data", mine[0], "--out", mine[1])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(ON_BOTH_SPACES)
    for name in ON_BOTH_SPACES:
        assert sum(name in line for line in lines) >= 2


def test_the_command_exits_1_with_the_fault_on_bad_data(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    vice = read_vice(data / "things/vice_embedding.npy")
    np.save(data / "things/vice_embedding.npy", vice - 1)
    command = [sys.executable, "-m", "training", "run", "starter", "--data", str(data), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "vice_embedding.npy is (24, 3); expected a finite, non-negative matrix" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: shutil.rmtree(data), "things/concepts.csv"),
        (lambda data: (data / "images.csv").unlink(), "images.csv"),
        (lambda data: (data / "images/3-0.png").unlink(), "1 of 68 files do not exist"),
        (lambda data: (data / "images/3-0.png").write_bytes(b"no photo"), "3-0.png"),
    ],
    ids=["no folder", "no manifest", "no photo", "broken photo"],
)
def test_the_command_names_what_is_wrong_with_the_data(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.setattr("training.recipes.starter.RECIPE", TINY)
    spoil(mine[0])
    with pytest.raises(SystemExit) as stopped:
        main_with(monkeypatch, "run", "starter", "--data", mine[0], "--out", mine[0].parent / "new")
    assert str(stopped.value.code).startswith("error: ")
    assert message in str(stopped.value.code)


def test_the_command_reports_a_diverging_recipe_without_a_traceback(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> Transform:
        raise FloatingPointError("the loss is nan at step 3; lower the learning rate.")

    monkeypatch.setattr("training.recipes.starter.RECIPE", TINY)
    monkeypatch.setattr(stages, "uncertainty_distillation", diverge)
    with pytest.raises(SystemExit, match="error: the loss is nan at step 3"):
        main_with(monkeypatch, "run", "starter", "--data", mine[0], "--out", mine[0].parent / "new")


def test_an_unknown_recipe_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main_with(monkeypatch, "run", "nonesuch", "--data", "x", "--out", "y")
    assert stopped.value.code == 2
    assert "starter" in capsys.readouterr().err


def test_a_photo_repainted_after_the_run_is_noticed(mine: tuple[Path, Path]) -> None:
    write_photo(mine[0] / "images/5-0.png", (1, 1, 1), seed=1)
    with pytest.raises(ValueError, match="was made with another images"):
        run(TINY, *mine)
