"""What every long stage needs: arrays and JSON that appear whole, a folder's identity, features checked once."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract.files import whole

BLOCK = 2**22
"""Bytes of features held at once while they are read through: few enough for the cache."""


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Save an array, whole or not at all."""
    with whole(file) as stream:
        np.save(stream, array, allow_pickle=False)


def write_json(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole(file) as stream:
        stream.write((json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def claim(file: Path, identity: dict[str, Any], libraries: Sequence[str]) -> None:
    """Record at `file` what the stage is made of, with the versions of `libraries`.

    Raises:
        ValueError: the file is there and says something else, which the message names; versions may differ.
    """
    wanted = json.loads(json.dumps(identity))
    if not file.exists():
        versions = {"python": platform.python_version()} | {name: version(name) for name in libraries}
        write_json(file, wanted | {"versions": versions})
        return
    stored = json.loads(file.read_text())
    if changed := [key for key in wanted if stored.get(key) != wanted[key]]:
        parts = [part for key in changed for part in _differing(key, stored.get(key), wanted[key])]
        raise ValueError(
            f"{file} was made with another {' and other '.join(changed)}; remove it or choose another. "
            f"It differs in {', '.join(parts)}."
        )


def _differing(key: str, stored: Any, wanted: Any) -> list[str]:
    """`key`, or `key.part` of each part that is not the same in both."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return [key]
    return [f"{key}.{part}" for part in sorted(stored | wanted) if stored.get(part) != wanted.get(part)]


def read_features(file: Path) -> tuple[NDArray[np.float32], str]:
    """(features [n, p] mapped into memory, sha256 of their bytes), after one pass over all of them.

    Raises:
        ValueError: not a C-ordered float32 matrix with rows, or a value that is not finite; the row is named.
    """
    mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    if mapped.ndim != 2 or mapped.dtype != np.float32 or not mapped.size or not mapped.flags.c_contiguous:
        raise ValueError(f"{file} is {mapped.dtype} {mapped.shape}; expected C-ordered float32 [images, features].")
    features = np.asarray(mapped)  # the same memory without the slow subclass
    digest = hashlib.sha256()
    with tqdm(total=features.nbytes, desc=f"read {file.name}", unit="B", unit_scale=True) as bar:
        for start, block in blocks(features):
            finite = np.isfinite(block).all(1)
            if not finite.all():
                raise ValueError(f"{file}, row {start + int((~finite).argmax())}: a feature is not finite.")
            digest.update(block.data)
            bar.update(block.nbytes)
    return features, digest.hexdigest()


def blocks(features: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, rows) of at most `BLOCK` bytes each, in order."""
    step = max(1, BLOCK // (features.shape[1] * features.itemsize))
    for start in range(0, len(features), step):
        yield start, features[start : start + step]


def read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """Every array of an npz. Raises ValueError when it is none, or holds anything that would need a pickle."""
    with file.open("rb") as stream:
        if not is_zipfile(stream):
            raise ValueError(f"{file} is no .npz of plain arrays.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{file} is no .npz of plain arrays: {error}") from error
