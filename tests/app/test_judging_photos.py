"""The photos of a study: copies as a person sees the photo, and vectors that are kept beside the running service."""

import asyncio
import contextlib
import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.judging import photos as photos_module
from app.judging.photos import Photo, Vectors, copies, embed_missing
from contract.pixels import PixelLimits
from tests.toy import encoded, photo

TURN = 0x0112
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_copy_has_the_shape_of_the_photo_however_its_file_says_to_turn_it(format_: str, turn: int) -> None:
    exif = Image.Exif()
    exif[TURN] = turn
    upright = (400, 200) if turn == 1 else (200, 400)
    shown, part = copies(encoded(photo(0, (400, 200)), format_, exif=exif), PixelLimits())
    assert Image.open(io.BytesIO(shown)).size == upright
    assert Image.open(io.BytesIO(part)).size == tuple(side * 7 // 10 for side in upright)


@pytest.mark.parametrize(
    ("format_", "options"), [("JPEG", {"xmp": XMP}), ("WEBP", {"xmp": XMP}), ("TIFF", {"tiffinfo": {700: XMP}})]
)
def test_what_the_decoder_does_not_turn_is_not_shown_distorted(format_: str, options: dict[str, Any]) -> None:
    content = encoded(photo(0, (400, 200)), format_, **options)
    assert Image.open(io.BytesIO(content)).getexif()[TURN] == 6  # by Pillow, which reads XMP too; our decoder does not
    shown, _ = copies(content, PixelLimits())
    assert Image.open(io.BytesIO(shown)).size == (400, 200)


def written(folder: Path, count: int) -> list[Photo]:
    """Files of one byte each, which are photos to whoever embeds nothing."""
    for i in range(count):
        (folder / str(i)).write_bytes(bytes([i]))
    return [Photo(str(i), hashlib.sha256(bytes([i])).hexdigest()) for i in range(count)]


async def embed_aside(content: bytes, _: object) -> dict[str, Any]:
    return {"base": np.full(3, content[0], np.float32)}


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[threading.Thread, bool]]:
    """Of each time that a file is written: the thread, and whether nobody else was writing."""
    real, writing, seen = photos_module.whole, threading.Lock(), list[tuple[threading.Thread, bool]]()

    @contextlib.contextmanager
    def spied(file: Path) -> Iterator[Any]:
        alone = writing.acquire(blocking=False)
        seen.append((threading.current_thread(), alone))
        with real(file) as stream:
            yield stream
        if alone:
            writing.release()

    monkeypatch.setattr(photos_module, "whole", spied)
    return seen


def test_vectors_are_written_every_so_often_and_never_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[tuple[threading.Thread, bool]]
) -> None:
    monkeypatch.setattr(photos_module, "SAVE_EVERY", 4)
    found, vectors = written(tmp_path, 10), Vectors(tmp_path, "print", 3)
    embedder: Any = SimpleNamespace(embed_aside=embed_aside)
    assert asyncio.run(embed_missing(tmp_path, found, embedder, "base", vectors, lambda *_: None)) == {}
    assert len(writers) == 3 and threading.main_thread() not in dict(writers)
    assert Vectors(tmp_path, "print", 3).of(found)[:, 0].tolist() == list(range(10))


def test_two_saves_at_once_write_one_after_the_other_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[tuple[threading.Thread, bool]]
) -> None:
    vectors, real, found = Vectors(tmp_path, "print", 3), np.savez, [Photo("", "a"), Photo("", "b")]

    def meanwhile(*args: Any, **arrays: Any) -> None:
        if len(writers) == 1:  # while the first file is being written
            vectors.add("b", np.ones(3, np.float32))
            other.start()
        real(*args, **arrays)

    other = threading.Thread(target=vectors.save)
    monkeypatch.setattr(photos_module.np, "savez", meanwhile)
    vectors.add("a", np.zeros(3, np.float32))
    vectors.save()
    other.join(30)
    assert [alone for _, alone in writers] == [True, True]
    assert Vectors(tmp_path, "print", 3).of(found)[:, 0].tolist() == [0, 1]
