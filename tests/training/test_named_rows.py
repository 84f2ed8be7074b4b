"""Rows and the images that they are of: by name where names are beside a file, by position elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.__main__ import main
from training.named_rows import Rows, match, names_beside, read_groups, read_vectors

PHOTOS = ["a.png", "b.png", "c.png", "d.png"]


def rows_of(file: str, names: list[str] | None, values: Any) -> Rows:
    return Rows(Path(file), np.array(values), names)


def test_images_are_those_of_the_names_and_other_files_are_put_in_their_order() -> None:
    teacher = rows_of("t/x.npy", ["d.png", "a.png", "c.png"], [[3], [0], [2]])
    groups = rows_of("k/x.npy", ["a.png", "c.png", "d.png"], [10, 12, 13])
    found = match(PHOTOS, "photos", [teacher, groups, None, rows_of("own/x.npy", None, [20, 21, 22, 23])])
    assert found.kept is not None and found.kept.tolist() == [3, 0, 2]
    assert [None if v is None else v.ravel().tolist() for v in found.values] == [
        *([3, 0, 2], [13, 10, 12], None, [23, 20, 22])
    ]
    assert found.said == "photos: 1 of 4 images have no row in t/x.npy and are left out: 'b.png'"


def test_without_names_or_with_those_of_the_images_nothing_is_moved_or_copied() -> None:
    for names in (None, PHOTOS):
        given = rows_of("x.npy", names, np.eye(4))
        found = match(PHOTOS, "photos", [given])
        assert found.kept is None and found.values[0] is given.values and not found.said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(None, 3)], r"0\.npy is \(3,\); expected a number for each of the 4 images .* would be 'd\.png'.*`embed`"),
        ([(None, 5)], r"0\.npy is \(5,\); expected a number for each of the 4 images of photos\.$"),
        ([(["a.png", "z.png"], 2)], r"names\.txt, row 1: 'z\.png' is not among the 4 images of photos"),
        ([(["a.png", "a.png"], 2)], r"names\.txt, row 1: 'a\.png' is there twice"),
        ([(["a.png", "b.png"], 2), (["a.png"], 1)], r"1\.npy has no row for 'b\.png', 0\.npy has one"),
        ([(["a.png"], 1), (["a.png", "b.png"], 2)], r"0\.npy has no row for 'b\.png', 1\.npy has one"),
        ([(["a.png", "b.png"], 2), (None, 2)], r"1\.npy is \(2,\); expected a number for each of the 4 images"),
    ],
)
def test_rows_that_cannot_be_told_are_refused_by_the_first_image(given: Any, message: str) -> None:
    rows = [rows_of(f"{i}.npy", names, np.zeros(n)) for i, (names, n) in enumerate(given)]
    with pytest.raises(ValueError, match=message):
        match(PHOTOS, "photos", rows)


def test_names_belong_to_the_files_beside_them_that_have_as_many_rows(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a.png\nb.png\n")
    for name, array in (("vectors", np.zeros((2, 3))), ("centroids", np.zeros((5, 3)))):
        np.save(tmp_path / f"{name}.npy", array)
    assert read_vectors(tmp_path / "vectors.npy").names == ["a.png", "b.png"]
    assert read_vectors(tmp_path / "centroids.npy").names is None
    np.save(tmp_path / "groups.npy", np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"groups\.npy is float64 \(2,\); expected a whole number for each image"):
        read_groups(tmp_path / "groups.npy")
    with pytest.raises(ValueError, match=r"vectors\.npy is float64 \(2, 3\); expected a whole number"):
        read_groups(tmp_path / "vectors.npy")


def test_what_is_made_of_named_features_is_named_alike(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"{i}.png" for i in range(9)))
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32))
    np.savez(tmp_path / "t.npz", weights=np.eye(2, dtype=np.float32), mean=np.float32(0), std=np.float32(1))
    aligned, clusters = tmp_path / "aligned", tmp_path / "clusters"
    features = ["--features", str(tmp_path / "features.npy")]
    main(["transform", *features, "--transform", str(tmp_path / "t.npz"), "--out", str(aligned)])
    main(["cluster", "--features", f"{aligned}/aligned.npy", "--out", str(clusters), "--clusters", "2", "--elbow"])
    assert names_beside(clusters / "assignments.npy", 9) == [f"{i}.png" for i in range(9)]
