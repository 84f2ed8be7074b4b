"""Loaders of two-alternative judgments on small trees in the published layouts, and how trials are scored."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import write_bapps, write_photo, write_rows
from training.images import open_images
from training.perceptual.bapps import read_bapps
from training.perceptual.class_triplets import class_triplets
from training.perceptual.nights import read_nights
from training.perceptual.run import with_training_judgments
from training.perceptual.things import read_things
from training.perceptual.trials import Trials, distances, scores

HEADER = ["id", "left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path", "prompt", "is_imagenet"]


def write_nights(folder: Path, rows: list[tuple[int, int, str, bool]]) -> Path:
    """(target, votes, split, is_imagenet) a trial."""
    table: list[list[object]] = [[*HEADER, "split"]]
    for i, (target, votes, split, imagenet) in enumerate(rows):
        ref, left, right = (f"ref/000/{i:03d}.png", *(f"distort/000/{i:03d}_{side}.png" for side in (0, 1)))
        for number, name in enumerate((ref, left, right)):
            write_photo(folder / name, np.random.default_rng([i, number]).random(3), i)
        table.append([i, 1 - target, target, votes, ref, left, right, "An image of a cat", imagenet, split])
    write_rows(folder / "data.csv", table)
    return folder


def test_nights_keeps_trials_of_six_votes_with_their_target_split_and_paths(tmp_path: Path) -> None:
    rows = [(1, 6, "train", True), (0, 5, "train", True), (0, 7, "val", False), (1, 10, "test", False)]
    trials = read_nights(write_nights(tmp_path, rows))
    assert trials.votes.tolist() == [1.0, 0.0, 1.0]
    assert trials.split.tolist() == ["train", "val", "test"]
    assert trials.kind.tolist() == ["imagenet", "no imagenet", "no imagenet"]
    named = [[trials.images.names[row] for row in line] for line in trials.index]
    assert named[1] == ["ref/000/002.png", "distort/000/002_0.png", "distort/000/002_1.png"]
    assert len(read_nights(tmp_path, min_votes=5)) == 4


def test_nights_names_what_is_wrong(tmp_path: Path) -> None:
    write_nights(tmp_path, [(1, 6, "train", True), (0, 7, "val", False)])
    with pytest.raises(ValueError, match="none of 2 trials has 20 votes"):
        read_nights(tmp_path, min_votes=20)
    (tmp_path / "distort/000/001_1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 files do not exist.*001_1"):
        read_nights(tmp_path)
    text = (tmp_path / "data.csv").read_text()
    (tmp_path / "data.csv").write_text(text.replace(",7,", ",,"))
    with pytest.raises(ValueError, match="row 1: votes is ''"):
        read_nights(tmp_path)
    (tmp_path / "data.csv").write_text(text.replace("votes,ref", "ballots,ref"))
    with pytest.raises(ValueError, match=r"lacks the columns \['votes'\]"):
        read_nights(tmp_path)
    (tmp_path / "data.csv").write_text(text.replace(",val", ",validation"))
    with pytest.raises(ValueError, match="row 1: target 0, split 'validation'"):
        read_nights(tmp_path)


def test_bapps_gives_shares_by_folder_and_a_model_earns_the_share_that_chose_as_it_does(tmp_path: Path) -> None:
    trials = read_bapps(write_bapps(tmp_path, {"train/cnn": [0.5], "val/color": [0.25, 1.0, 0.75]}))
    assert trials.split.tolist() == ["train", "val", "val", "val"]
    assert trials.kind.tolist() == ["cnn", "color", "color", "color"]
    assert trials.images.names[trials.index[2, 1]] == "val/color/p0/000001.png"
    distance = np.array([[0.1, 0.2], [0.1, 0.2], [0.3, 0.1], [0.2, 0.2]])
    assert scores(trials, distance).tolist() == [0.5, 0.75, 1.0, 0.5]
    assert "share of people" in trials.rule


def test_bapps_names_what_is_wrong(tmp_path: Path) -> None:
    write_bapps(tmp_path, {"train/mix": [0.5, 0.25]})
    with pytest.raises(ValueError, match="people tie in all 1 trials of the split train; expected some"):
        read_bapps(tmp_path).take(np.array([0])).decided()
    np.save(tmp_path / "train/mix/judge/000001.npy", np.array([1.5]))
    with pytest.raises(ValueError, match=r"000001.npy holds \[1.5\]"):
        read_bapps(tmp_path)
    (tmp_path / "train/mix/judge/000001.npy").unlink()
    with pytest.raises(ValueError, match=r"1 trials have no votes, the first is judge/000001.npy"):
        read_bapps(tmp_path)
    with pytest.raises(ValueError, match="no trial of BAPPS"):
        read_bapps(tmp_path / "train")


def test_a_things_choice_is_right_only_if_both_of_its_trials_are_and_a_tie_earns_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat", "dog", "car", "bus")):
        write_photo(tmp_path / f"{name}.png", np.random.default_rng(seed).random(3), seed)
    (tmp_path / "things_valset.txt").write_text("cat dog car\nbus car dog\n")
    trials = read_things(tmp_path)
    assert trials.judgment.tolist() == [0, 0, 1, 1] and set(trials.split) == {"val"}
    where = {name.removesuffix(".png"): row for row, name in enumerate(trials.images.names)}
    vectors = np.zeros((4, 2), np.float32)
    for name, angle in {"cat": 0.0, "dog": 0.2, "car": 1.0, "bus": 0.9}.items():
        vectors[where[name]] = np.cos(angle), np.sin(angle)
    assert scores(trials, distances(vectors, trials.index)).tolist() == [1, 1, 1, 1]
    vectors[where["bus"]] = -1, 0  # nearer to nothing; of the second pair, car is now nearer to dog
    assert sum(scores(trials, distances(vectors, trials.index))) < 4
    assert scores(trials, distances(np.ones((4, 2), np.float32), trials.index)).tolist() == [0, 0, 0, 0]
    (tmp_path / "things_testset.txt").write_text("cat cat dog\n")
    with pytest.raises(ValueError, match="line 1 is 'cat cat dog'"):
        read_things(tmp_path)


def test_data_sets_of_equal_size_have_as_many_judgments_that_are_no_ties(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(8)]
    for seed, name in enumerate(names):
        write_photo(tmp_path / f"{name}.png", np.random.default_rng(seed).random(3), seed)
    (tmp_path / "things_trainset.txt").write_text("\n".join(" ".join(names[i : i + 3]) for i in range(6)))
    shares = [0, 0.5, 1, 0.5, 0.5, 0.25, 1, 0.75, 0.5, 0]
    judged = write_bapps(tmp_path / "bapps", {"train/cnn": shares})
    for trials, each in ((read_things(tmp_path), 2), (read_bapps(judged), 1)):
        lesson = with_training_judgments(trials, 5, seed=0).of_split("train")
        assert len(lesson.decided()) == len(lesson) == 5 * each
        assert len(np.unique(lesson.judgment)) == 5
    with pytest.raises(ValueError, match="6 judgments to learn from, ties left out; 7 of them"):
        with_training_judgments(read_bapps(judged), 7, seed=0)


def test_class_triplets_hold_two_of_a_class_and_one_of_another_and_share_no_image_between_splits(
    tmp_path: Path,
) -> None:
    for i in range(60):
        write_photo(tmp_path / f"{'ab'[i % 2]}/{i}.png", (i / 60, 0, 0), i)
    images = open_images(str(tmp_path))
    trials = class_triplets(images, "photos", trials=200)
    label = np.array(images.labels)[trials.index]
    near = np.where(trials.votes == 1, label[:, 2], label[:, 1])
    far = np.where(trials.votes == 1, label[:, 1], label[:, 2])
    assert (near == label[:, 0]).all() and (far != label[:, 0]).all()
    assert (trials.split == "train").sum() == 160 and 0.3 < trials.votes.mean() < 0.7
    seen = {split: set(trials.of_split(split).index.ravel().tolist()) for split in ("train", "val", "test")}
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    assert np.array_equal(trials.index, class_triplets(images, "photos", trials=200).index)


def test_nights_scores_a_half_for_a_tie_and_votes_that_are_no_share_are_refused(tmp_path: Path) -> None:
    trials = read_nights(write_nights(tmp_path, [(1, 6, "train", True), (0, 6, "train", True)]))
    assert scores(trials, np.array([[0.2, 0.2], [0.1, 0.3]])).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"no trial of the split 'val'; it has \[.*train"):
        trials.of_split("val")
    with pytest.raises(ValueError, match="trial 1: votes nan"):
        Trials(**(vars(trials) | {"votes": np.array([0, np.nan])}))
