"""Perceptual alignment: the hinge, what each way of training moves, the best weights, exact resume, and figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from tests.training.tiny import tiny_clip
from training.__main__ import main
from training.encoders import features_of
from training.evaluation.subjects import read_subject
from training.feeds import Step
from training.images import open_images
from training.loading import PixelLoader
from training.perceptual.align import align
from training.perceptual.embedding import Headed, Origin, Shape, read_origin, shaped, write_shape
from training.perceptual.figures import accuracy_figures
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.objective import Perceptual, PerceptualConfig, hinge, step_of, trial_feed
from training.perceptual.run import (
    PerceptualRecipe,
    embedding,
    read_embedding,
    read_trials,
    run_perceptual,
    with_all_splits,
    with_training_judgments,
)
from training.perceptual.trials import Trials
from training.student_model import Adaptation, read_student
from training.trainer import learning_rate

SIDE = 32
VIT = Shape(branches=("timm:test_vit",), side=SIDE)
LORA = Adaptation(lora_rank=4, lora_alpha=8.0, lora_targets=("qkv",))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small photos of smooth colours."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(40):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{seed:02d}.png")
    return folder


def trials_of(photos: Path, **changes: Any) -> Trials:
    return generate(open_images(str(photos)), "photos", GeneratorConfig(**({"longest": 40, "per_image": 2} | changes)))


def config_of(**changes: Any) -> PerceptualConfig:
    constants: dict[str, Any] = {"steps": 6, "batch": 8, "checkpoint_every": 2, "learning_rate": 3e-3}
    return PerceptualConfig(**(constants | {"adaptation": LORA, "margin": 0.5, "patience": None} | changes))


def aligned(photos: Path, out: Path, shape: Shape = VIT, **changes: Any) -> Any:
    encoder, trials = embedding(shape, pretrained=False), trials_of(photos)
    align(encoder, shape, trials, PixelLoader(trials.images, encoder.pixels), config_of(**changes), out)
    return encoder


def lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_hinge_is_its_formula_and_asks_for_the_margin_on_the_side_of_the_votes() -> None:
    distance = torch.tensor([[0.5, 0.2], [0.5, 0.2], [0.30, 0.28], [0.4, 0.4]])
    votes = torch.tensor([1.0, 0.0, 0.6, 0.0])
    by_hand = [0.0, 0.05 + 0.3, 0.05 - 0.02, 0.05]
    assert hinge(distance, votes, 0.05).item() == pytest.approx(np.mean(by_hand))


def test_the_objective_measures_from_the_reference_by_cosine() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    step = Step(np.arange(3), np.array([[0, 1, 2], [0, 2, 1]]), votes=np.array([1.0, 1.0]))
    loss, figures = Perceptual(0.05)(step, [z])
    assert figures["accuracy"] == 0.5
    assert loss.item() == pytest.approx((0 + 0.05 + np.sqrt(0.5)) / 2, abs=1e-6)


def test_the_feed_shows_every_decided_trial_once_an_epoch_with_its_votes(photos: Path) -> None:
    trials = trials_of(photos).of_split("train")
    feed = trial_feed(trials, batch=8, seed=0)
    seen = []
    for number in range(len(trials) // 8):
        step = feed(number)
        assert step.votes is not None
        rows = step.rows[step.index]
        seen += [(tuple(row), vote) for row, vote in zip(rows.tolist(), step.votes.tolist(), strict=True)]
    assert sorted(seen) == sorted(
        (tuple(row), vote) for row, vote in zip(trials.index.tolist(), trials.votes.tolist(), strict=True)
    )
    with pytest.raises(ValueError, match="64 trials to learn from, 65 a step"):
        trial_feed(trials, batch=65, seed=0)


@pytest.mark.parametrize("adaptation", [LORA, Adaptation()], ids=["lora", "full"])
def test_training_lowers_the_loss_and_returns_the_best_validation_weights(
    photos: Path, tmp_path: Path, adaptation: Adaptation
) -> None:
    rate = 1e-2 if adaptation is LORA else 2e-4
    trained = aligned(photos, tmp_path, steps=30, checkpoint_every=10, adaptation=adaptation, learning_rate=rate)
    log, validation = lines(tmp_path / "log.jsonl"), lines(tmp_path / "validation.jsonl")
    assert np.mean([x["hinge"] for x in log[-5:]]) < 0.98 * np.mean([x["hinge"] for x in log[:5]])
    assert [x["step"] for x in validation] == [0, 10, 20, 30]
    trials = trials_of(photos).of_split("val")
    rows, index = np.unique(trials.index, return_inverse=True)
    z = features_of(trained, PixelLoader(trials.images, trained.pixels)(rows))
    loss, _ = Perceptual(0.5)(Step(rows, index.reshape(-1, 3), votes=trials.votes), [z])
    assert loss.item() == pytest.approx(min(x["loss"] for x in validation), abs=1e-4)
    read = read_student(embedding(replace(VIT), pretrained=False), tmp_path / "weights.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(read.module.parameters(), trained.module.parameters(), strict=True))


def test_a_training_that_only_harms_stops_early_with_the_weights_of_the_start(photos: Path, tmp_path: Path) -> None:
    start = embedding(VIT, pretrained=False)
    trained = aligned(
        photos, tmp_path, steps=40, learning_rate=3.0, patience=2, adaptation=Adaptation(), precision="fp32"
    )
    validation = lines(tmp_path / "validation.jsonl")
    best = int(np.argmin([line["loss"] for line in validation]))
    assert len(validation) == best + 3 and validation[-1]["step"] < 40
    if best == 0:
        assert all(
            torch.equal(a, b) for a, b in zip(start.module.parameters(), trained.module.parameters(), strict=True)
        )


def test_no_training_stops_early_before_the_last_asked_strength_and_the_best_weights_are_kept(
    photos: Path, tmp_path: Path
) -> None:
    harm: dict[str, Any] = {"steps": 16, "learning_rate": 3.0, "patience": 1, "adaptation": Adaptation()}
    trained = aligned(photos, tmp_path, **harm, strengths=(4, 8))
    validation = lines(tmp_path / "validation.jsonl")
    losses = [line["loss"] for line in validation]
    assert [line["step"] for line in validation] == [0, 2, 4, 6, 8] and np.argmin(losses) < 3
    assert all((tmp_path / f"strength-{step:06d}/weights.safetensors").is_file() for step in (4, 8))
    trials = trials_of(photos)
    step = step_of(trials.of_split("val"))
    loss, _ = Perceptual(0.5)(step, [features_of(trained, PixelLoader(trials.images, trained.pixels)(step.rows))])
    assert loss.item() == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize("at", ["step", "validation"])
def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    whole = aligned(photos, tmp_path / "whole")
    calls = iter(range(100))
    if at == "step":

        def killed(config: Any, step: int) -> float:
            if next(calls) == 5:
                raise KeyboardInterrupt
            return learning_rate(config, step)

        monkeypatch.setattr("training.trainer.learning_rate", killed)
    else:
        monkeypatch.setattr("training.trainer.Trainer.save", _killed)
    with pytest.raises(KeyboardInterrupt):
        aligned(photos, tmp_path / "killed")
    monkeypatch.undo()
    resumed = aligned(photos, tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True))
    assert lines(tmp_path / "whole/validation.jsonl") == lines(tmp_path / "killed/validation.jsonl")
    assert [x["hinge"] for x in lines(tmp_path / "whole/log.jsonl")] == [
        x["hinge"] for x in lines(tmp_path / "killed/log.jsonl")
    ]
    with pytest.raises(ValueError, match="another config"):
        aligned(photos, tmp_path / "killed", margin=0.1)


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def _in_process(rank: int, folder: str, photos: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        aligned(Path(photos), Path(folder) / "two", steps=3)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_two_processes_take_the_steps_of_one(photos: Path, tmp_path: Path) -> None:
    one = aligned(photos, tmp_path / "one", steps=3)
    mp.spawn(_in_process, (str(tmp_path), str(photos)), nprocs=2)  # type: ignore[no-untyped-call]
    two = read_student(embedding(VIT, pretrained=False), tmp_path / "two/weights.safetensors")
    for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    figures = [[x["loss"] for x in lines(tmp_path / name / "validation.jsonl")] for name in ("one", "two")]
    np.testing.assert_allclose(figures[0], figures[1], rtol=1e-3)


def test_weights_of_asked_strengths_are_kept_and_judged_beside_the_best(photos: Path, tmp_path: Path) -> None:
    recipe = PerceptualRecipe(
        name="tiny", description="nothing real", shape=VIT, pretrained=False,
        generator=GeneratorConfig(longest=40, per_image=1), training=config_of(strengths=(2, 6)), bootstrap=9,
    )  # fmt: skip
    trials = read_trials(f"generated:{photos}", recipe.generator, 0)
    figures = run_perceptual(recipe, trials, tmp_path)
    assert set(figures["strength"]) == {"2", "6"} and set(figures["strength"]["2"]) == {"after", "after - before"}
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    two, six = (features_of(read_embedding(tmp_path / f"strength-{n:06d}", pretrained=False), pixels) for n in (2, 6))
    start = features_of(embedding(VIT, pretrained=False), pixels)
    assert 1e-4 < (two - start).abs().max() < (six - start).abs().max()
    with pytest.raises(ValueError, match=r"strengths \[3, 8\] cannot be kept; expected multiples of"):
        config_of(strengths=(3, 8))


def test_a_run_from_random_weights_is_compared_with_these_and_needs_no_hub(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = PerceptualRecipe(
        name="tiny", description="nothing real", shape=VIT, pretrained=False, seed=3, bootstrap=9,
        generator=GeneratorConfig(longest=40, per_image=1), training=config_of(steps=2, strengths=(2,)),
    )  # fmt: skip
    run_perceptual(recipe, read_trials(f"generated:{photos}", recipe.generator, 0), tmp_path)
    monkeypatch.setattr("training.timm_models.unfetched", lambda *_: pytest.fail("weights of a hub were asked for"))
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    start = features_of(embedding(VIT, pretrained=False, seed=3), pixels)
    for run in (tmp_path, tmp_path / "strength-000002"):
        before, after = (read_subject(name).encoder for name in (f"{run}@before", f"{run}"))
        assert before is not None and after is not None
        torch.testing.assert_close(features_of(before(), pixels), start)
        assert (features_of(after(), pixels) - start).abs().max() > 1e-4
        assert after().base_model.license == "none: random weights"
    write_shape(VIT, tmp_path / "old.json")
    assert read_origin(tmp_path / "old.json") == Origin() and Origin().pretrained


def test_adapters_that_fit_no_layer_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no layer of the encoder ends in \['nothing'\]"):
        aligned(photos, tmp_path, adaptation=Adaptation(lora_rank=2, lora_targets=("nothing",)))


def test_a_head_and_adapters_are_refused_before_anything_is_written_and_a_head_alone_is_trained(
    photos: Path, tmp_path: Path
) -> None:
    given = "--branches timm:test_vit --random-weights --side 32 --longest 40 --steps 2 --checkpoint-every 1 --batch 4"
    argv = ["perceptual", "perceptual_vit_small", f"generated:{photos}", "--out", str(tmp_path / "out"), *given.split()]
    with pytest.raises(SystemExit, match=r"lora_rank is 16, and a head is to be trained.*--lora-rank none"):
        main([*argv, "--hidden", "8"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="lora_rank is 4, and a head"):
        aligned(photos, tmp_path / "headed", replace(VIT, hidden=8))
    main([*argv, "--hidden", "8", "--lora-rank", "none"])
    assert (tmp_path / "out/mlp_head.safetensors").is_file()


def test_class_token_and_mean_patch_are_trained_and_read_again_as_what_they_are(photos: Path, tmp_path: Path) -> None:
    trained = aligned(photos, tmp_path, replace(VIT, output="cls_patch"))
    plain = embedding(VIT, pretrained=False)
    assert trained.size == 2 * plain.size
    read = read_student(plain, tmp_path / "weights.safetensors")
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    torch.testing.assert_close(features_of(read, pixels), features_of(trained, pixels))


@pytest.mark.parametrize("normalise", ["none", "unit"])
def test_an_ensemble_is_its_branches_side_by_side_trained_and_read_as_one(
    photos: Path, tmp_path: Path, normalise: Any
) -> None:
    shape = Shape(branches=("timm:test_vit", "timm:test_vit2"), side=SIDE, normalise=normalise)
    encoder = embedding(shape, pretrained=False)
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    parts = [
        features_of(embedding(replace(VIT, branches=(name,)), pretrained=False), pixels) for name in shape.branches
    ]
    if normalise == "unit":
        parts = [torch.nn.functional.normalize(part, dim=1) for part in parts]
    torch.testing.assert_close(features_of(encoder, pixels), torch.cat(parts, 1))
    trained = aligned(photos, tmp_path, shape)
    after = features_of(read_embedding(tmp_path, pretrained=False), pixels)
    torch.testing.assert_close(after, features_of(trained, pixels))
    with pytest.raises(ValueError, match="1 branches for a shape of 2"):
        read_student(embedding(VIT, pretrained=False), tmp_path / "weights.safetensors")


def test_branches_of_timm_and_open_clip_are_trained_side_by_side_by_adapters_of_their_own(
    photos: Path, tmp_path: Path
) -> None:
    shape = Shape(branches=("timm:test_vit", tiny_clip(tmp_path)), side=SIDE)
    start = embedding(shape, pretrained=False)
    assert start.pixels.resize == "squash" and start.size == 64 + 24
    lora = replace(LORA, lora_targets=("qkv", "c_fc", "c_proj"))
    trained = aligned(photos, tmp_path / "run", shape, steps=2, adaptation=lora)
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    moved = (features_of(trained, pixels) - features_of(start, pixels)).abs()
    assert moved[:, :64].max() > 1e-4 and moved[:, 64:].max() > 1e-4
    again = features_of(read_embedding(tmp_path / "run", pretrained=False), pixels)
    torch.testing.assert_close(again, features_of(trained, pixels))


def test_a_head_starts_as_the_network_and_alone_is_trained() -> None:
    encoder = embedding(VIT, pretrained=False)
    headed = shaped([encoder], replace(VIT, hidden=8))
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    torch.testing.assert_close(features_of(headed, pixels), features_of(encoder, pixels))
    assert isinstance(headed.module, Headed)
    trained = {name for name, p in headed.module.requires_grad_(True).named_parameters() if p.requires_grad}
    assert trained == {f"mlp_head.{i}.{end}" for i in (0, 2) for end in ("weight", "bias")}
    assert not headed.module.train().inner.training


def test_each_level_starts_with_the_weight_of_the_own_embedding_and_weights_are_trained() -> None:
    encoder = embedding(VIT, pretrained=False)
    headed = shaped([encoder], replace(VIT, output="levels", hidden=8)).module
    assert isinstance(headed, Headed) and headed.balance is not None
    pixels = torch.randint(0, 256, (16, 3, SIDE, SIDE), dtype=torch.uint8)
    raw = headed.inner(pixels)
    headed.balance.fit(raw)
    own, *levels = torch.split(headed(pixels), list(headed.balance.sizes), 1)
    torch.testing.assert_close(own, torch.nn.functional.normalize(features_of(encoder, pixels), dim=1))
    assert len(levels) == 6  # blocks of the tiny network
    for level in levels:
        torch.testing.assert_close(level.norm(dim=1), torch.ones(16))
    # Standardised before they were scaled: every value is positive as often as not.
    assert ((torch.cat(levels, 1) > 0).float().mean() - 0.5).abs() < 0.1
    trained = {name for name, p in headed.requires_grad_(True).named_parameters() if p.requires_grad}
    assert "balance.log_weight" in trained and not any(name.startswith("inner") for name in trained)


def test_levels_are_compared_with_the_network_itself_and_learn_what_it_does_not_show(
    photos: Path, tmp_path: Path
) -> None:
    recipe = PerceptualRecipe(
        name="tiny", description="nothing real", shape=replace(VIT, output="levels", hidden=8), pretrained=False,
        generator=GeneratorConfig(longest=40, per_image=4, own_draw=True),
        training=config_of(steps=30, learning_rate=0.1, head_rate=1e-5, adaptation=Adaptation(), margin=0.05),
        bootstrap=50,
    )  # fmt: skip
    trials = read_trials(f"generated:{photos}", recipe.generator, 0)
    figures = run_perceptual(recipe, trials, tmp_path)
    own = run_perceptual(replace(recipe, shape=replace(VIT, hidden=8)), trials, tmp_path / "own")
    assert figures["before"] == own["before"]
    losses = [line["loss"] for line in lines(tmp_path / "validation.jsonl")]
    assert min(losses) < losses[0]
    again = read_student(embedding(VIT, pretrained=False), tmp_path / "weights.safetensors").module
    assert isinstance(again, Headed) and again.balance is not None
    assert (again.balance.log_weight.exp() - 1).abs().max() > 0.01 and (again.balance.std != 1).any()


def test_levels_of_several_networks_or_without_a_head_are_refused() -> None:
    with pytest.raises(ValueError, match="one frozen branch"):
        replace(VIT, output="levels")
    with pytest.raises(ValueError, match="one frozen branch"):
        Shape(branches=("timm:test_vit", "timm:test_vit2"), output="levels", hidden=8)


def test_a_recipe_with_a_head_runs_to_figures_and_is_not_run_twice(photos: Path, tmp_path: Path) -> None:
    recipe = PerceptualRecipe(
        name="tiny",
        description="nothing real",
        shape=replace(VIT, hidden=16),
        pretrained=False,
        generator=GeneratorConfig(longest=40, per_image=3, held_out=("blur",)),
        training=config_of(steps=20, adaptation=Adaptation(), head_rate=1e-2),
        bootstrap=50,
    )
    trials = read_trials(f"generated:{photos}", recipe.generator, 0)
    figures = run_perceptual(recipe, trials, tmp_path)
    assert {"all", "blur", "kinds held out", "kinds that training saw"} <= set(figures["after - before"])
    assert figures == run_perceptual(recipe, trials, tmp_path) == json.loads((tmp_path / "figures.json").read_text())
    pixels = PixelLoader(trials.images, embedding(VIT, pretrained=False).pixels)(np.arange(4))
    both = [
        features_of(encoder, pixels)
        for encoder in (
            read_embedding(tmp_path, pretrained=False),
            read_student(embedding(VIT, pretrained=False), tmp_path / "weights.safetensors"),
        )
    ]
    torch.testing.assert_close(both[0], both[1])
    assert (both[0] - features_of(embedding(VIT, pretrained=False), pixels)).abs().max() > 1e-3


def test_accuracy_counts_judgments_and_the_difference_is_paired(photos: Path) -> None:
    trials = trials_of(photos).take(np.arange(60))
    knows = np.zeros((len(trials.images), 2), np.float32)
    near = np.where(trials.votes == 1, trials.index[:, 2], trials.index[:, 1])
    far = np.where(trials.votes == 1, trials.index[:, 1], trials.index[:, 2])
    knows[trials.index[:, 0]], knows[near], knows[far] = (1, 0), (1, 0.1), (0, 1)
    nothing = np.ones_like(knows)
    figures = accuracy_figures(trials, nothing, knows, ["crop"], repetitions=50, seed=0)
    assert figures["before"]["all"]["value"] == 0.5 and figures["after"]["all"]["value"] == 1.0
    assert figures["after - before"]["all"]["value"] == figures["after - before"]["all"]["low"] == 0.5
    assert figures["after"]["all"]["n"] == len(np.unique(trials.unit))
    pairs = replace(trials, judgment=np.repeat(np.arange(30), 2), unit=np.repeat(np.arange(30), 2))
    half = knows.copy()
    half[trials.index[::2].ravel()] = knows[trials.index[::2, [0, 2, 1]].ravel()]  # every other trial is wrong
    assert accuracy_figures(pairs, nothing, half, ["crop"], repetitions=9, seed=0)["after"]["all"]["value"] == 0.0


def test_a_set_without_a_test_split_reports_on_val_and_chooses_on_a_part_of_train(photos: Path) -> None:
    trials = trials_of(photos)
    two = replace(trials, split=np.where(trials.split == "test", "train", trials.split))
    three = with_all_splits(two, seed=0)
    assert np.array_equal(three.split == "test", two.split == "val")
    assert set(three.of_split("val").unit.tolist()).isdisjoint(three.of_split("train").unit.tolist())
    assert with_all_splits(trials, seed=0) is trials
    with pytest.raises(ValueError, match="has the split 'train' alone"):
        with_all_splits(trials.of_split("train"), seed=0)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_ties_alone_is_refused_before_anything_is_written(photos: Path, tmp_path: Path, split: str) -> None:
    recipe = PerceptualRecipe(
        name="tiny", description="", shape=VIT, pretrained=False, generator=GeneratorConfig(), training=config_of()
    )
    trials = trials_of(photos)
    tied = replace(trials, votes=np.where(trials.split == split, 0.5, trials.votes))
    with pytest.raises(ValueError, match=f"people tie in all .* trials of the split {split}; expected"):
        run_perceptual(recipe, tied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_sees_as_many_judgments_as_were_asked_for_and_whole_ones(photos: Path) -> None:
    trials = trials_of(photos)
    pairs = replace(trials, judgment=np.arange(len(trials)) // 2)
    fewer = with_training_judgments(pairs, 10, seed=0)
    assert len(fewer.of_split("train")) == 20 and len(np.unique(fewer.of_split("train").judgment)) == 10
    assert np.array_equal(fewer.of_split("test").index, trials.of_split("test").index)
    assert with_training_judgments(trials, None, seed=0) is trials
    with pytest.raises(ValueError, match="64 judgments to learn from, ties left out; 65 of them were asked for"):
        with_training_judgments(trials, 65, seed=0)


def test_the_command_runs_a_recipe_with_what_is_given_in_place_of_its_constants(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "--branches timm:test_vit --random-weights --side 32 --longest 40 --steps 2 --checkpoint-every 1"
    more = "--batch 4 --per-image 1 --lora-rank 2 --lora-alpha 3 --precision fp32 --seed 3"
    argv = ["perceptual", "perceptual_vit_small", f"generated:{photos}", "--out", str(tmp_path / "out")]
    main([*argv, *given.split(), *more.split()])
    said = capsys.readouterr().out
    assert "after - before     all" in said and "learned from 32 judgments, 32 trials" in said
    stored = json.loads((tmp_path / "out/config.json").read_text())["config"]
    assert stored["adaptation"]["lora_alpha"] == 3 and stored["steps"] == 2 and stored["seed"] == 3
    assert json.loads((tmp_path / "out/embedding.json").read_text())["branches"] == ["timm:test_vit"]
    with pytest.raises(SystemExit, match="names no trials; expected nights:PLACE"):
        main([argv[0], argv[1], "photos", *argv[3:]])
