"""Small files that are slow: how much of a decoding thread's time a file may take beside its pixels.

Pillow walks a file's segments, chunks, blocks and tiles in Python, some microseconds each, before the pixels and after
them. Ten megabytes hold millions, and took 5 to 13 seconds a file. What counts as too many is far above any real file:
of 5,190 photos (Caltech-101, ImageNet, docs/photos) none has more than 10 JPEG segments, or is read in more than 43
pieces.
"""

import io
from collections.abc import Iterator

import numpy as np

MAX_READS = 100_000
"""Pieces that Pillow may ask a file for: 98,000 make a TIFF of 25 million pixels in tiles of 16 x 16, the smallest."""

MAX_JPEG_SCANS = 100
"""A progressive photo has about ten. Each scan costs a pass over the whole image, however few bytes it has."""

MAX_JPEG_SEGMENTS = 1000
"""Segments are 64 KiB at most; 10 MiB in full ones (metadata of depth cameras) are 160."""

MAX_PNG_CHUNKS = 1000
"""Beside those of pixels; real files have a dozen."""

MAX_FRACTIONS = 1000
"""Values of one entry of a TIFF or EXIF directory. A lens has 4; each that Pillow reads becomes an object."""

MAX_EXIF_HEADS = 8
"""One after another, where one is right. Pillow cuts them off one by one and copies the rest: 1.3 MB took 5 seconds."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_TIFF = (b"II", b"MM")

_PIXEL_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")  # of a moving picture's other frames, which are not read, too
_FRACTIONS = (5, 10)  # RATIONAL, SRATIONAL
_OFFSETS = (273, 324)  # of strips, of tiles

_SCAN, _END, _APP1, _EXIF = 0xDA, 0xD9, 0xE1, b"Exif\0\0"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xDE}
# Markers that no length follows, as Pillow reads them: a walk that differs from its own can be led past what it reads.
_BARE = {0x01, 0xC8, _END, *range(0xF0, 0xFE)}
# A marker that is neither stuffing (00), fill (FF), a restart (D0..D7) nor the start of an image (D8).
_MARKS = bytes(kind not in {0x00, 0xFF, *range(0xD0, 0xD9)} for kind in range(256))


class HeaderFault(Exception):
    """A file that would take too long; `limit` is the bound it broke. No ValueError, which Pillow takes for its own."""

    def __init__(self, message: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class Metered(io.BytesIO):
    """A file's bytes, for Pillow. `read` raises HeaderFault when it is called more than `MAX_READS` times."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self._left -= 1
        if self._left < 0:
            message = f"image is cut into more than {MAX_READS} pieces (segments, chunks, blocks, tiles); save it anew."
            raise HeaderFault(message, MAX_READS)
        return super().read(size)


def check_headers(data: bytes) -> None:
    """Look at a PNG's chunks, a JPEG's segments or a TIFF's directory before Pillow does; other formats pass.

    Raises:
        HeaderFault: there are more than a decoder gets through quickly.
    """
    if data.startswith(PNG):
        _check_png(data)
    elif data.startswith(JPEG):
        _check_jpeg(data)
    elif data.startswith(_TIFF):
        check_directory(data)


def _check_png(data: bytes) -> None:
    """At most one colour profile, as the format demands, and few chunks, up to the end: Pillow reads what follows too.

    It unpacks every profile it meets: ten megabytes of them take half a minute.
    """
    at, profiles, others = len(PNG), 0, 0
    for _ in range(MAX_READS // 2):  # reads of one chunk, at least
        kind = data[at + 4 : at + 8]
        if kind in (b"IEND", b""):
            return
        profiles += kind == b"iCCP"
        others += kind not in _PIXEL_CHUNKS
        if profiles > 1:
            raise HeaderFault("PNG has two colour profiles; save it anew.", 1)
        if others > MAX_PNG_CHUNKS:
            raise HeaderFault(
                f"PNG has more than {MAX_PNG_CHUNKS} chunks beside its pixels; save it anew.", MAX_PNG_CHUNKS
            )
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise HeaderFault(f"PNG is cut into more than {MAX_READS // 2} chunks; save it anew.", MAX_READS // 2)


def _check_jpeg(data: bytes) -> None:
    """Few segments, scans and fractions, and one frame, up to the end marker. Reads markers, decodes nothing."""
    scans, frames, exif = 0, 0, []
    for kind, start, end in _segments(data):
        scans += kind == _SCAN
        frames += kind in _FRAMES
        if scans > MAX_JPEG_SCANS:
            raise HeaderFault(f"JPEG has more than {MAX_JPEG_SCANS} scans; save it anew.", MAX_JPEG_SCANS)
        if frames > 1:  # no decoder takes two, but Pillow notes the components of each, 100 bytes for 3
            raise HeaderFault("JPEG has two frames; save it anew.", 1)
        if kind == _APP1 and not scans and data[start : start + len(_EXIF)] == _EXIF:
            exif.append(data[start + len(_EXIF) : end])  # Pillow joins them likewise
    check_directory(b"".join(exif))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The (kind, start, end) of what stands in a JPEG's segments, until its end marker."""
    # numpy finds the markers, as a file of nothing but fill bytes must not cost what it is to be refused for.
    bytes_ = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero((bytes_[:-1] == 0xFF) & np.frombuffer(data.translate(_MARKS), bool)[1:])
    at, scanned = 2, False
    for _ in range(MAX_JPEG_SEGMENTS):
        found = int(np.searchsorted(marks, at))
        if found == len(marks):
            return
        kind, at = data[marks[found] + 1], int(marks[found]) + 2
        if kind == _END and scanned:  # thumbnails and whatever else follows is not decoded
            return
        scanned = scanned or kind == _SCAN
        # A thumbnail inside of a segment is stepped over with it.
        end = at if kind in _BARE else at + int.from_bytes(data[at : at + 2], "big")
        yield kind, at + 2, end
        at = end
    raise HeaderFault(f"JPEG has more than {MAX_JPEG_SEGMENTS} segments; save it anew.", MAX_JPEG_SEGMENTS)


def check_directory(block: bytes) -> None:
    """Look at the first directory of a TIFF file or an EXIF block; one that is broken passes, as it is not read far.

    Raises:
        HeaderFault: many heads of EXIF, an entry that is a long list of fractions, or more strips or tiles than
            `MAX_READS`.
    """
    heads = 0
    while block.startswith(_EXIF, heads * len(_EXIF)):
        heads += 1
        if heads > MAX_EXIF_HEADS:
            raise HeaderFault(
                f"image has metadata with more than {MAX_EXIF_HEADS} heads of EXIF; save it without.", MAX_EXIF_HEADS
            )
    block = block[heads * len(_EXIF) :]
    order: str = ">" if block.startswith(b"MM") else "<"
    big = block[2:3] == b"\x2b"  # BigTIFF, as Pillow knows it
    word = 8 if big else 4
    start = int.from_bytes(block[word : 2 * word], "big" if order == ">" else "little")
    first = start + (8 if big else 2)
    fields = [("tag", "u2"), ("kind", "u2"), ("count", f"u{word}"), ("value", f"u{word}")]
    layout = np.dtype([(name, order + kind) for name, kind in fields])
    count = int.from_bytes(block[start:first], "big" if order == ">" else "little")
    count = min(count, (len(block) - first) // layout.itemsize)
    if count < 1:
        return
    entries = np.frombuffer(block, layout, count, first)
    if (np.isin(entries["tag"], _OFFSETS) & (entries["count"] > MAX_READS)).any():
        raise HeaderFault(f"TIFF is cut into more than {MAX_READS} strips or tiles; save it anew.", MAX_READS)
    if (np.isin(entries["kind"], _FRACTIONS) & (entries["count"] > MAX_FRACTIONS)).any():
        raise HeaderFault(
            f"image has metadata with a list of more than {MAX_FRACTIONS} fractions; save it without.", MAX_FRACTIONS
        )
