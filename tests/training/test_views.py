"""Views of images: crops and mirrors that are images of their own, the same every time."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.pixels import PixelSpec
from tests.training.tiny import write_photo
from training.feeds import in_batch
from training.images import load_image, open_images
from training.views import AREA, Views, with_views


@pytest.fixture
def views(tmp_path: Path) -> Views:
    """Three photos, four views of each."""
    for seed in range(3):
        write_photo(tmp_path / f"{seed}.png", np.random.default_rng(seed).random(3), seed)
    return Views(open_images(str(tmp_path)), 4)


def test_the_first_rows_are_the_images_and_every_name_is_unique(views: Views) -> None:
    assert len(views) == len(views.names) == len(set(views.names)) == len(views.sizes) == 15
    for row in range(3):
        assert views.read(row) == views.images.read(row)
    assert views.where(7).startswith("view 2 of ") and views.where(7).endswith("1.png")


def test_a_view_is_a_part_of_its_image_perhaps_mirrored_and_the_same_every_time(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = Views(open_images(str(tmp_path)), 30)
    mirrored = 0
    for row in range(1, 31):
        assert views.read(row) == views.read(row)
        spec = PixelSpec(height=20, width=30, resize="squash", dtype="uint8")
        assert load_image(views, row, spec).shape == (3, 20, 30)
        part = np.asarray(Image.open(io.BytesIO(views.read(row))))
        height, width = part.shape[:2]
        assert AREA[0] * 0.8 <= height * width / 600 <= AREA[1]
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (height, width, 3))[..., 0, :, :, :]
        found = [(windows == x).all((2, 3, 4)).any() for x in (part, part[:, ::-1])]
        assert any(found)
        mirrored += found[1]
    assert 5 < mirrored < 25


def test_a_feed_with_views_embeds_the_images_of_its_steps_in_some_view(views: Views) -> None:
    label = np.arange(40) % 4
    feed = in_batch(np.arange(40), label, batch=12, per_group=3, triplets=50, sampling="border", seed=1)
    seen = with_views(feed, 40, 3, seed=0)
    for number in range(5):
        step, plain = seen(number), feed(number)
        assert np.array_equal(step.rows % 40, plain.rows) and np.array_equal(step.index, plain.index)
        assert np.array_equal(step.rows, seen(number).rows)
    drawn = np.concatenate([seen(number).rows // 40 for number in range(200)])
    assert np.bincount(drawn, minlength=4).min() > 0.2 * len(drawn)
