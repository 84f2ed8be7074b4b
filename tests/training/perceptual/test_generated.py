"""Generated trials: graded, known, the same every time, and split by image and by kind."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.pixels import PixelSpec
from training.images import digest_of, load_image, open_images
from training.perceptual.distortions import COUNTS, DISTORTIONS, KINDS, PASTED, RELATED, pasted
from training.perceptual.generated import Distorted, GeneratorConfig, generate
from training.perceptual.trials import Trials


def photo(seed: int) -> Image.Image:
    """Smooth colours with some grain: a photo, as far as distortions can tell."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (72, 96, 3)), 0, 255).astype(np.uint8))


def slope() -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    down, across = np.mgrid[:72, :96]
    return Image.fromarray(np.stack([2 * across, 3 * down, 0 * down], -1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(30):
        photo(seed).save(tmp_path / f"{seed:02d}.png")
    return tmp_path


def trials_of(folder: Path, **changes: object) -> Trials:
    return generate(open_images(str(folder)), "photos", GeneratorConfig(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(DISTORTIONS))
def test_more_strength_is_farther_from_the_original(kind: str) -> None:
    # What lies where can be told in a slope alone: in a photo, pixels are soon as far from theirs as they can be.
    image = slope() if kind in ("shift", "rotation") else photo(3)
    original = np.asarray(image, float)
    away = []
    for strength in np.linspace(0.05, 1.0, 6):
        out = DISTORTIONS[kind](image, float(strength), np.random.default_rng(1))
        away.append(np.abs(np.asarray(out.resize(image.size), float) - original).mean())
    if kind == "crop":  # pixels of a crop are not farther and farther: what is shown is
        areas = [np.prod(DISTORTIONS["crop"](image, s, np.random.default_rng(1)).size) for s in (0.1, 0.5, 1.0)]
        assert areas == sorted(areas, reverse=True) and 0.1 < areas[-1] / np.prod(image.size) < 0.2
    else:
        assert away == sorted(away) and away[-1] > 1.5 * away[0]


def test_every_kind_has_relatives_among_the_six_and_a_weaker_occlusion_lies_inside_a_stronger() -> None:
    assert {*KINDS, *RELATED} - set(DISTORTIONS) == {"count"} and set(RELATED.values()) <= set(KINDS)
    plain = Image.new("RGB", (60, 40), "white")
    hidden = [
        (np.asarray(DISTORTIONS["occlusion"](plain, s, np.random.default_rng(2))) != 255).any(-1) for s in (0.2, 0.6, 1)
    ]
    assert [round(part.mean(), 1) for part in hidden] == [0.1, 0.4, 0.6]
    assert all((more | less == more).all() for less, more in pairwise(hidden))


def test_the_count_grows_with_strength_and_the_weaker_objects_are_among_the_stronger() -> None:
    plain, red = Image.new("RGB", (200, 200), "black"), Image.new("RGB", (40, 40), "red")
    masks = [
        np.asarray(pasted(plain, red, strength, np.random.default_rng(5)))[..., 0] > 0
        for strength in (0.0, 1 / COUNTS, 0.5, 1.0)
    ]
    one = masks[0].sum() / PASTED
    assert [round(mask.sum() / one) for mask in masks] == [PASTED, PASTED + 1, PASTED + COUNTS // 2, PASTED + COUNTS]
    assert all((more | less == more).all() for less, more in pairwise(masks))


def test_the_answer_is_the_weaker_distortion_and_both_sides_are_as_likely(folder: Path) -> None:
    trials = trials_of(folder, per_image=20)
    images = trials.images
    assert isinstance(images, Distorted)
    nearer = images.strength[:, 2] < images.strength[:, 1]
    assert np.array_equal(trials.votes, nearer.astype(float)) and 0.4 < nearer.mean() < 0.6
    difference = np.abs(images.strength[:, 1] - images.strength[:, 2])
    assert difference.min() >= 0.15 - 1e-9 and difference.max() <= 0.4 + 1e-9 and images.strength.max() <= 1
    assert set(trials.kind.tolist()) == set(KINDS)


def test_no_image_is_in_two_splits_and_held_out_kinds_are_in_the_test_split_alone(folder: Path) -> None:
    trials = trials_of(folder, per_image=30, held_out=("blur", "count"))
    parts = {split: trials.of_split(split) for split in ("train", "val", "test")}
    assert {split: len(set(part.unit.tolist())) for split, part in parts.items()} == {"train": 24, "val": 3, "test": 3}
    images = trials.images
    assert isinstance(images, Distorted)
    for part in parts.values():
        own = set(part.unit.tolist())
        assert set(images.partner[part.judgment].tolist()) <= own
    assert {"blur", "count"} <= set(parts["test"].kind.tolist())
    assert not {"blur", "count"} & {*parts["train"].kind.tolist(), *parts["val"].kind.tolist()}
    with pytest.raises(ValueError, match="5 images leave none for"):
        generate(_First(images.images, 5), "five", GeneratorConfig())  # type: ignore[arg-type]


class _First:
    """The first few of some images, as far as `generate` asks."""

    def __init__(self, images: object, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


def test_a_row_is_the_same_every_time_and_another_seed_is_another_set(folder: Path) -> None:
    trials, again, other = trials_of(folder), trials_of(folder), trials_of(folder, seed=1)
    spec = PixelSpec(height=24, width=24, resize="squash", dtype="uint8")
    for row in range(0, 60, 7):
        assert trials.images.read(row) == again.images.read(row)
        assert load_image(trials.images, row, spec).shape == (3, 24, 24)
    assert digest_of(trials.images) == digest_of(again.images) != digest_of(other.images)
    assert len(set(trials.images.names)) == len(trials.images) == len(np.unique(trials.index))
    assert trials.images.names is trials.images.names  # a list of them all is not made again for each
    row = int(trials.index[2, 1])
    assert trials.images.where(row).startswith("left of trial 2, ")


@pytest.mark.parametrize("change", [{"own_draw": True}, {"longest": 40}, {"shares": (0.5, 0.3, 0.2)}])
def test_a_name_changes_with_all_that_the_pixels_are_made_of(folder: Path, change: dict[str, object]) -> None:
    counts = {"kinds": ("count",)}
    assert trials_of(folder, **counts).images.names != trials_of(folder, **counts, **change).images.names


def test_trials_of_one_image_share_its_row_as_reference_unless_objects_are_counted(folder: Path) -> None:
    trials = trials_of(folder, per_image=12)
    counted = trials.kind == "count"
    for image in range(30):
        assert len(set(trials.index[(trials.unit == image) & ~counted, 0].tolist())) == 1
    assert len(set(trials.index[counted, 0].tolist())) == counted.sum()
    assert len(trials.images) == 2 * len(trials) + 30 + counted.sum()


def test_a_small_gap_still_tells_counts_apart_by_one_object(folder: Path) -> None:
    trials = trials_of(folder, per_image=40, gap=(0.02, 0.05))
    images = trials.images
    assert isinstance(images, Distorted)
    objects = np.ceil(COUNTS * images.strength[:, 1:] - 1e-9)
    apart = np.abs(objects[:, 0] - objects[:, 1])
    difference = np.abs(images.strength[:, 1] - images.strength[:, 2])
    assert set(apart[trials.kind == "count"].tolist()) == {1.0}
    assert difference[trials.kind != "count"].max() <= 0.05 + 1e-9


def test_references_are_the_image_itself_and_alternatives_differ_from_it_and_each_other(folder: Path) -> None:
    trials = trials_of(folder)
    for trial in range(24):
        ref, left, right = (Image.open(io.BytesIO(trials.images.read(row))) for row in trials.index[trial])
        if trials.kind[trial] != "count":
            whole = Image.open(folder / f"{trials.unit[trial]:02d}.png")
            assert np.array_equal(np.asarray(ref), np.asarray(whole))
        assert left.size != right.size or not np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize("own_draw", [False, True], ids=["same draw", "own draw"])
@pytest.mark.parametrize("kind", [*KINDS, *RELATED])
def test_near_grades_of_small_images_are_two_pictures_and_the_answer_is_the_weaker(
    folder: Path, kind: str, own_draw: bool
) -> None:
    trials = trials_of(folder, kinds=(kind,), gap=(0.005, 0.03), longest=32, own_draw=own_draw)
    nearer = []
    for trial in range(40):
        ref, *both = (Image.open(io.BytesIO(trials.images.read(row))) for row in trials.index[trial])
        left, right = (np.asarray(image.resize(ref.size), float) for image in both)
        assert not np.array_equal(left, right)
        weak, strong = (right, left) if trials.votes[trial] else (left, right)
        nearer.append(np.abs(weak - np.asarray(ref, float)).mean() < np.abs(strong - np.asarray(ref, float)).mean())
    # Pixels of what has moved, or has another draw, are not farther the more it has; of the others they mostly are.
    assert own_draw or kind in ("crop", "shift", "rotation") or np.mean(nearer) > 0.8


def test_trials_that_are_two_pictures_are_drawn_at_their_own_strengths_and_others_only_as_far_apart_as_needed(
    folder: Path,
) -> None:
    trials = trials_of(folder, kinds=("blur", "pixelation"), longest=32)
    images, moved = trials.images, []
    assert isinstance(images, Distorted)
    for trial in range(60):
        photo = Image.open(io.BytesIO(images.read(int(trials.index[trial, 0]))))
        kind, strength = trials.kind[trial], images.strength[trial]
        plain = [DISTORTIONS[kind](photo, float(s), np.random.default_rng(0)) for s in strength[1:]]
        drawn = [Image.open(io.BytesIO(images.read(int(row)))) for row in trials.index[trial, 1:]]
        if plain[0].tobytes() == plain[1].tobytes():
            moved.append(kind)
            assert drawn[0].tobytes() != drawn[1].tobytes()
        else:
            assert [a.tobytes() for a in plain] == [b.tobytes() for b in drawn]
    assert 0 < len(moved) < 30 and set(moved) == {"pixelation"}


def test_a_photo_that_no_strength_changes_is_named(tmp_path: Path) -> None:
    for i in range(10):
        Image.new("RGB", (40, 30), "white").save(tmp_path / f"{i}.png")
    trials = trials_of(tmp_path, kinds=("blur",))
    with pytest.raises(ValueError, match=r"\d\.png is the same picture after blur of any strength \(trial 0\)"):
        trials.images.read(int(trials.index[0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("blur", "smell")}, r"no kinds of distortion \['smell'\]"),
        ({"kinds": ("blur",), "held_out": ("blur",)}, "there is none to train on"),
        ({"gap": (0.0, 0.4)}, "gap is"),
        ({"per_image": 0}, "per_image 0"),
    ],
)
def test_a_generator_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**change)  # type: ignore[arg-type]
