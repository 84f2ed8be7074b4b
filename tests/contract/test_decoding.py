"""What a file shows: modes, formats, transparency, orientation."""

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from contract.pixels import (
    ImageError,
    load_pixels,
)
from tests.contract.pictures import LOSSLESS, as_stored, camera_file, channels_first, encoded, noise, png

# --- modes and formats ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "format_", "options"),
    [
        ("1", "PNG", {}),
        ("1", "TIFF", {"compression": "group4"}),
        ("1", "BMP", {}),
        ("L", "PNG", {}),
        ("L", "BMP", {}),
        ("L", "GIF", {}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("P", "BMP", {}),
        ("P", "TIFF", {}),
        ("RGB", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_deflate"}),
        ("RGB", "WEBP", {"lossless": True}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {}),
    ],
)
def test_every_mode_decodes_to_the_rgb_it_shows(mode: str, format_: str, options: dict[str, Any]) -> None:
    picture = noise(19, 23).convert(mode)
    data = encoded(picture, format_, **options)
    np.testing.assert_array_equal(load_pixels(data, as_stored(19, 23)), channels_first(picture))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_decode_nearly_to_what_they_show(mode: str, progressive: bool) -> None:
    picture = Image.linear_gradient("L").resize((40, 24)).convert("RGB").convert(mode)
    data = encoded(picture, "JPEG", quality=100, subsampling=0, progressive=progressive)
    given_, wanted = load_pixels(data, as_stored(40, 24)).astype(int), channels_first(picture).astype(int)
    assert np.abs(given_ - wanted).max() <= 4


def test_a_phone_photo_with_a_second_picture_in_it_shows_the_first() -> None:
    first, second = Image.new("RGB", (20, 16), (200, 0, 0)), Image.new("RGB", (20, 16), (0, 0, 200))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(load_pixels(data, as_stored(20, 16))[:, 3, 3].astype(int) - [200, 0, 0]).max() <= 4


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_high_byte(format_: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (17, 18), dtype=np.uint16)
    values[0, :3] = (0, 255, 65_535)
    data = encoded(Image.fromarray(values), format_)
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    tensor = load_pixels(data, as_stored(18, 17))
    np.testing.assert_array_equal(tensor, np.stack([values >> 8] * 3))


def test_sixteen_bit_gray_and_sixteen_bit_colour_of_the_same_values_look_the_same() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16)).astype(">u2")
    zero = np.zeros((16, 1), np.uint8)  # PNG's filter byte before each row: none
    gray = np.concatenate([zero, values.view(np.uint8)], 1).tobytes()
    color = np.concatenate([zero, np.repeat(values, 3, 1).view(np.uint8)], 1).tobytes()
    spec = as_stored(16, 16)
    from_gray, from_color = (load_pixels(png(16, 16, 16, kind, rows), spec) for kind, rows in ((0, gray), (2, color)))
    np.testing.assert_array_equal(from_gray, from_color)


def test_big_endian_sixteen_bit_tiffs_keep_their_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16), dtype=np.uint16)
    # width, height, bits, compression, photometric, offset, rows, bytes: each one 32-bit number
    tags = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 110, 278: 16, 279: 512}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + values.astype(">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode == "I;16B"
    np.testing.assert_array_equal(load_pixels(data, as_stored(16, 16))[0], values >> 8)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_an_agreed_range_are_refused_with_advice(mode: str) -> None:
    data = encoded(Image.new(mode, (16, 16)), "TIFF")
    with pytest.raises(ImageError, match=f"mode {mode} .*8 or 16 bits") as caught:
        load_pixels(data, as_stored(16, 16))
    assert caught.value.fault == "unsupported_image_format"


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_moving_pictures_and_many_pages_show_the_first_frame(format_: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (16, 18), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_array_equal(load_pixels(data, as_stored(16, 18)), channels_first(frames[0]))


# --- transparency -----------------------------------------------------------------------------


@given(
    background=st.tuples(*[st.integers(0, 255)] * 3),
    hidden=st.tuples(*[st.integers(0, 255)] * 3),
    format_=st.sampled_from(["PNG", "TIFF", "WEBP"]),
)
@settings(deadline=None, max_examples=30)
def test_transparent_pixels_show_the_background_and_never_their_hidden_colour(
    background: tuple[int, int, int], hidden: tuple[int, int, int], format_: str
) -> None:
    picture = Image.new("RGBA", (16, 16), (10, 20, 30, 255))
    picture.paste((*hidden, 0), (4, 4, 12, 12))
    data = encoded(picture, format_, **({"lossless": True, "exact": True} if format_ == "WEBP" else {}))
    tensor = load_pixels(data, as_stored(16, 16, background=background))
    assert tuple(tensor[:, 8, 8].tolist()) == background
    assert tensor[:, 0, 0].tolist() == [10, 20, 30]


def test_half_transparent_pixels_mix_with_the_background() -> None:
    data = encoded(Image.new("RGBA", (16, 16), (200, 100, 0, 128)), "PNG")
    tensor = load_pixels(data, as_stored(16, 16, background=(0, 0, 255)))
    # 128/255 of the colour, 127/255 of the background: 100.4, 50.2, 127.
    assert tensor[:, 5, 5].tolist() == [100, 50, 127]


def test_transparent_gray_shows_the_background() -> None:
    picture = Image.new("LA", (16, 16), (70, 255))
    picture.paste((70, 0), (0, 0, 8, 16))
    tensor = load_pixels(encoded(picture, "PNG"), as_stored(16, 16, background=(1, 2, 3)))
    assert tensor[:, 0, 0].tolist() == [1, 2, 3] and tensor[:, 0, 15].tolist() == [70, 70, 70]


@pytest.mark.parametrize(("format_", "transparency"), [("PNG", 0), ("PNG", bytes([0, 255])), ("GIF", 0)])
def test_transparent_palette_entries_show_the_background(format_: str, transparency: int | bytes) -> None:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.paste(0, (0, 0, 8, 16))
    tensor = load_pixels(encoded(picture, format_, transparency=transparency), as_stored(16, 16, background=(9, 8, 7)))
    assert tensor[:, 0, 0].tolist() == [9, 8, 7] and tensor[:, 0, 15].tolist() == [0, 255, 0]


@pytest.mark.parametrize(("mode", "key"), [("L", 77), ("RGB", (77, 77, 77)), ("1", 0)])
def test_a_colour_named_transparent_shows_the_background(mode: str, key: Any) -> None:
    picture = Image.new(mode, (16, 16), 0 if mode == "1" else key)
    data = encoded(picture, "PNG", transparency=key)
    assert load_pixels(data, as_stored(16, 16, background=(1, 2, 3)))[:, 0, 0].tolist() == [1, 2, 3]


def test_the_background_is_white_unless_declared() -> None:
    data = encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "PNG")
    assert (load_pixels(data, as_stored(16, 16)) == 255).all()


def test_transparency_is_laid_on_the_background_before_resizing() -> None:
    # Resizing first would bleed the hidden black into the edge.
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 31, 64))
    assert (load_pixels(encoded(picture, "PNG"), as_stored(16, 16)) == 255).all()


# --- orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format_", "options"), LOSSLESS)
def test_a_turned_photo_gives_the_same_tensor_as_the_upright_one(
    format_: str, options: dict[str, Any], orientation: int
) -> None:
    upright = noise(20, 31)
    _, data = camera_file(upright, orientation, format_, **options)
    np.testing.assert_array_equal(load_pixels(data, as_stored(20, 31)), channels_first(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_gives_nearly_the_same_tensor_as_the_upright_one(orientation: int) -> None:
    upright = Image.linear_gradient("L").resize((24, 40)).convert("RGB")
    upright.paste((200, 30, 30), (0, 0, 12, 16))
    _, data = camera_file(upright, orientation, "JPEG", quality=100, subsampling=0)
    difference = load_pixels(data, as_stored(24, 40)).astype(int) - channels_first(upright)
    assert np.abs(difference).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format_", "options"), LOSSLESS)
def test_ignoring_the_orientation_leaves_the_photo_as_stored(
    format_: str, options: dict[str, Any], orientation: int
) -> None:
    stored, data = camera_file(noise(20, 31), orientation, format_, **options)
    tensor = load_pixels(data, as_stored(*stored.size, orientation="ignore"))
    np.testing.assert_array_equal(tensor, channels_first(stored))


@pytest.mark.parametrize(
    ("mode", "format_"), [("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("I;16", "TIFF")]
)
def test_every_mode_turns_like_colour_does(mode: str, format_: str) -> None:
    gray = Image.fromarray(np.arange(16 * 18, dtype=np.uint16).reshape(18, 16) * 200)
    upright = gray if mode == "I;16" else noise(16, 18).convert(mode)
    _, turned = camera_file(upright, 6, format_)
    wanted = load_pixels(encoded(upright, format_), as_stored(16, 18))
    np.testing.assert_array_equal(load_pixels(turned, as_stored(16, 18)), wanted)


def test_a_turned_palette_picture_keeps_its_transparency() -> None:
    picture = Image.new("P", (16, 18), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.paste(0, (0, 0, 16, 9))
    _, data = camera_file(picture, 3, "PNG", transparency=0)
    tensor = load_pixels(data, as_stored(16, 18, background=(9, 8, 7)))
    assert tensor[:, 0, 0].tolist() == [9, 8, 7] and tensor[:, 17, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_outside_1_to_8_leaves_the_photo_as_stored(orientation: int) -> None:
    stored, data = camera_file(noise(20, 31), orientation, "PNG")
    np.testing.assert_array_equal(load_pixels(data, as_stored(20, 31)), channels_first(stored))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_is_ignored(format_: str) -> None:
    picture, xmp = noise(20, 31), b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, Any] = {
        "PNG": {"pnginfo": PngInfo()},
        "WEBP": {"lossless": True, "xmp": xmp},
        "TIFF": {"tiffinfo": {700: xmp}},
    }[format_]
    if format_ == "PNG":
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    data = encoded(picture, format_, **options)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6  # Pillow itself would turn it
    np.testing.assert_array_equal(load_pixels(data, as_stored(20, 31)), channels_first(picture))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"junk",
        b"Exif\0\0",
        b"Exif\0\0junk",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 64,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x40\0\0\xff\xff\0\0\0\0",  # orientation as far-away text
    ],
)
def test_a_broken_exif_block_does_not_refuse_the_photo(format_: str, block: bytes) -> None:
    picture = Image.new("RGB", (20, 16), (200, 30, 30))
    data = encoded(picture, format_, exif=block, **({"lossless": True} if format_ == "WEBP" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken blocks; a server does not stop for that
        tensor = load_pixels(data, as_stored(20, 16))
    assert np.abs(tensor[:, 5, 5].astype(int) - [200, 30, 30]).max() <= 4


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_exif_block_whatever_its_bytes_refuses_the_photo(block: bytes) -> None:
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 30)), "PNG", exif=b"Exif\0\0" + block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_pixels(data, as_stored(16, 16))[:, 5, 5].tolist() == [200, 30, 30]


def test_exif_transpose_and_load_pixels_turn_alike() -> None:
    for orientation in range(1, 9):
        stored, data = camera_file(noise(20, 31), orientation, "PNG")
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert upright.size == (20, 31) and stored.size in ((20, 31), (31, 20))
        np.testing.assert_array_equal(load_pixels(data, as_stored(20, 31)), channels_first(upright))
