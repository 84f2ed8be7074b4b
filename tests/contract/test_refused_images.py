"""Files that are refused, each with its fault, before they cost anything."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from contract.pixels import (
    FORMATS,
    ImageError,
    ImageFault,
    PixelLimits,
    PixelSpec,
    load_pixels,
)
from tests.contract.pictures import as_stored, encoded, noise, png


def fault_of(data: bytes, limits: PixelLimits | None = None) -> tuple[ImageFault, int | None]:
    with pytest.raises(ImageError) as caught:
        load_pixels(data, as_stored(16, 16), limits)
    assert caught.value.fault in get_args(ImageFault)
    return caught.value.fault, caught.value.limit


# --- sizes and faults -------------------------------------------------------------------------


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the decoders whose pixels were asked for."""
    called: list[str] = []
    for kind in (Image.Image, ImageFile.ImageFile, *{type(Image.open(io.BytesIO(d))) for d in valid_files().values()}):
        original = kind.load

        def load(self: Image.Image, original: Any = original) -> Any:
            called.append(type(self).__name__)
            return original(self)

        monkeypatch.setattr(kind, "load", load)
    return called


@pytest.mark.parametrize("action", ["error", "ignore"])  # Pillow warns between 89 and 179 million pixels, then raises
@pytest.mark.parametrize("side", [5001, 10_000, 20_000])
def test_a_bomb_of_zeros_is_refused_before_any_pixel_is_decoded(side: int, action: Any, decodes: list[str]) -> None:
    bomb = png(side, side, 1, 0, bytes((1 + (side + 7) // 8) * side))
    assert len(bomb) < 500_000
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        assert fault_of(bomb) == ("too_many_pixels", 25_000_000)
    assert decodes == []


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_measured_before_any_pixel_is_decoded(format_: str, decodes: list[str]) -> None:
    data = valid_files()[format_]
    assert fault_of(data, PixelLimits(max_pixels=20 * 18 - 1)) == ("too_many_pixels", 20 * 18 - 1)
    assert fault_of(data, PixelLimits(min_side=19)) == ("side_too_short", 19)
    assert fault_of(data, PixelLimits(max_side=19)) == ("side_too_long", 19)
    assert fault_of(data, PixelLimits(max_bytes=len(data) - 1)) == ("image_too_large", len(data) - 1)
    assert decodes == []
    load_pixels(data, as_stored(20, 18))
    assert decodes != []  # the watch itself works


def test_limits_are_inclusive() -> None:
    data = encoded(noise(20, 18), "PNG")
    exact = PixelLimits(max_bytes=len(data), max_pixels=360, min_side=18, max_side=20)
    assert load_pixels(data, as_stored(20, 18), exact).shape == (3, 18, 20)


@pytest.mark.parametrize("size", [(15, 100), (100, 15), (1, 1)])
def test_a_side_that_is_too_short_is_refused_with_the_limit_and_the_size(size: tuple[int, int]) -> None:
    data = encoded(Image.new("L", size), "PNG")
    assert fault_of(data) == ("side_too_short", 16)
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]}.* 16"):
        load_pixels(data, as_stored(16, 16))


@pytest.mark.parametrize("size", [(16_385, 16), (16, 16_385), (16_385, 1)])
def test_a_side_that_is_too_long_is_refused_with_the_limit_and_the_size(size: tuple[int, int]) -> None:
    data = encoded(Image.new("L", size), "PNG")
    assert fault_of(data) == ("side_too_long", 16_384)
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]}.* 16384"):
        load_pixels(data, as_stored(16, 16))


def test_too_many_bytes_are_refused_before_they_are_looked_at() -> None:
    assert fault_of(bytes(10 * 2**20 + 1)) == ("image_too_large", 10 * 2**20)


@pytest.mark.parametrize("format_", ["ICO", "PPM", "JPEG2000", "TGA", "PCX", "ICNS", "EPS", "DDS", "PDF"])
def test_formats_that_are_not_on_the_list_are_refused_as_such(format_: str) -> None:
    try:
        data = encoded(noise(32, 32), format_)
    except OSError:
        pytest.skip(f"this Pillow cannot write {format_}")
    assert fault_of(data) == ("unsupported_image_format", None)


@pytest.mark.parametrize(
    "data",
    [
        b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 20, 20, 8, 3) + bytes(1400),  # PSD
        b"this is a text, not a picture",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"/>',
        b"\0",
        b"%PDF-1.4",
        b"RIFF\x04\0\0\0WAVE",
        bytes(1000),
    ],
)
def test_bytes_of_no_known_format_are_refused_as_such(data: bytes) -> None:
    assert fault_of(data) == ("unsupported_image_format", None)


def test_empty_and_cut_off_images_do_not_decode() -> None:
    assert fault_of(b"") == ("undecodable_image", None)
    for format_ in ("PNG", "JPEG", "BMP", "TIFF"):
        data = valid_files()[format_]
        assert fault_of(data[: len(data) * 2 // 3]) == ("undecodable_image", None), format_


def test_a_png_of_many_colour_profiles_is_refused_before_any_is_unpacked() -> None:
    # Each kilobyte unpacks to a megabyte: ten megabytes of them keep Pillow busy for half a minute.
    good = encoded(noise(20, 20), "PNG")
    profile = b"a\0\0" + zlib.compress(bytes(2**20))
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    assert load_pixels(good[:33] + chunk + good[33:], PixelSpec(height=8, width=8, resize="squash")).shape == (3, 8, 8)
    with pytest.raises(ImageError, match="colour profiles"):
        load_pixels(good[:33] + chunk * 2 + good[33:], PixelSpec(height=8, width=8, resize="squash"))


# --- hostile bytes ----------------------------------------------------------------------------


@cache
def valid_files() -> dict[str, bytes]:
    """One small file of every format and a few more of the ones with many variants, each 20 x 18."""
    picture, exif = noise(20, 18), Image.Exif()
    exif[0x0112] = 6
    files = {name: encoded(picture, name) for name in FORMATS}
    files["TIFF lzw, turned"] = encoded(picture, "TIFF", compression="tiff_lzw", exif=exif)
    files["TIFF jpeg"] = encoded(picture, "TIFF", compression="jpeg")
    files["JPEG progressive, turned"] = encoded(picture, "JPEG", progressive=True, exif=exif)
    files["PNG palette, turned"] = encoded(picture.convert("P"), "PNG", transparency=0, exif=exif)
    files["WEBP alpha, turned"] = encoded(picture.convert("RGBA"), "WEBP", lossless=True, exif=exif)
    files["GIF moving"] = encoded(picture, "GIF", save_all=True, append_images=[noise(20, 18, 1)], transparency=3)
    return files


def accepts_or_refuses(data: bytes, orientation: Any = "exif") -> None:
    """The whole promise of `load_pixels`: a tensor of the declared shape, or ImageError."""
    limits = PixelLimits(max_pixels=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in production; with "error" Pillow would stop earlier
        try:
            tensor = load_pixels(data, as_stored(9, 8, orientation=orientation), limits)
        except ImageError as error:
            assert error.fault in get_args(ImageFault) and str(error)
        else:
            assert (tensor.shape, tensor.dtype) == ((3, 8, 9), np.uint8)


@given(st.binary(max_size=400), st.sampled_from([b"", *(data[:12] for data in valid_files().values())]))
@settings(deadline=None, max_examples=300)
def test_random_bytes_raise_nothing_but_image_errors(data: bytes, head: bytes) -> None:
    accepts_or_refuses(head + data)


@given(
    st.sampled_from(sorted(valid_files())),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    st.sampled_from(["exif", "ignore"]),
)
@settings(deadline=None, max_examples=600)
def test_valid_files_with_altered_bytes_raise_nothing_but_image_errors(
    name: str, changes: list[tuple[float, int]], orientation: str
) -> None:
    data = bytearray(valid_files()[name])
    for where, value in changes:
        # Squared: most changes fall near the start, where headers and tables are.
        data[int(where * where * len(data))] = value
    accepts_or_refuses(bytes(data), orientation)


@given(st.sampled_from(sorted(valid_files())), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=20))
@settings(deadline=None, max_examples=200)
def test_valid_files_with_a_piece_replaced_raise_nothing_but_image_errors(
    name: str, start: float, end: float, piece: bytes
) -> None:
    data = valid_files()[name]
    accepts_or_refuses(data[: int(start * len(data))] + piece + data[int(end * len(data)) :])


@pytest.mark.parametrize("name", sorted(valid_files()))
def test_files_cut_at_every_tenth_raise_nothing_but_image_errors(name: str) -> None:
    data = valid_files()[name]
    for tenth in range(10):
        accepts_or_refuses(data[: len(data) * tenth // 10])
