"""Joint alignment: the weighted sum, its ends, what training may not see, the Pareto front, and the command's files."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from export.perceptual import read_perceptual
from tests.training.tiny import TINY, TINY_MODEL, write_photos, write_tiny_data
from training.__main__ import main
from training.feeds import Step
from training.models import MODELS
from training.perceptual import joint_run
from training.perceptual.embedding import Shape
from training.perceptual.generated import Distorted, GeneratorConfig
from training.perceptual.joint import JointConfig, JointStep, joint_load, joint_objective, joint_step
from training.perceptual.joint_run import JointRecipe, run_joint
from training.perceptual.pareto import ACCURACY, AGREEMENT, BASE, on_front
from training.perceptual.run import PerceptualRecipe, read_trials, run_perceptual
from training.perceptual.trials import Trials
from training.photos import Photos
from training.run import read_data, run, split_concepts
from training.student_model import Adaptation

RECIPE = JointRecipe(
    name="tiny-joint",
    description="nothing real",
    teacher=TINY,
    shape=Shape(branches=("tiny",), hidden=16),
    generator=GeneratorConfig(longest=16, per_image=2, held_out=("blur",), shares=(0.5, 0.2, 0.3)),
    training=JointConfig(
        steps=30,
        batch=8,
        photos=4,
        per_group=2,
        triplets_per_step=60,
        temperature=1.0,
        checkpoint_every=10,
        head_rate=1e-2,
        patience=None,
        adaptation=Adaptation(),
    ),
    clusters=2,
    split_seeds=(0,),
)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(run folder, data) of the tiny teacher."""
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data = write_tiny_data(tmp_path / "data")
    run(TINY, data, tmp_path / "teacher")
    return tmp_path / "teacher", data


def lessons_of(
    monkeypatch: pytest.MonkeyPatch, trials: Trials, teacher: tuple[Path, Path], out: Path
) -> dict[float, tuple[set[int], set[int]]]:
    """Rows that the first fifty steps embed, and rows of the validation, by weight; nothing is trained."""
    seen = {}

    def spy(encoder: Any, shape: Any, lesson: Any, config: Any, out: Path, **_: Any) -> None:
        steps = [lesson.feed(number) for number in range(50)]
        assert all(isinstance(step, JointStep) for step in [*steps, lesson.validation])
        rows = {int(row) for step in steps for row in step.rows}
        out.mkdir()
        seen[config.weight] = rows, set(lesson.validation.rows.tolist())

    monkeypatch.setattr(joint_run, "learn", spy)
    run_joint(RECIPE, trials, (0.0, 0.5, 1.0), *teacher, out)
    return seen


def shown(trials: Trials, rows: Any) -> set[int]:
    """Checksums of the files behind images of generated trials: what is distorted, what an object is cut out of."""
    made = trials.images
    assert isinstance(made, Distorted)
    trial = made.rows[rows] // 3
    pasted = trial[made.kind[trial] == "count"]
    return {crc32(made.images.read(int(row))) for row in {*made.unit[trial], *made.partner[pasted]}}


def read_by(rows: set[int], photos: Photos, trials: Trials) -> set[int]:
    """Checksums of the files behind rows of a joint step: those of photos first, then those of trials' images."""
    own = {crc32(photos.read(row)) for row in rows if row < len(photos)}
    return own | shown(trials, np.array([row - len(photos) for row in rows if row >= len(photos)], int))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_divergence_and_hinge_each_on_its_own_images(weight: float) -> None:
    rng = np.random.default_rng(0)
    teacher, z = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(6, 4))
    config = replace(RECIPE.training, weight=weight, scale=2.0)
    semantic, perceptual = Step(np.array([4, 0, 2]), np.array([[0, 1, 2]])), Step(np.arange(3), np.array([[2, 0, 1]]))
    step = joint_step(semantic, replace(perceptual, votes=np.array([1.0])), photos=5)
    assert step.rows.tolist() == [4, 0, 2, 5, 6, 7]
    loss, figures = joint_objective(config, teacher)(step, [torch.from_numpy(z)])

    def softmax(x: Any) -> Any:
        return np.exp(x) / np.exp(x).sum()

    p, q = (softmax(np.array([v[0] @ v[1], v[0] @ v[2], v[1] @ v[2]])) for v in (teacher[[4, 0, 2]], z[:3]))
    cosine = [z[5] @ z[3 + k] / np.linalg.norm(z[5]) / np.linalg.norm(z[3 + k]) for k in (0, 1)]
    hinge = max(0, 0.05 - (cosine[1] - cosine[0]))
    assert loss.item() == pytest.approx((1 - weight) * (p * np.log(p / q)).sum() + weight * 2 * hinge, abs=1e-5)
    assert figures["loss"] == pytest.approx(loss.item())


def test_rows_of_photos_and_trials_are_loaded_in_any_order() -> None:
    photos, images = torch.arange(4.0)[:, None], 100 + torch.arange(3.0)[:, None]
    load = joint_load(lambda rows: photos[rows], lambda rows: images[rows], 4)
    assert load(np.array([5, 0, 4, 3, 6])).ravel().tolist() == [101, 0, 100, 3, 102]


@pytest.mark.parametrize("copied", [False, True])
def test_training_validation_and_report_have_no_photo_in_common(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    if copied:
        shutil.copytree(teacher[1] / "images", tmp_path / "copies/deeper")
    source = f"{tmp_path}/copies" if copied else f"{teacher[1]}/images.csv"
    trials = read_trials(f"generated:{source}", RECIPE.generator, 0)
    lessons = lessons_of(monkeypatch, trials, teacher, tmp_path / "out")
    photos = read_data(teacher[1]).photos
    _, held_out = split_concepts(photos.concepts, TINY.held_out, 0)
    hidden = {crc32(photos.read(row)) for row in np.flatnonzero(np.isin(photos.concept, held_out))}
    reported = shown(trials, np.unique(trials.of_split("test").index))
    for steps, validation in lessons.values():
        training, choosing = (read_by(step, photos, trials) for step in (steps, validation))
        assert training and training.isdisjoint(choosing | hidden | reported)
        assert choosing and choosing.isdisjoint(hidden | reported)


def test_a_part_of_weight_nothing_is_not_embedded(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = read_trials(f"generated:{teacher[1]}/images.csv", RECIPE.generator, 0)
    seen = {weight: own[0] for weight, own in lessons_of(monkeypatch, trials, teacher, tmp_path / "out").items()}
    n = len(read_data(teacher[1]).photos)
    assert max(seen[0.0]) < n <= min(seen[1.0]) and seen[0.5] > seen[0.0]


def test_each_end_learns_its_own_judgments_and_a_rerun_trains_nothing(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = read_trials(f"generated:{teacher[1]}/images.csv", RECIPE.generator, 0)
    figures = run_joint(RECIPE, trials, (0.0, 1.0), *teacher, tmp_path / "out")
    assert list(figures["models"]) == [BASE, "weight 0", "weight 1"]
    assert {"weight 0 - before", "weight 1 - before", "weight 1 - weight 0"} == set(figures["differences"])
    for weight, key in ((0, "divergence"), (1, "hinge")):
        file = tmp_path / f"out/split-0/weight-{weight}/log.jsonl"
        log = [json.loads(line) for line in file.read_text().splitlines()]
        assert {"divergence", "hinge"} & set(log[0]) == {key}
        assert np.mean([x[key] for x in log[-8:]]) < 0.9 * np.mean([x[key] for x in log[:8]])
    gained = figures["differences"]["weight 1 - before"][ACCURACY]["value"]
    models = figures["models"]
    assert gained == pytest.approx(models["weight 1"][ACCURACY]["value"] - models[BASE][ACCURACY]["value"])
    with (tmp_path / "out/pareto.csv").open() as stream:
        rows = {(row["model"], row["figure"]): float(row["value"]) for row in csv.DictReader(stream)}
    assert rows["weight 0", AGREEMENT] == models["weight 0"][AGREEMENT]["value"]
    assert (tmp_path / "out/pareto.svg").stat().st_size and (tmp_path / "out/pareto.png").read_bytes()[1:4] == b"PNG"
    monkeypatch.setattr("training.perceptual.align.take_steps", None)  # would fail if it were called
    assert run_joint(RECIPE, trials, (0.0, 1.0), *teacher, tmp_path / "out") == figures
    with pytest.raises(ValueError, match="expected at least one, each once"):
        run_joint(RECIPE, trials, (0.5, 0.5), *teacher, tmp_path / "out")


def test_the_command_runs_a_recipe_at_the_weights_given(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.recipes.recipes_of", lambda _: {"tiny": RECIPE})
    run_folder, data = map(str, teacher)
    argv = ["joint", "tiny", f"generated:{data}/images.csv", "--data", data, "--teacher", run_folder]
    given = "--weights 0 1 --steps 4 --checkpoint-every 2 --scale 3 --splits 1"
    main([*argv, "--out", str(tmp_path / "out"), *given.split()])
    printed = capsys.readouterr().out
    assert "on the front: weights" in printed
    counts = json.loads((tmp_path / "out/pareto.json").read_text())["photos in common"]["1"]["training trials"]
    total = read_trials(argv[2], RECIPE.generator, 0).of_split("train")
    assert counts["left out"] > 0 and sum(counts.values()) == len(total)
    assert f"split 1: {counts['kept']} of {len(total)} training trials" in printed
    stored = json.loads((tmp_path / "out/split-1/weight-1/config.json").read_text())["config"]
    assert (stored["weight"], stored["scale"], stored["steps"], stored["seed"]) == (1, 3, 4, 1)
    with pytest.raises(SystemExit, match=r"weight is 2\.0; expected 0"):
        main([*argv, "--out", str(tmp_path / "out"), "--weights", "2"])


def test_the_card_of_a_weight_says_what_it_was_aligned_with_and_what_that_weight_is_worth(
    teacher: tuple[Path, Path], tmp_path: Path
) -> None:
    trials = read_trials(f"generated:{teacher[1]}/images.csv", RECIPE.generator, 0)
    short = replace(RECIPE, training=replace(RECIPE.training, steps=4, checkpoint_every=2))
    found = run_joint(short, trials, (0.0, 0.5, 1.0), *teacher, tmp_path / "out")
    run_joint(short, trials, (0.25,), *teacher, tmp_path / "out")  # the others' cards stay what they are
    said = {weight: read_perceptual(tmp_path / f"out/split-0/weight-{weight:g}") for weight in (0.0, 0.5, 1.0)}
    kinds = {weight: source.alignment.partition(":")[0] for weight, source in said.items()}
    assert kinds == {0.0: "semantic", 0.5: "semantic and perceptual", 1.0: "perceptual"}
    assert [source.kernel["aligned"] for source in said.values()] == ["dot", "dot", "cosine"]
    for weight, source in said.items():
        assert source.name == f"tiny-joint-weight-{weight:g}" and f"Weight {weight:g} of 1" in source.description
        given = f"tiny_joint TRIALS --data DATA --teacher TEACHER --weights {weight:g} --splits 0 --out RUN"
        assert source.training["command"] == f"python -m training joint {given}"
        values = {(figure.name, figure.space): figure.value for figure in source.figures}
        assert values[AGREEMENT, "aligned"] == found["models"][f"weight {weight:g}"][AGREEMENT]["value"]
        gained = found["differences"][f"weight {weight:g} - before"][ACCURACY]["value"]
        assert values[ACCURACY, "aligned - base"] == gained


def test_the_front_is_what_no_other_point_beats() -> None:
    points = np.array([[0.1, 0.9], [0.5, 0.5], [0.4, 0.4], [0.9, 0.1], [0.5, 0.5], [0.05, 0.9]])
    assert on_front(points).tolist() == [True, True, False, True, True, False]


def test_a_weight_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is 1.5; expected 0"):
        replace(RECIPE.training, weight=1.5)


@pytest.mark.parametrize("how", ["flip", "crop"])
def test_a_head_on_features_takes_no_augmentation_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    write_photos(tmp_path / "photos", 20)
    trials = read_trials(f"generated:{tmp_path / 'photos'}", RECIPE.generator, 0)
    recipe = replace(RECIPE, training=replace(RECIPE.training, augment=how))
    alone = {"name": "alone", "description": "", "shape": RECIPE.shape, "generator": RECIPE.generator}
    with pytest.raises(ValueError, match=rf"augment is '{how}', and a head .* expected none or a recipe without"):
        run_joint(recipe, trials, (0.5,), tmp_path / "teacher", tmp_path / "data", tmp_path / "out")
    with pytest.raises(ValueError, match=rf"augment is '{how}', and a head .* expected none or a recipe without"):
        run_perceptual(PerceptualRecipe(**alone, training=recipe.training), trials, tmp_path / "alone")
