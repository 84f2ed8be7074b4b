import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from contract.pixels import (
    ELONGATED,
    FORMATS,
    ImageError,
    ImageFault,
    PixelLimits,
    PixelSpec,
    Resample,
    load_pixels,
    load_sized,
    normalize,
    shown_box,
)

WHITE = (255, 255, 255)
LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def channels_first(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def as_stored(width: int, height: int, **fields: Any) -> PixelSpec:
    """A spec that neither resizes nor normalises: the tensor is the picture."""
    return PixelSpec(**{"height": height, "width": width, "resize": "squash", "dtype": "uint8", **fields})


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def fault_of(data: bytes, limits: PixelLimits | None = None) -> tuple[ImageFault, int | None]:
    with pytest.raises(ImageError) as caught:
        load_pixels(data, as_stored(16, 16), limits)
    assert caught.value.fault in get_args(ImageFault)
    return caught.value.fault, caught.value.limit


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


def camera_file(upright: Image.Image, orientation: int, format_: str, **options: Any) -> tuple[Image.Image, bytes]:
    """What a camera held that way stores, and the file with the flag that turns it upright again."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored, encoded(stored, format_, exif=exif, **options)


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


# --- the spec ---------------------------------------------------------------------------------

SPECS = st.builds(
    PixelSpec,
    height=st.integers(1, 4096),
    width=st.integers(1, 4096),
    resize=st.just("crop"),
    short_side=st.integers(4096, 10**4),
    resample=st.sampled_from(get_args(Resample)),
    orientation=st.sampled_from(["exif", "ignore"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    dtype=st.sampled_from(["uint8", "float32"]),
    mean=st.tuples(*[st.floats(-300, 300)] * 3),
    std=st.tuples(*[st.floats(1e-3, 300)] * 3),
)


@given(SPECS)
def test_a_spec_survives_the_manifest(spec: PixelSpec) -> None:
    assert PixelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.shape == (3, spec.height, spec.width)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 0),
        ("height", -1),
        ("height", 4097),
        ("width", 0),
        ("width", 4097),
        ("height", 24.5),
        ("width", 24.0),
        ("height", True),
        ("height", "24"),
        ("width", None),
        ("resize", "stretch"),
        ("resize", None),
        ("resize", ["squash"]),
        ("short_side", 24),  # with squash
        ("resample", "area"),
        ("orientation", "upright"),
        ("color", "BGR"),
        ("background", [0, 0]),
        ("background", [0, 0, 256]),
        ("background", [0, 0, -1]),
        ("background", [0, 0, 0.5]),
        ("background", [0, 0, True]),
        ("background", None),
        ("background", 7),
        ("background", "abc"),
        ("dtype", "float16"),
        ("value_range", [0.0]),
        ("value_range", [0.0, 1.0, 2.0]),
        ("value_range", [0.0, math.inf]),
        ("value_range", [0.0, 0.0]),
        ("value_range", [1.0, 0.0]),
        ("value_range", 1.0),
        ("mean", [0.0, 0.0]),
        ("mean", [0.0, 0.0, math.nan]),
        ("mean", [0.0, 0.0, 10**400]),
        ("mean", "abc"),
        ("mean", None),
        ("std", [1.0, 1.0]),
        ("std", [1.0, 1.0, 0.0]),
        ("std", [1.0, -1.0, 1.0]),
        ("std", [1.0, 1.0, math.inf]),
        ("std", [1.0, 1.0, "1"]),
    ],
)
def test_a_bad_field_of_a_spec_is_refused_by_name(field: str, value: Any) -> None:
    fields = {**as_stored(24, 24).to_json(), field: value}
    with pytest.raises(ValueError, match=field):
        PixelSpec.from_json(fields)


def test_counts_that_are_wrong_in_two_fields_do_not_make_up_for_each_other() -> None:
    with pytest.raises(ValueError, match=r"value_range|mean"):
        as_stored(16, 16, value_range=(0.0, 0.5, 1.0), mean=(0.0, 0.0))


@pytest.mark.parametrize("short_side", [None, 23, 0, -24, 24.0, "24", True])
def test_a_crop_without_a_fitting_short_side_is_refused_by_name(short_side: Any) -> None:
    fields = {**as_stored(16, 24).to_json(), "resize": "crop", "short_side": short_side}
    with pytest.raises(ValueError, match="short_side"):
        PixelSpec.from_json(fields)


@pytest.mark.parametrize("field", sorted(PixelSpec.__dataclass_fields__))
def test_a_missing_field_of_a_spec_is_refused_by_name(field: str) -> None:
    fields = as_stored(16, 16).to_json()
    del fields[field]
    with pytest.raises(ValueError, match=rf"lacks \['{field}'\]"):
        PixelSpec.from_json(fields)


def test_an_unknown_field_of_a_spec_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['interpolation'\]"):
        PixelSpec.from_json({**as_stored(16, 16).to_json(), "interpolation": "bicubic"})


def test_a_spec_cannot_be_changed_only_copied() -> None:
    spec = as_stored(16, 16)
    with pytest.raises(AttributeError):
        spec.height = 17  # type: ignore[misc]
    assert replace(spec, height=17).shape == (3, 17, 16)


def test_exif_transpose_and_load_pixels_turn_alike() -> None:
    for orientation in range(1, 9):
        stored, data = camera_file(noise(20, 31), orientation, "PNG")
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert upright.size == (20, 31) and stored.size in ((20, 31), (31, 20))
        np.testing.assert_array_equal(load_pixels(data, as_stored(20, 31)), channels_first(upright))


def test_a_png_of_many_colour_profiles_is_refused_before_any_is_unpacked() -> None:
    # Each kilobyte unpacks to a megabyte: ten megabytes of them keep Pillow busy for half a minute.
    good = encoded(noise(20, 20), "PNG")
    profile = b"a\0\0" + zlib.compress(bytes(2**20))
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    assert load_pixels(good[:33] + chunk + good[33:], PixelSpec(height=8, width=8, resize="squash")).shape == (3, 8, 8)
    with pytest.raises(ImageError, match="colour profiles"):
        load_pixels(good[:33] + chunk * 2 + good[33:], PixelSpec(height=8, width=8, resize="squash"))


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
