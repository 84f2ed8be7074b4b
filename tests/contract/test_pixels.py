"""From a picture to the tensor of a model: resizing, cropping, values."""

import io
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from contract.pixels import (
    ELONGATED,
    PixelSpec,
    Resample,
    load_pixels,
    load_sized,
    normalize,
    shown_box,
)
from tests.contract.pictures import as_stored, channels_first, encoded, noise

# --- resizing and cropping --------------------------------------------------------------------


def resized_then_cropped(image: Image.Image, spec: PixelSpec) -> np.ndarray:
    """torchvision's Resize(short_side) and CenterCrop, written out with Pillow."""
    short = spec.short_side
    assert short is not None
    width, height = image.size
    scaled = (int(short * width / height), short) if height <= width else (short, int(short * height / width))
    whole = image.resize(scaled, Image.Resampling[spec.resample.upper()])
    top, left = round((scaled[1] - spec.height) / 2.0), round((scaled[0] - spec.width) / 2.0)
    return channels_first(whole.crop((left, top, left + spec.width, top + spec.height)))


@given(
    st.integers(16, 128),
    st.integers(16, 128),
    st.sampled_from([(24, 24, 24), (24, 24, 28), (17, 23, 31), (40, 12, 41)]),
    st.sampled_from(get_args(Resample)),
)
@example(33, 50, (24, 24, 24), "bicubic")  # int(24 * 50 / 33) = 36, offset 6
@example(24, 27, (24, 24, 24), "bicubic")  # offset 1.5 rounds half to even: 2
@example(24, 29, (24, 24, 24), "bicubic")  # offset 2.5 rounds half to even: 2
@settings(deadline=None, max_examples=60)
def test_crop_is_resize_then_centre_crop(width: int, height: int, sizes: tuple[int, int, int], resample: Any) -> None:
    spec = as_stored(sizes[0], sizes[1], resize="crop", short_side=sizes[2], resample=resample)
    picture = noise(width, height)
    np.testing.assert_array_equal(load_pixels(encoded(picture, "PNG"), spec), resized_then_cropped(picture, spec))


@given(st.integers(16, 90), st.integers(16, 90), st.sampled_from(get_args(Resample)))
@settings(deadline=None, max_examples=40)
def test_squash_scales_both_sides_to_fit(width: int, height: int, resample: Any) -> None:
    picture = noise(width, height)
    tensor = load_pixels(encoded(picture, "PNG"), as_stored(21, 34, resample=resample))
    wanted = channels_first(picture.resize((21, 34), Image.Resampling[resample.upper()]))
    np.testing.assert_array_equal(tensor, wanted)


@pytest.mark.parametrize("size", [(16_384, 16), (16, 16_384), (16 * (ELONGATED + 1), 16), (16, 16 * (ELONGATED + 1))])
def test_a_strip_is_cropped_at_the_same_place_as_any_photo(size: tuple[int, int]) -> None:
    # A smooth ramp along the strip: a crop at another place, or of another width, would have another colour.
    ramp = np.linspace(0, 255, max(size)).round().astype(np.uint8)
    across = np.tile(ramp, (16, 1))
    strip = Image.fromarray(across if size[0] > size[1] else across.T).convert("RGB")
    spec = as_stored(32, 24, resize="crop", short_side=36)
    difference = load_pixels(encoded(strip, "PNG"), spec).astype(int) - resized_then_cropped(strip, spec)
    assert np.abs(difference).max() <= 2


def test_a_strip_never_becomes_a_whole_resized_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(self: Image.Image, size: Any, *args: Any, **options: Any) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    data = encoded(Image.new("RGB", (16_384, 16)), "PNG")
    tensor = load_pixels(data, PixelSpec(height=224, width=224, resize="crop", short_side=256))
    assert tensor.shape == (3, 224, 224) and sizes == [(224, 224)]


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value_range", "mean", "std"),
    [
        ((0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.0, 255.0), (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
        ((-1.0, 1.0), (0.1, 0.2, 0.3), (2.0, 3.0, 4.0)),
    ],
)
def test_float_pixels_are_the_range_less_the_mean_over_the_std(
    value_range: tuple[float, float], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    picture = noise(18, 17)
    low, high = value_range
    in_range = low + channels_first(picture).astype(np.float64) / 255 * (high - low)
    wanted = np.stack([(in_range[c] - mean[c]) / std[c] for c in range(3)])
    spec = as_stored(18, 17, dtype="float32", value_range=value_range, mean=mean, std=std)
    tensor = load_pixels(encoded(picture, "PNG"), spec)
    assert (tensor.dtype, tensor.shape, tensor.flags.c_contiguous) == (np.float32, (3, 17, 18), True)
    np.testing.assert_allclose(tensor, wanted, atol=1e-6)


def test_hand_worked_pixel_values() -> None:
    data = encoded(Image.new("RGB", (16, 16), (0, 127, 255)), "PNG")
    spec = as_stored(16, 16, dtype="float32", value_range=(0.0, 255.0), mean=(127.0,) * 3, std=(128.0,) * 3)
    np.testing.assert_allclose(load_pixels(data, spec)[:, 0, 0], [-127 / 128, 0.0, 1.0], atol=1e-6)


def test_uint8_pixels_are_left_as_they_are_in_one_block_of_memory() -> None:
    picture = noise(18, 17)
    tensor = load_pixels(encoded(picture, "PNG"), as_stored(18, 17, mean=(9.0,) * 3, std=(9.0,) * 3))
    assert (tensor.dtype, tensor.shape, tensor.flags.c_contiguous) == (np.uint8, (3, 17, 18), True)
    np.testing.assert_array_equal(tensor, channels_first(picture))


def test_normalize_takes_one_image_or_a_batch() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    spec = as_stored(6, 4, dtype="float32", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    together = normalize(batch, spec)
    assert (together.dtype, together.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(together, np.stack([normalize(image, spec) for image in batch]))


def test_the_same_bytes_give_the_same_tensor() -> None:
    data = encoded(noise(90, 70), "JPEG")
    spec = PixelSpec(height=32, width=32, resize="crop", short_side=36)
    assert load_pixels(data, spec).tobytes() == load_pixels(data, spec).tobytes()


def test_a_colour_profile_changes_nothing() -> None:
    picture = noise(16, 16)
    data = encoded(picture, "PNG", icc_profile=b"not even a profile")
    np.testing.assert_array_equal(load_pixels(data, as_stored(16, 16)), channels_first(picture))


# --- where a tensor's pixels come from -----------------------------------------------------------


@given(st.integers(16, 400), st.integers(16, 400), st.sampled_from(["squash", "crop"]), st.sampled_from(range(1, 9)))
@settings(max_examples=60, deadline=None)
def test_the_shown_box_is_where_the_pixels_come_from(width: int, height: int, resize: Any, orientation: int) -> None:
    """A photo that says in red and green where each pixel is, turned by EXIF, read in the tensor's four corners."""
    spec = as_stored(16, 16, resize=resize, short_side=20 if resize == "crop" else None, resample="bilinear")
    stored = Image.new("RGB", (width, height))
    turned = _upright(_tagged(stored, orientation))
    x, y = np.meshgrid(np.arange(turned.width) + 0.5, np.arange(turned.height) + 0.5)
    upright = np.stack([x / turned.width, y / turned.height, x * 0], -1) * 255
    data = _tagged(_unturned(Image.fromarray(upright.round().astype(np.uint8)), orientation), orientation)
    pixels, size = load_sized(data, spec)
    assert size == turned.size
    left, top, right, bottom = shown_box(size, spec)
    cell_x, cell_y = (right - left) / 16, (bottom - top) / 16
    for row, column in ((2, 2), (2, 13), (13, 2), (13, 13)):
        found = pixels[:2, row, column] / 255 * size
        wanted = (left + (column + 0.5) * cell_x, top + (row + 0.5) * cell_y)
        assert found == pytest.approx(wanted, abs=1 + 0.01 * max(size))


def _tagged(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "PNG", exif=exif)


def _upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def _unturned(image: Image.Image, orientation: int) -> Image.Image:
    """What a file must store so that its orientation shows `image`."""
    return _upright(_tagged(image, {6: 8, 8: 6}.get(orientation, orientation)))
