"""Good pictures in files that would keep a decoding thread for seconds: refused, and what real files have is not."""

import struct
import zlib

import pytest
from PIL import Image

from contract.pixels import ImageError, PixelSpec, load_pixels
from tests.contract.pictures import encoded, noise

SPEC = PixelSpec(height=8, width=8, resize="squash", dtype="uint8")
PNG, JPEG = encoded(noise(20, 18), "PNG"), encoded(noise(20, 18), "JPEG")
GIF = encoded(noise(20, 18), "GIF")
HEAD, TAIL = 33, len(PNG) - 12  # of the PNG: behind its IHDR, before its IEND
SOS, EOI = JPEG.index(b"\xff\xda"), len(JPEG) - 2
IMAGE = GIF.index(b",", 13 + 768)  # behind the palette
MANY = 200_000  # more than any bound, and still no long test


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def segment(kind: int, body: bytes = b"") -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body


def put(file: bytes, at: int, piece: bytes) -> bytes:
    return file[:at] + piece + file[at:]


def directory(*entries: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """A TIFF directory of (tag, type, count, value or place)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + more


def tiff(*entries: tuple[int, int, int, int], more: bytes) -> bytes:
    """20 x 18 gray pixels, as `entries` place them; `more` begins at byte 86 + 12 an entry."""
    plain = [(256, 3, 1, 20), (257, 3, 1, 18), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return directory(*plain, *entries, more=more)


def tiles(count: int) -> bytes:
    """A TIFF that lists this many tiles."""
    return tiff((322, 3, 1, 20), (323, 3, 1, 18), (324, 4, count, 134), (325, 4, 1, 360), more=bytes(4 * count))


def fractions(tag: int, count: int) -> bytes:
    """A TIFF or EXIF directory with a list of fractions for one tag."""
    return directory((tag, 5, count, 26), more=struct.pack("<II", 1, 1) * count)


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20)))

SLOW = {
    "PNG, profiles behind the pixels": (put(PNG, TAIL, PROFILE * 2), "two colour profiles"),
    "PNG, a profile on each side": (put(put(PNG, TAIL, PROFILE), HEAD, PROFILE), "two colour profiles"),
    "PNG, chunks behind the pixels": (put(PNG, TAIL, chunk(b"abCd") * 1001), "1000 chunks"),
    "PNG, empty pixel chunks": (put(PNG, TAIL, chunk(b"IDAT") * MANY), "50000 chunks"),
    "JPEG, empty segments": (put(JPEG, 2, segment(0xE2) * 1001), "1000 segments"),
    "JPEG, segments without a length": (put(JPEG, 2, b"\xff\xfe\0\0" * 1001), "1000 segments"),
    "JPEG, hidden in a marker without a body": (
        put(JPEG, 2, b"\xff\xf0" + struct.pack(">H", 4006) + segment(0xE2) * 1001),
        "1000 segments",
    ),
    "JPEG, behind an end that is none": (put(JPEG, 2, b"\xff\xd9" + segment(0xE2) * 1001), "1000 segments"),
    "JPEG, segments behind the pixels": (put(JPEG, EOI, segment(0xFE) * 1001), "1000 segments"),
    "JPEG, fill": (put(JPEG, 2, b"\xff" * MANY), "100000 pieces"),
    "JPEG, junk": (put(JPEG, SOS, bytes(MANY)), "100000 pieces"),
    "JPEG, restarts": (put(JPEG, SOS, b"\xff\xd1" * MANY), "100000 pieces"),
    "JPEG, frames": (put(JPEG, SOS, segment(0xC0, b"\x08\0\x12\0\x14\3" + b"\1\x11\0" * 1000) * 2), "two frames"),
    "JPEG, heads of EXIF": (put(JPEG, 2, segment(0xE1, b"Exif\0\0" * 10)), "8 heads of EXIF"),
    "JPEG, EXIF": (put(JPEG, 2, segment(0xE1, b"Exif\0\0" + fractions(282, 1001))), "1000 fractions"),
    "GIF, blocks": (put(GIF, IMAGE, b"!\xfe\1a\0" * MANY), "100000 pieces"),
    "TIFF, resolution": (fractions(282, 1001), "1000 fractions"),
    "TIFF, tiles": (tiles(100_001), "100000 strips or tiles"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_file_that_costs_more_than_its_pixels_is_refused(name: str) -> None:
    data, reason = SLOW[name]
    with pytest.raises(ImageError, match=reason) as caught:
        load_pixels(data, SPEC)
    assert caught.value.fault == "undecodable_image"


def test_a_bmp_in_run_lengths_is_decoded_only_if_it_is_small() -> None:
    def bmp(width: int, height: int, rows: bytes) -> bytes:
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
        return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + head + bytes(range(256)) * 4 + rows

    assert load_pixels(bmp(20, 18, b"\x14\x01\0\0" * 18), SPEC).shape == (3, 8, 8)
    with pytest.raises(ImageError, match="1000 x 1001 pixels; at most 1000000"):
        load_pixels(bmp(1000, 1001, b"\x01\x01\0\0" * 1001), SPEC)


GOOD = {
    "PNG, pixels in chunks of a byte": PNG[:HEAD]
    + b"".join(chunk(b"IDAT", bytes((b,))) for b in PNG[HEAD + 8 : TAIL - 4])
    + PNG[TAIL:],
    "PNG, as many chunks as may be": put(put(PNG, TAIL, chunk(b"abCd") * 998), HEAD, PROFILE),
    "PNG, moving, of many frames": encoded(
        noise(20, 18), "PNG", save_all=True, append_images=[noise(20, 18, n) for n in range(1, 600)]
    ),
    "JPEG, 10 MiB of metadata": put(JPEG, 2, segment(0xE1, b"http://ns.adobe.com/xmp/".ljust(65_533)) * 159),
    "JPEG, a photo of many frames inside": put(JPEG, 2, segment(0xE1, JPEG[:SOS] * 3)),
    "JPEG, another photo behind": JPEG + JPEG,
    "JPEG, lens": put(JPEG, 2, segment(0xE1, b"Exif\0\0" + fractions(42034, 4))),
    "TIFF, a strip a row": tiff(
        (273, 3, 18, 122), (278, 3, 1, 1), (279, 3, 18, 158), more=struct.pack("<36H", *[194] * 18, *[20] * 18) + PNG
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_with_much_that_real_ones_have_is_not(name: str) -> None:
    assert load_pixels(GOOD[name], SPEC).shape == (3, 8, 8)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_an_orientation_of_many_fractions_is_not_read(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def oriented(count: int) -> bytes:
        return encoded(noise(20, 18), format_, lossless=True, exif=b"Exif\0\0" + fractions(0x0112, count))

    read: list[bytes] = []
    few, many = oriented(1), oriented(1001)
    monkeypatch.setattr(Image.Exif, "load", lambda self, block: read.append(block))
    assert load_pixels(many, SPEC).shape == (3, 8, 8)  # the photo is good, as with any broken EXIF
    assert read == []
    load_pixels(few, SPEC)
    assert len(read) == 1
