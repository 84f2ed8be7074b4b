"""The photo manifest: what is read, and what is refused by name."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import write_photo, write_rows
from training.photos import NO_CONCEPT, read_photos

HEADER = ["path", "dataset", "label", "wordnet_id", "things_index"]


def manifest_of(folder: Path, rows: list[list[Any]], header: list[str] = HEADER) -> Path:
    write_photo(folder / "cat.png", (0.5, 0.5, 0.5), seed=0)
    return write_rows(folder / "images.csv", [header, *rows])


def test_a_manifest_is_read_in_its_order_and_other_columns_are_ignored(tmp_path: Path) -> None:
    photos = read_photos(
        manifest_of(tmp_path, [["cat.png", "d1", "cat", "n1", 2], ["cat.png", "d2", "dog", "", ""]]), 3
    )
    assert photos.paths == ("cat.png", "cat.png")
    assert photos.dataset == ("d1", "d2")
    assert photos.label == ("cat", "dog")
    assert photos.concept.tolist() == [2, NO_CONCEPT]
    assert photos.root == tmp_path
    assert len(photos) == 2


def test_concepts_are_those_with_photos_and_their_photos_are_found(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["cat.png", "d", "cat", "", concept] for concept in (5, 1, "", 5, 0)]
    photos = read_photos(manifest_of(tmp_path, rows), 6)
    assert photos.concepts.tolist() == [0, 1, 5]
    assert photos.of_concept(5).tolist() == [0, 3]
    assert photos.of_concept(2).tolist() == []


def test_missing_columns_of_the_manifest_are_named(tmp_path: Path) -> None:
    file = manifest_of(tmp_path, [["cat.png", "cat"]], header=["path", "label"])
    with pytest.raises(ValueError, match=r"images\.csv lacks the columns \['dataset', 'things_index'\]"):
        read_photos(file, 3)


@pytest.mark.parametrize("concept", [3, -2, 1854])
def test_a_concept_out_of_range_is_refused_with_its_row(tmp_path: Path, concept: int) -> None:
    file = manifest_of(tmp_path, [["cat.png", "d", "cat", "", 2], ["cat.png", "d", "cat", "", concept]])
    with pytest.raises(ValueError, match=rf"row 1: things_index {concept}; expected 0 to 2 or empty. 1 of 2 rows"):
        read_photos(file, 3)


@pytest.mark.parametrize("row", [["cat.png", "d", "cat", "", "dog"], ["cat.png"]])
def test_a_row_that_is_no_number_or_is_cut_short_is_refused_with_its_row(tmp_path: Path, row: list[Any]) -> None:
    file = manifest_of(tmp_path, [["cat.png", "d", "cat", "", 2], row, ["cat.png", "d", "cat", "", 2]])
    with pytest.raises(ValueError, match="row 1"):
        read_photos(file, 3)


def test_missing_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    rows = [[path, "d", "cat", "", ""] for path in ("cat.png", "gone.png", "cat.png", "lost.png")]
    with pytest.raises(ValueError, match=r"2 of 4 files do not exist, the first is 'gone\.png'"):
        read_photos(manifest_of(tmp_path, rows), 3)


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"1 of 1 files do not exist, the first is 'folder\.png'"):
        read_photos(manifest_of(tmp_path, [["folder.png", "d", "cat", "", ""]]), 3)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images\.csv lists no photo"):
        read_photos(manifest_of(tmp_path, []), 3)


@pytest.mark.realdata
def test_the_real_manifest_has_5186_photos_of_279_concepts(realdata: Path) -> None:
    photos = read_photos(realdata / "images.csv", 1854)
    assert len(photos) == 5186
    assert len(photos.concepts) == 279
    assert Counter(photos.dataset) == {"caltech101": 4286, "imagenet_sample": 900}
