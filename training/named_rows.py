"""Arrays with a row for each image, and which image each row is of.

`embed` may leave images out, so its rows are not those of a folder: `names.txt` beside `features.npy` names the image
of each. `transform` and `cluster` put the same names beside what they make of the features. An array that has names
beside it is matched to images by name, one that has none by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.files import whole
from training.triplet_files import read_names

NAMES = "names.txt"


@dataclass(frozen=True)
class Rows:
    """An array that was read from a file.

    Attributes:
        file: an .npy.
        values: [m, ...], a row for each image.
        names: of the m images; None where nothing beside the file says.
    """

    file: Path
    values: NDArray[Any]
    names: list[str] | None


@dataclass(frozen=True)
class Matched:
    """Images for which there are rows, and these rows in the same order.

    Attributes:
        kept: [m] positions of the images among all that were asked for; None where it is all of them, in order.
        names: of the m images.
        values: [m, ...] of each array; None where none was given.
        said: a line that counts and names the images that are left out; empty where all are kept.
    """

    kept: NDArray[np.int64] | None
    names: list[str]
    values: list[Any]
    said: str


def names_beside(file: Path, rows: int) -> list[str] | None:
    """Names of the rows of a file, from `names.txt` in its folder; None where it has no list of so many.

    A list of another length is of another file: `cluster` writes centroids beside the clusters of named images.
    """
    beside = file.parent / NAMES
    names: list[str] = read_names(beside).tolist() if beside.is_file() else []
    return names if len(names) == rows else None


def write_names(folder: Path, names: Sequence[str] | None) -> None:
    """Write `names.txt`, one a line, whole or not at all; nothing where there are no names."""
    if names is not None:
        with whole(folder / NAMES) as stream:
            stream.writelines(f"{name}\n".encode() for name in names)


def read_vectors(file: Path) -> Rows:
    """Vectors [m, k] of images as float32, mapped where they are float32 already.

    Raises:
        ValueError: no matrix.
    """
    values = np.load(file, mmap_mode="c", allow_pickle=False)  # torch wants writable memory
    if values.ndim != 2:
        raise ValueError(f"{file} is {values.dtype} {values.shape}; expected a row of numbers for each image.")
    return Rows(file, np.asarray(values, np.float32), names_beside(file, len(values)))


def read_groups(file: Path) -> Rows:
    """Clusters or classes [m] of images as int64.

    Raises:
        ValueError: no list of whole numbers.
    """
    values = np.load(file, allow_pickle=False)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"{file} is {values.dtype} {values.shape}; expected a whole number for each image.")
    return Rows(file, values.astype(np.int64), names_beside(file, len(values)))


def match(names: Sequence[str], source: str, given: Sequence[Rows | None]) -> Matched:
    """The images that all arrays have rows of, in the order of the first array that has names.

    Args:
        names: of the images asked for.
        source: where they come from, for messages.
        given: arrays; None for one that was not given.

    Raises:
        ValueError: an array without names that has not a row for each image, a name that no image has or several
            have, or arrays whose names are of different images; the first such image is named.
    """
    names = list(names)
    first = next((rows for rows in given if rows is not None and rows.names is not None), None)
    if first is None or first.names is None or first.names == names:
        kept, chosen = None, names
    else:
        position = _position_of(names, source)
        _require_known(first, position, source)
        kept, chosen = np.array([position[name] for name in first.names], np.int64), first.names
    values = [None if rows is None else _in_order(rows, names, kept, chosen, first, source) for rows in given]
    left_out = sorted(set(names) - set(chosen))
    said = ""
    if left_out and first is not None:
        shown = ", ".join(map(repr, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
        said = f"{source}: {len(left_out)} of {len(names)} images have no row in {first.file} and are left out: {shown}"
    return Matched(kept, chosen, values, said)


def _in_order(
    rows: Rows, names: list[str], kept: NDArray[np.int64] | None, chosen: list[str], first: Rows | None, source: str
) -> NDArray[Any]:
    """The rows of the chosen images; the array itself where it has them in their order already."""
    if rows.names is None:
        if len(rows.values) != len(names):
            raise ValueError(_wrong_length(rows, names, source))
        return rows.values if kept is None else rows.values[kept]
    if rows.names == chosen:
        return rows.values
    position = _position_of(rows.names, str(rows.file.parent / NAMES))
    assert first is not None
    if missing := next((name for name in chosen if name not in position), None):
        raise ValueError(f"{rows.file} has no row for {missing!r}, {first.file} has one; make both of the same images.")
    if len(position) > len(chosen):
        known = set(chosen)
        other = next(name for name in rows.names if name not in known)
        raise ValueError(f"{first.file} has no row for {other!r}, {rows.file} has one; make both of the same images.")
    return rows.values[np.array([position[name] for name in chosen], np.int64)]


def _position_of(names: Sequence[str], where: str) -> dict[str, int]:
    """Position of each name. Raises ValueError naming one that is there twice."""
    out: dict[str, int] = {}
    for at, name in enumerate(names):
        if name in out:
            raise ValueError(f"{where}, row {at}: {name!r} is there twice, and rows are to be found by name.")
        out[name] = at
    return out


def _require_known(rows: Rows, position: dict[str, int], source: str) -> None:
    beside = rows.file.parent / NAMES
    for at, name in enumerate(_position_of(rows.names or [], str(beside))):
        if name not in position:
            raise ValueError(
                f"{beside}, row {at}: {name!r} is not among the {len(position)} images of {source}. Give the images "
                f"that {rows.file.name} was made from; if only their names are others and the order is the same, "
                f"remove {NAMES}."
            )


def _wrong_length(rows: Rows, names: list[str], source: str) -> str:
    n, what = len(rows.values), "a number" if rows.values.ndim == 1 else "a row"
    said = f"{rows.file} is {rows.values.shape}; expected {what} for each of the {len(names)} images of {source}"
    if n > len(names):
        return f"{said}."
    return (
        f"{said}. No {NAMES} of {n} names is beside it, so rows are by position, and the first image without one would "
        f"be {names[n]!r}. If it is of fewer images, put their names there: `embed` writes them, and `transform` and "
        "`cluster` bring them along."
    )
