"""The student stage end to end on the tiny data: nothing of the held-out concepts is seen, and a rerun does nothing."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.tiny import TINY, TINY_MODEL, tiny_vit, write_tiny_data
from training import readout
from training import student as stage
from training.__main__ import main
from training.encoders import features_of
from training.feeds import FeedConfig
from training.loading import PixelLoader
from training.models import MODELS
from training.readout import ReadoutConfig
from training.recipes import recipes_of
from training.run import read_data, run, split_concepts
from training.student import StudentRecipe, run_students
from training.student_model import read_student
from training.trainer import DistillConfig

RECIPE = StudentRecipe(
    name="tiny-student",
    description="nothing real",
    teacher=TINY,
    model="tiny",
    side=8,
    clusters=4,
    feed=FeedConfig(batch=8, per_group=2, triplets_per_step=60),
    distill=DistillConfig(
        temperature=10.0, steps=6, learning_rate=1e-3, warmup=2, regression=1.0, precision="fp32", checkpoint_every=3
    ),
    split_seeds=(0, 1),
)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(run folder, data) of the tiny teacher."""
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data = write_tiny_data(tmp_path / "data")
    run(TINY, data, tmp_path / "teacher")
    return tmp_path / "teacher", data


def test_students_are_judged_beside_base_and_teacher_and_a_rerun_trains_nothing(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, views=1)
    figures = run_students(recipe, *teacher, tmp_path / "out")
    assert set(figures["models"]) == {"base", "teacher", "student"}
    assert set(figures["differences"]) == {"teacher - base", "student - base", "student - teacher"}
    assert all(np.isfinite(f["value"]) for group in figures["models"].values() for f in group.values())
    for name in ("agreement with VICE", "Caltech-101 1-NN"):
        student, base = (figures["models"][model][name]["value"] for model in ("student", "base"))
        assert figures["differences"]["student - base"][name]["value"] == pytest.approx(student - base, abs=0.02)
    monkeypatch.setattr(stage, "distill", None)  # would fail if it were called
    assert run_students(recipe, *teacher, tmp_path / "out") == figures
    assert json.loads((tmp_path / "out/figures.json").read_text()) == figures


def test_a_run_may_be_content_with_some_splits_and_go_on_later(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    first, *rest = RECIPE.split_seeds
    assert run_students(RECIPE, *teacher, tmp_path / "out", only=[first])["splits"] == [first]
    recorded = json.loads((tmp_path / f"out/split-{first}/config.json").read_text())["inputs"]
    assert set(recorded) >= {"images", "feed", "groups", "teacher", "encoder"}
    weights = (tmp_path / f"out/split-{first}/weights.safetensors").read_bytes()
    assert run_students(RECIPE, *teacher, tmp_path / "out")["splits"] == [first, *rest]
    assert (tmp_path / f"out/split-{first}/weights.safetensors").read_bytes() == weights
    with pytest.raises(ValueError, match=rf"has the splits .*; there are no \[{max(RECIPE.split_seeds) + 1}\]"):
        run_students(RECIPE, *teacher, tmp_path / "out", only=[max(RECIPE.split_seeds) + 1])


@pytest.mark.parametrize(("target", "views"), [("aligned", 0), ("aligned", 2), ("untransformed", 1), ("people", 0)])
def test_no_photo_of_a_held_out_concept_is_in_any_step(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, views: int
) -> None:
    seen: dict[str, set[int]] = {}

    def spy(student: object, load: object, vectors: object, feed: Any, config: object, out: Path, **_: object) -> None:
        seen[out.name] = {int(row) for step in range(200) for row in feed(step).rows}

    monkeypatch.setattr(stage, "distill", spy)
    run_students(replace(RECIPE, target=target, views=views), *teacher, tmp_path / "out")
    photos = read_data(teacher[1]).photos
    for seed in RECIPE.split_seeds:
        _, held_out = split_concepts(photos.concepts, TINY.held_out, seed)
        hidden = set(np.flatnonzero(np.isin(photos.concept, held_out)).tolist())
        rows = seen[f"split-{seed}"]
        assert hidden and len({row // len(photos) for row in rows}) == views + 1
        assert not {row % len(photos) for row in rows} & hidden


def test_the_target_says_whose_judgments_are_learned(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: dict[str, int] = {}
    for target in ("aligned", "untransformed", "people"):
        monkeypatch.setattr(stage, "distill", lambda s, load, vectors, *_, t=target, **__: widths.update({t: vectors}))
        run_students(replace(RECIPE, target=target), *teacher, tmp_path / target)
    data = read_data(teacher[1])
    labelled = data.photos.concept >= 0
    np.testing.assert_array_equal(
        widths["people"][labelled], data.vice[data.photos.concept[labelled]].astype(np.float32)
    )
    np.testing.assert_array_equal(widths["untransformed"], np.load(teacher[0] / "features/features.npy"))
    assert widths["aligned"].shape[1] == TINY.align.components


def test_a_readout_starts_at_its_fit_on_photos_that_training_may_see_and_is_the_embedding(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny-vit", replace(TINY_MODEL, source=lambda side: tiny_vit(), size=12))
    fitted: list[NDArray[np.float32]] = []
    fit = readout.fit_readout
    monkeypatch.setattr(readout, "fit_readout", lambda e, x, y, penalty: (fitted.append(y), fit(e, x, y, penalty)))
    distill = replace(RECIPE.distill, temperature=1.0, regress="embedding")
    recipe = replace(RECIPE, model="tiny-vit", readout=ReadoutConfig(blocks=2), views=1, distill=distill)
    figures = run_students(recipe, *teacher, tmp_path / "out")
    assert "student - untrained" in figures["differences"]
    data = read_data(teacher[1])
    _, held_out = split_concepts(data.photos.concepts, TINY.held_out, 0)
    assert len(fitted[0]) == len(data.photos) - np.isin(data.photos.concept, held_out).sum()
    network = read_student(tiny_vit(), tmp_path / "out/split-0/weights.safetensors")
    pixels = PixelLoader(data.photos, network.pixels)(np.arange(3))
    embedding = np.load(tmp_path / "out/split-0/features/features.npy")[:3]
    np.testing.assert_allclose(features_of(network, pixels), embedding, atol=1e-4)


def test_fewer_images_are_a_share_of_those_that_may_be_seen(teacher: tuple[Path, Path]) -> None:
    data = read_data(teacher[1])
    held = stage.Held("split-0", 0, np.array([0, 1]))
    every = stage._training_rows(RECIPE, data, held)
    half = stage._training_rows(replace(RECIPE, images=0.5), data, held)
    assert len(half) == round(len(every) / 2)
    assert set(half) < set(every)


def test_labels_group_a_batch_where_the_recipe_asks_for_them(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    monkeypatch.setattr(stage, "distill", lambda s, load, v, feed, *_, **__: steps.extend(feed(i) for i in range(9)))
    monkeypatch.setattr(stage, "cluster", None)  # would fail if it were called
    recipe = replace(RECIPE, groups="labels", feed=replace(RECIPE.feed, sampling="border"), split_seeds=(0,))
    run_students(recipe, *teacher, tmp_path / "out")
    label = np.array(read_data(teacher[1]).photos.label)
    for step in steps:
        first, second, third = label[step.rows][step.index].T
        assert (first == second).all() and (first != third).all()


def test_the_final_student_sees_every_photo_and_learns_from_the_final_transform(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: dict[str, Any] = {}

    def spy(student: object, load: object, vectors: object, feed: Any, config: object, out: Path, **_: object) -> None:
        taught[out.name] = (vectors, {int(row) for step in range(200) for row in feed(step).rows})

    monkeypatch.setattr(stage, "distill", spy)
    run_students(RECIPE, *teacher, tmp_path / "out", final=True)
    features = np.load(teacher[0] / "features/features.npy")
    expected = stage.Transform.load(teacher[0] / "transform.npz").apply(features)
    np.testing.assert_array_equal(taught["final"][0], expected)
    assert taught["final"][1] == set(range(len(features)))


def test_the_command_passes_every_option_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    figures = {"models": {}, "differences": {}}
    monkeypatch.setattr(stage, "run_students", lambda *paths, **options: seen.update(options) or figures)
    folders = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--teacher", str(tmp_path / "teacher")]
    main(["run", "student_vit_small", *folders, "--final", "--compile", "--splits", "0", "2"])
    assert seen == {"device": "cpu", "compile_encoders": True, "final": True, "only": [0, 2]}


def test_a_teacher_run_without_the_split_or_of_another_recipe_is_refused(
    teacher: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="made by the recipe 'tiny'"):
        run_students(replace(RECIPE, teacher=replace(TINY, draws=3)), *teacher, tmp_path / "out")
    (teacher[0] / "splits/seed-1.npz").unlink()
    with pytest.raises(ValueError, match="no split 1"):
        run_students(RECIPE, *teacher, tmp_path / "out")


def test_every_student_of_the_recipes_has_a_teacher_with_its_splits() -> None:
    for recipe in recipes_of(StudentRecipe).values():
        assert set(recipe.split_seeds) <= set(recipe.teacher.split_seeds)
        assert json.loads(json.dumps(asdict(recipe)))["distill"]["temperature"] == recipe.distill.temperature
