"""Retrieval and robustness: recall by hand, ties against the model, ImageNet's relatives in their layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import write_rows
from training.evaluation.image_sets import synsets
from training.evaluation.result import Constants, NotHere, Setting
from training.evaluation.retrieval import cross_recall, image_recall, read_captions
from training.evaluation.robustness import read_shifted, robustness
from training.evaluation.subjects import Features, Subject

A, B, C = synsets()[3], synsets()[5], synsets()[9]


def write_images(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, "PNG")


def test_recall_is_the_rank_of_the_first_of_the_class() -> None:
    angle = np.array([0.0, 0.1, 0.3, 0.7])
    x = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    found = image_recall(x, np.array(["a", "b", "b", "a"]))
    # The first asks: 1, 2, then the last. The second: 0, then 2. The third: 1 at once. The last: 2, 1, then 0.
    assert found["at 1"].tolist() == [0, 0, 1, 0]
    assert found["at 5"].tolist() == [1, 1, 1, 1]


def test_a_constant_embedding_retrieves_nothing_first_and_a_lone_class_never() -> None:
    found = image_recall(np.ones((20, 3), np.float32), np.array(["a", "b"] * 9 + ["c", "d"]))
    assert found["at 10"].sum() == 0  # eleven wrong ones are as similar as the best right one


def test_captions_find_their_image_and_images_any_of_their_captions() -> None:
    images = np.eye(3, dtype=np.float32)
    captions = images[[0, 0, 1, 1]]
    right = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
    assert cross_recall(captions, images, right)["at 1"].tolist() == [1, 0, 1, 0]
    assert cross_recall(images, captions, right.T)["at 1"].tolist() == [0, 0, 0]  # a tie with a wrong caption
    assert cross_recall(images, captions, right.T)["at 5"].tolist() == [1, 1, 1]


def test_captions_are_read_and_an_empty_one_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    rows = [["image", "caption"], ["b.png", "one"], ["a.png", " two "], ["b.png", "three"]]
    write_rows(tmp_path / "captions.csv", rows)
    images, captions, image_of = read_captions(tmp_path)
    assert (images.names, captions, image_of.tolist()) == (("b.png", "a.png"), ["one", "two", "three"], [0, 1, 0])
    write_rows(tmp_path / "captions.csv", [*rows, ["a.png", " "]])
    with pytest.raises(ValueError, match="row 3: no caption"):
        read_captions(tmp_path)


def test_corruptions_are_groups_and_other_folders_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "c", [f"blur/{s}/{w}/x.png" for s in (1, 5) for w in (A, B)])
    _, truth, part = read_shifted(tmp_path / "c")
    assert part == ["blur 1", "blur 1", "blur 5", "blur 5"]
    assert truth == [{3}, {5}, {3}, {5}]
    write_images(tmp_path / "c", ["blur/1/cat/x.png"])
    with pytest.raises(ValueError, match="expected the folder of a class"):
        read_shifted(tmp_path / "c")


def test_real_takes_any_of_several_labels_and_judges_no_image_without(tmp_path: Path) -> None:
    write_images(tmp_path, [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)])
    (tmp_path / "real.json").write_text(json.dumps([[3, 5], [], [9]]))
    images, truth, _ = read_shifted(tmp_path)
    assert truth == [{3, 5}, {9}]
    assert images.names[1].endswith("00000003.JPEG")


def test_a_shifted_set_is_judged_among_its_own_classes(tmp_path: Path) -> None:
    write_images(tmp_path, [f"imagenet/{w}/{i}.png" for w in (A, B, C) for i in range(4)])
    write_images(tmp_path, [f"robustness/a/{w}/{i}.png" for w in (A, B) for i in range(2)])

    def vectors(n: int, each: int) -> np.ndarray:
        return np.repeat(np.eye(3)[:n], each, axis=0) + np.random.default_rng(n).normal(size=(n * each, 3)) * 0.05

    class Both(Features):
        def of(self, subject: Subject, images: object) -> np.ndarray:  # type: ignore[override]
            return vectors(3, 4) if len(images) == 12 else vectors(2, 2)  # type: ignore[arg-type]

    found = robustness(Setting(tmp_path, (Subject("m", {}),), Both(tmp_path / "f"), Constants(repetitions=3)))
    assert [(r.group, r.estimate.value, r.estimate.n) for r in found.rows] == [("a", 1, 4)]
    (tmp_path / "imagenet").rename(tmp_path / "elsewhere")
    with pytest.raises(NotHere, match="no ImageNet photos"):
        robustness(Setting(tmp_path, (Subject("m", {}),), Both(tmp_path / "f"), Constants()))
