"""Files that appear whole or not at all, and the photos of a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Names of files that are taken for photos, in either case."""


def photos_under(folder: Path) -> list[Path]:
    """The photos in a folder and all folders inside, by sorted path."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


@contextlib.contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A stream to write `file` with, which appears whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
