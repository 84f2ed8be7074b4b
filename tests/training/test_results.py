"""The page of results: only what runs hold, the same bytes for the same runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.test_student import RECIPE
from tests.training.tiny import CONCEPTS, TINY, TINY_MODEL, write_tiny_data
from training import results
from training.models import MODELS
from training.results import compare, read_run, write_results
from training.run import read_data, run
from training.student import StudentRecipe, run_students

OTHER = replace(RECIPE, name="tiny-untransformed", target="untransformed", split_seeds=(1,))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], Path]:
    """(two run folders, data)."""
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    monkeypatch.setattr(results, "recipes_of", lambda kind: {"tiny_student": RECIPE, "tiny_other": OTHER})
    data = write_tiny_data(tmp_path / "data")
    run(TINY, data, tmp_path / "teacher")
    recipes: dict[str, StudentRecipe] = {"main": RECIPE, "other": OTHER}
    for name, recipe in recipes.items():
        run_students(recipe, tmp_path / "teacher", data, tmp_path / name)
    return [tmp_path / name for name in recipes], data


def test_the_page_holds_the_figures_of_the_runs_and_is_the_same_twice(
    runs: tuple[list[Path], Path], tmp_path: Path
) -> None:
    page = write_results(*runs, tmp_path / "docs").read_text()
    value = read_run(runs[0][0], runs[1]).figures["models"]["student"]["agreement with VICE"]["value"]
    assert "| agreement with VICE | " in page and f"{value:.3f} [" in page
    assert f"splits 0, 1: {CONCEPTS} judged in all" in page  # half of the concepts in each of two splits
    assert "tiny-untransformed" in page and "training run tiny_other" in page
    plots = {file.name: file.read_bytes() for file in (tmp_path / "docs/results").glob("*.svg")}
    assert set(plots) == {"models.svg", "runs.svg", "curves.svg"}
    write_results(*runs, tmp_path / "docs")
    assert plots == {file.name: file.read_bytes() for file in (tmp_path / "docs/results").glob("*.svg")}


def test_a_run_differs_from_itself_by_nothing_and_two_are_paired_on_common_splits(
    runs: tuple[list[Path], Path],
) -> None:
    main, other = (read_run(folder, runs[1]) for folder in runs[0])
    data = read_data(runs[1])
    for estimate in compare(main, main, data).values():
        assert estimate["value"] == estimate["low"] == estimate["high"] == 0
    forth, back = compare(main, other, data), compare(other, main, data)
    assert all(forth[name]["value"] == pytest.approx(-back[name]["value"], abs=0.02) for name in forth)


def test_a_run_from_before_a_field_was_there_is_its_recipes_run_while_the_default_holds(
    runs: tuple[list[Path], Path],
) -> None:
    file = runs[0][0] / "recipe.json"
    stored = json.loads(file.read_text())
    del stored["student"]["distill"]["neighbours"]
    file.write_text(json.dumps(stored))
    assert read_run(runs[0][0], runs[1]).recipe == RECIPE
    stored["student"]["distill"]["temperature"] = 7.5
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="does not hold in this state"):
        read_run(runs[0][0], runs[1])


def test_what_is_no_complete_run_of_a_known_recipe_is_refused(
    runs: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no complete run"):
        read_run(tmp_path / "teacher/splits", runs[1])
    monkeypatch.setattr(results, "recipes_of", lambda kind: {})
    with pytest.raises(ValueError, match="'tiny-student' that training/recipes"):
        read_run(runs[0][0], runs[1])
