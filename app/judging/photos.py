"""The photos of a study: numbered, copied for people to look at, embedded for the model to doubt.

People see copies: upright, at most `LONGEST` pixels a side, without the metadata of the file (a photo's place and
time, for instance), under names made of their content. Vectors lie beside the database, one file for each space, by
the content of the photos; what is known is not embedded again.
"""

import asyncio
import csv
import hashlib
import io
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.embedder import Embedder
from app.errors import ServiceError
from app.files import photos_under
from app.judging.choosing import PART, WHOLE
from app.timings import Timings
from contract.files import whole
from contract.pixels import FORMATS, ImageError, PixelLimits, PixelSpec, load_pixels, load_sized

log = logging.getLogger("alignet")

LONGEST = 800
"""Pixels of the longer side of what people see."""
MIDDLE = 0.7
"""Share of each side that the second view of a photo keeps: clearly the same photo, and not the same picture."""
AT_ONCE = 4
"""Photos that are embedded side by side; requests of clients go between them."""
SAVE_EVERY = 256
"""Photos after which their vectors are written, so that a start that is ended goes on from there."""

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photo:
    """One photo: its path relative to the study's folder, and its content."""

    path: str
    sha256: str


def copy_file(folder: Path, sha256: str, view: int) -> Path:
    """Where the copy of a photo lies that people see."""
    return folder / "shown" / f"{sha256}-{view}.jpg"


def read_photos(
    folder: Path, data: Path, limits: PixelLimits, counted: Callable[[int, int], None]
) -> tuple[list[Photo], list[tuple[str, str]]]:
    """The photos of a folder, each content once, with the copies that people see made where they are not there.

    Args:
        folder: of the study.
        data: its folder of data.
        limits: of one file, as of a client's.
        counted: told how many photos of how many have been looked at.

    Returns:
        the photos, and (path, what is wrong) of the files that cannot be used; they stand in `refused.csv` too.
    """
    (data / "shown").mkdir(parents=True, exist_ok=True)
    files = photos_under(folder)
    found: dict[str, Photo] = {}
    refused: list[tuple[str, str]] = []
    for i, file in enumerate(files):
        counted(i, len(files))
        name = file.relative_to(folder).as_posix()
        try:
            name.encode()
            content = file.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 not in found and not all(copy_file(data, sha256, view).exists() for view in (WHOLE, PART)):
                for view, copy in zip((WHOLE, PART), copies(content, limits), strict=True):
                    with whole(copy_file(data, sha256, view)) as stream:
                        stream.write(copy)
            found.setdefault(sha256, Photo(name, sha256))
        except ImageError as error:
            refused.append((name, str(error)))
        except UnicodeEncodeError:
            refused.append((ascii(name), "the name is no UTF-8; rename the file."))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "fault"), *refused])
    with whole(data / "refused.csv") as stream:
        stream.write(text.getvalue().encode())
    return list(found.values()), refused


def copies(content: bytes, limits: PixelLimits) -> tuple[bytes, bytes]:
    """A photo as JPEG, and its middle. Raises ImageError."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
    except Exception as error:  # Pillow raises a dozen types; `load_pixels` says which fault it is
        load_pixels(content, PixelSpec(height=1, width=1, resize="squash", dtype="uint8"), limits)
        raise ImageError("undecodable_image", f"image does not decode: {type(error).__name__}.") from error
    pixels, upright = load_sized(content, _to_show(width, height), limits)
    if upright != (width, height):  # a guess: only the decoder knows by which of a file's statements it is turned
        pixels, _ = load_sized(content, _to_show(*upright), limits)
    whole_photo = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    w, h = whole_photo.size
    cut = (1 - MIDDLE) / 2
    part = whole_photo.crop(
        (round(w * cut), round(h * cut), max(1, round(w * (1 - cut))), max(1, round(h * (1 - cut))))
    )
    return _jpeg(whole_photo), _jpeg(part)


def _to_show(width: int, height: int) -> PixelSpec:
    """Pixels of what people see of an upright photo of this size."""
    scale = min(1.0, LONGEST / max(width, height))
    return PixelSpec(
        height=max(1, round(height * scale)), width=max(1, round(width * scale)), resize="squash", dtype="uint8"
    )


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


class Vectors:
    """Vectors of photos in one space, kept in a file.

    Args:
        folder: of the study's data.
        fingerprint: of the space.
        size: length of a vector.
    """

    def __init__(self, folder: Path, fingerprint: str, size: int) -> None:
        self.file = folder / f"vectors-{fingerprint}.npz"
        self._size = size
        self._known: dict[str, NDArray[np.float32]] = self._read()
        self._saved = len(self._known)
        self._writing = threading.Lock()

    def _read(self) -> dict[str, NDArray[np.float32]]:
        if not self.file.exists():
            return {}
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                names, vectors = stored["sha256"].tolist(), stored["vectors"]
            if vectors.shape == (len(names), self._size) and vectors.dtype == np.float32 and np.isfinite(vectors).all():
                return dict(zip(names, vectors, strict=True))
        except Exception as error:  # whatever it is, it can be made again
            log.warning("the vectors of the study are made again: %s", type(error).__name__)
        return {}

    def missing(self, photos: list[Photo]) -> list[Photo]:
        """Those that have no vector yet."""
        return [photo for photo in photos if photo.sha256 not in self._known]

    def add(self, sha256: str, vector: NDArray[np.float32]) -> None:
        """Keep one vector of a photo that was missing."""
        self._known[sha256] = vector

    @property
    def unsaved(self) -> int:
        """Vectors that are not in the file yet."""
        return len(self._known) - self._saved

    def save(self) -> None:
        """Write the file, if there is anything new. Takes as long as all vectors do: call it in a thread.

        Vectors may be added meanwhile; a second call waits for the first, for both write one temporary file.
        """
        with self._writing:
            if self.unsaved:
                known = dict(self._known)  # as they are at one moment
                with whole(self.file) as stream:
                    np.savez(stream, sha256=np.array(list(known)), vectors=np.stack(list(known.values())))
                self._saved = len(known)

    def of(self, photos: list[Photo]) -> NDArray[np.float32]:
        """[n, d] of photos that all have one."""
        return np.stack([self._known[photo.sha256] for photo in photos])


def _read(file: Path) -> tuple[bytes, str]:
    """A file, and the sha256 of what was read."""
    content = file.read_bytes()
    return content, hashlib.sha256(content).hexdigest()


async def embed_missing(
    study_photos: Path,
    photos: list[Photo],
    embedder: Embedder,
    space: str,
    vectors: Vectors,
    counted: Callable[[int, int], None],
) -> Mapping[str, str]:
    """Embed the photos that have no vector, as the service embeds those of clients, a few at a time.

    Returns:
        what is wrong with each photo that cannot be embedded, by its content.

    Raises:
        ServiceError: the engine is away or has failed.
    """
    missing = vectors.missing(photos)
    faults: dict[str, str] = {}

    async def one(photo: Photo) -> None:
        content, sha256 = await asyncio.to_thread(_read, study_photos / photo.path)
        if sha256 != photo.sha256:
            faults[photo.sha256] = "the file has changed while it was read."
            return
        try:
            row = await embedder.embed_aside(content, Timings())
        except ServiceError as error:
            if error.kind in ("engine_away", "engine_failed", "not_ready", "internal", "overloaded"):
                raise
            faults[photo.sha256] = error.detail
        else:
            vectors.add(photo.sha256, row[space])

    try:
        for start in range(0, len(missing), AT_ONCE):
            counted(start, len(missing))
            await asyncio.gather(*map(one, missing[start : start + AT_ONCE]))
            if vectors.unsaved >= SAVE_EVERY:
                await asyncio.to_thread(vectors.save)
    finally:
        await asyncio.to_thread(vectors.save)
    return faults
