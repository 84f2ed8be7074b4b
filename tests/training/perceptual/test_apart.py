"""Which images are one photo, and what is left of trials and photos when no part may show what another is judged on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import write_photo, write_photos
from training.images import open_images
from training.perceptual.apart import Apart, contents, shown_by
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.trials import Trials


def judged(folder: Path) -> Trials:
    """Trials of twenty photos, of which the first twelve are those of another folder."""
    index = [[0, 12, 13], [12, 1, 13], [5, 12, 13], [12, 13, 0], [1, 6, 12], [2, 7, 9]]
    split = ["train", "train", "train", "val", "val", "test"]
    t = np.arange(len(index))
    images, kind = write_photos(folder, 20), np.full(len(t), "any")
    return Trials(
        source="judged", images=images, index=np.array(index), votes=np.ones(len(t)), split=np.array(split), kind=kind,
        judgment=t, unit=t,
    )  # fmt: skip


def test_images_are_one_where_their_bytes_are_equal_wherever_they_lie(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.png").write_bytes(photos.read(2))
    write_photo(tmp_path / "others/b.png", (0, 0, 0), 99)
    (tmp_path / "others.csv").write_text("path\nothers/b.png\nothers/a.png\nphotos/0.png\nabsent.png\ngone.png\n")
    first, second = contents((photos, open_images(str(tmp_path / "others.csv"))))
    assert second[1] == first[2] and second[2] == first[0]
    assert len({*first.tolist(), *second.tolist()}) == 6


def test_a_trial_shows_its_own_photo_and_the_one_an_object_is_cut_out_of(tmp_path: Path) -> None:
    images = write_photos(tmp_path, 20)
    trials = generate(images, "photos", GeneratorConfig(kinds=("count", "warp"), longest=16))
    originals, shown = shown_by(trials)
    assert originals is images
    partner = trials.images.partner  # type: ignore[attr-defined]
    for trial, (kind, unit) in enumerate(zip(trials.kind, trials.unit, strict=True)):
        assert set(shown[trial].tolist()) == ({unit, partner[trial]} if kind == "count" else {unit})


def test_each_part_leaves_out_what_the_other_is_judged_on(tmp_path: Path) -> None:
    photos = replace(write_photos(tmp_path / "photos", 12), concept=np.repeat([0, 1, 2, -1], [1, 4, 4, 3]))
    trials = judged(tmp_path / "trials")
    seen = Apart(photos, trials).seen(np.array([0]), np.array([1]))
    assert seen.rows.tolist() == [5, 8, 10, 11]  # 6 is validated on; 7 and 9 are reported
    assert seen.validation.tolist() == [1, 3, 4]  # 2 is reported
    np.testing.assert_array_equal(seen.trials.index, trials.index[[2, 4, 5]])
    assert list(seen.counts.values()) == [{"kept": k, "left out": n} for k, n in ((1, 2), (1, 1), (4, 3), (3, 1))]
    with pytest.raises(ValueError, match=r"judged: 0 of 3 training trials are left, because .* expected 1 or more"):
        Apart(photos, trials).seen(np.array([0, 2]), np.array([1]))
