"""Transfer: separable classes are learned from one shot, sets are divided as said, shifts test unseen subclasses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.training.evaluation.worlds import tiny_setting
from tests.training.tiny import write_rows
from training.evaluation.breeds import BREEDS, superclasses
from training.evaluation.image_sets import image_sets, imagenet, synsets
from training.evaluation.result import Constants, NotHere, Setting
from training.evaluation.subjects import Features, Subject
from training.evaluation.transfer import anomaly, auroc, breeds, classification, readout, shot_rows, untrained

SIZES = {"living17": (17, 2), "entity13": (13, 10), "entity30": (30, 4), "nonliving26": (26, 2)}


def write_images(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def setting_of(data: Path, *vectors: np.ndarray, **constants: object) -> Setting:
    """One stored model for each array of vectors: a, b, ..."""
    subjects = []
    for name, x in zip("abc", vectors, strict=False):
        np.save(data / f"{name}.npy", x.astype(np.float32))
        subjects.append(Subject(name, {"x": name}, stored=(data / f"{name}.npy", None)))
    return Setting(data, tuple(subjects), Features(data / "f"), Constants(repetitions=5, **constants))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BREEDS)
def test_breeds_have_the_published_sizes_and_no_class_twice(name: str) -> None:
    found = superclasses(name)
    count, each = SIZES[name]
    assert len(found) == count
    assert all(len(one.train) == len(one.test) == each for one in found)
    every = [number for one in found for number in (*one.train, *one.test)]
    assert len(every) == len(set(every)) == 2 * count * each
    assert min(every) >= 0 and max(every) <= 999


def test_breeds_mean_what_they_say() -> None:
    assert synsets()[33] == "n01664065"  # loggerhead, a turtle, tested on in living17
    assert any(33 in one.test for one in superclasses("living17"))


def test_shots_are_of_each_class_and_no_more_than_there_are() -> None:
    label = np.array(["a"] * 5 + ["b"] * 2)
    rows = shot_rows(label, 3, 0)
    assert sorted(label[rows].tolist()) == ["a"] * 3 + ["b"] * 2
    assert len(set(rows.tolist())) == 5


@pytest.mark.parametrize(("classifier", "shots"), [("ridge", 1), ("ridge", None), ("logistic", 10)])
def test_readouts_learn_what_is_separable_whatever_its_scale(classifier: str, shots: int | None) -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(["x", "y", "z"], 12)
    centre = np.repeat(np.eye(3) * 1e4, 12, axis=0)
    features = (centre + rng.normal(size=(36, 3)) * 100 + 1e5).astype(np.float32)
    assert (readout(features, label, classifier, shots)(features) == label).all()


def test_one_shot_of_many_classes_is_learned_without_a_warning() -> None:
    names, eye = np.array([f"class {i}" for i in range(30)]), np.eye(30, dtype=np.float32)
    assert (readout(eye, names, "ridge", 1)(eye) == names).all()  # warnings are errors here


def test_a_set_with_its_own_test_part_keeps_it_and_others_are_halved(tmp_path: Path) -> None:
    own = [f"own/{part}/{c}/{i}.png" for part, n in (("train", 3), ("test", 1)) for c in "ab" for i in range(n)]
    halved = [f"halved/{c}/{i}.png" for c in "ab" for i in range(5)] + ["halved/lonely/0.png"]
    write_images(tmp_path / "classification", own + halved)
    second, first = image_sets(tmp_path, 0)
    assert (first.name, int(first.test.sum()), len(first.test)) == ("own", 2, 8)
    assert (second.name, int(second.test.sum()), len(second.test)) == ("halved", 4, 10)
    assert "1 photos of classes with one photo" in second.note


def test_a_class_that_is_only_tested_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "classification/x", ["train/a/0.png", "train/b/0.png", "test/c/0.png"])
    with pytest.raises(ValueError, match=r"1 classes that train/ has not: \['c'\]"):
        image_sets(tmp_path, 0)


def test_classification_tells_classes_from_noise_by_every_readout(tmp_path: Path) -> None:
    names = [f"{c}/{i:02}.png" for c in "abc" for i in range(24)]
    write_images(tmp_path / "classification/x", names)
    rng = np.random.default_rng(0)
    noise, clear = rng.normal(size=(72, 6)), np.repeat(np.eye(3), 24, axis=0) + rng.normal(size=(72, 3)) * 0.05
    rows = classification(setting_of(tmp_path, noise, clear)).rows
    value = {(r.model, r.setting): r.estimate for r in rows}
    hows = {how for _, how in value}
    assert hows == {"1 shot, ridge", "1 shot, nearest", "10 shots, ridge", "all, ridge", "1-NN", "10-NN"}
    assert all(value["b", how].value == 1 for how in hows)
    assert np.mean([value["a", how].value for how in hows]) < 0.7
    assert value["b - a", "all, ridge"].low > 0


def test_breeds_are_tested_on_other_subclasses(tmp_path: Path) -> None:
    rows, vectors = [["path", "wordnet_id"]], []
    for i, one in enumerate(superclasses("nonliving26")):
        for number in sorted(one.train | one.test):
            for photo in range(2):
                rows.append([f"{number}-{photo}.png", synsets()[number]])
                vectors.append(np.eye(26)[i])
    rows.append(["other.png", "n99999999"])
    write_images(tmp_path, [row[0] for row in rows[1:]])
    write_rows(tmp_path / "images.csv", rows)
    found = breeds(setting_of(tmp_path, np.array([*vectors, np.zeros(26)])))
    value = {r.group: r.estimate for r in found.rows}
    assert value["nonliving26"].value == 1
    assert value["nonliving26"].n == 104
    assert any("too few photos" in note for note in found.notes)
    read = imagenet(tmp_path)
    assert read is not None and len(read[1]) == 208  # the unknown id is no ImageNet photo


def test_without_imagenet_breeds_say_so(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="no ImageNet photos"):
        breeds(setting_of(tmp_path))


@pytest.mark.parametrize("one_normal", [True, False])
def test_anomalies_are_scored_by_the_five_nearest_normal_images(one_normal: bool) -> None:
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(40, 3)).astype(np.float32), np.array(["a", "b", "a", "c"] * 10)
    test = np.arange(40) >= 20
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    by_hand = []
    for one in "abc":
        is_normal = (label == one) == one_normal
        score = [-np.sort(unit[is_normal & ~test] @ v)[-5:].mean() for v in unit[test]]
        by_hand.append(roc_auc_score(~is_normal[test], score))
    assert auroc(x, label, test, one_normal=one_normal) == pytest.approx(by_hand)


def test_separate_classes_are_all_found_as_anomalies(tmp_path: Path) -> None:
    write_images(tmp_path / "classification/x", [f"{c}/{i}.png" for c in "abc" for i in range(4)])
    rows = anomaly(setting_of(tmp_path, np.repeat(np.eye(3), 4, axis=0))).rows
    assert {r.setting: r.estimate.value for r in rows} == {"one normal class": 1, "one anomalous class": 1}


def test_classes_that_alignment_was_trained_on_are_told_apart(tmp_path: Path) -> None:
    setting = replace(tiny_setting(tmp_path, vice=0.0), held_out=np.array([0, 1]))
    one = next(s for s in image_sets(setting.data, 0) if s.name == "caltech101")
    unseen = untrained(setting, one)
    assert unseen is not None
    assert set(one.label[one.test][unseen].tolist()) == {"class 0", "class 1"}
    figures = {row.figure: row.estimate.n for row in classification(setting).rows}
    assert figures["accuracy, classes not trained on"] == int(unseen.sum()) < figures["accuracy"]
    assert untrained(replace(setting, held_out=None), one) is None
