"""The photos of a folder."""

from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Names of files that are taken for photos, in either case."""


def photos_under(folder: Path) -> list[Path]:
    """The photos in a folder and all folders inside, by sorted path."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
