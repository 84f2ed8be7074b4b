"""The student stage end to end on the tiny data: nothing of the held-out concepts is seen, and a rerun does nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import TINY, tiny_encoder, write_tiny_data
from training import student as stage
from training.distill import DistillConfig
from training.encoders import ENCODERS
from training.recipes import student_vit_small
from training.run import read_data, run, split_concepts
from training.student import StudentRecipe, run_students

RECIPE = StudentRecipe(
    name="tiny-student",
    encoder=tiny_encoder,
    aligned=True,
    clusters=4,
    batch=8,
    per_group=2,
    triplets=60,
    sampling="border",
    distill=DistillConfig(
        loss="kl",
        temperature=10.0,
        teacher_temperature=1.0,
        steps=6,
        learning_rate=1e-3,
        warmup=2,
        decay=1.0,
        regression=1.0,
        precision="fp32",
        checkpoint_every=3,
        seed=0,
    ),
    split_seeds=(0, 1),
    seed=0,
)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(data, run folder) of the tiny teacher."""
    monkeypatch.setitem(ENCODERS, "tiny", tiny_encoder)
    data = write_tiny_data(tmp_path / "data")
    run(TINY, data, tmp_path / "teacher")
    return data, tmp_path / "teacher"


def test_students_are_judged_beside_their_base_and_teacher_and_a_rerun_trains_nothing(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = run_students(RECIPE, TINY, teacher[1], teacher[0], tmp_path / "out")
    assert set(figures) == {"base", "teacher", "student"}
    assert all(np.isfinite(f["value"]) for group in figures.values() for f in group.values())
    monkeypatch.setattr(stage, "distill", None)  # would fail if it were called
    assert run_students(RECIPE, TINY, teacher[1], teacher[0], tmp_path / "out") == figures
    assert json.loads((tmp_path / "out/figures.json").read_text()) == figures


def test_no_photo_of_a_held_out_concept_is_in_any_step(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {}

    def spy(student: object, load: object, vectors: object, feed: stage.Feed, config: object, out: Path) -> None:
        seen[out.name] = {int(row) for step in range(200) for row in feed(step).rows}

    monkeypatch.setattr(stage, "distill", spy)
    run_students(RECIPE, TINY, teacher[1], teacher[0], tmp_path / "out")
    photos = read_data(teacher[0]).photos
    for seed in RECIPE.split_seeds:
        _, held_out = split_concepts(photos.concepts, TINY.held_out, seed)
        hidden = set(np.flatnonzero(np.isin(photos.concept, held_out)).tolist())
        assert hidden
        assert not seen[f"split-{seed}"] & hidden


def test_a_teacher_run_without_the_split_is_refused(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    (teacher[1] / "splits/seed-1.npz").unlink()
    with pytest.raises(ValueError, match="no split 1"):
        run_students(RECIPE, TINY, teacher[1], teacher[0], tmp_path / "out")


def test_the_identity_of_the_shipped_student_names_its_encoder_and_size() -> None:
    identity = json.loads(json.dumps(stage._plain(student_vit_small.RECIPE)))
    assert identity["encoder"] == ["vit_small_focus", 126]
    assert identity["distill"]["temperature"] == 100
