"""THINGS: object concepts, people's odd-one-out choices, and the VICE posterior that stands in for them.

The THINGS database has 1,854 object concepts (Hebart et al. 2019). VICE (Muttenthaler et al. 2022)
explains 4.7 million human odd-one-out choices by a non-negative embedding whose pairwise dot products,
through a softmax, are choice probabilities; its posterior is what uncertainty distillation learns from.
Concept numbers are 0-based everywhere here; a 1-based file is refused by the reader.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.tables import read_rows, to_int


@dataclass(frozen=True)
class Responses:
    """Single human choices.

    Attributes:
        concepts: [n, 3] concept numbers as they stood before the participant.
        odd: [n] position 0, 1, 2 that was chosen as the odd one out.
    """

    concepts: NDArray[np.int64]
    odd: NDArray[np.int64]


NO_RESPONSES = Responses(np.empty((0, 3), np.int64), np.empty(0, np.int64))


def read_vice(path: Path) -> NDArray[np.float64]:
    """The VICE mean embedding, [concepts, dimensions].

    Raises:
        ValueError: not a finite, non-negative matrix (VICE rectifies; see method facts of the paper).
    """
    embedding = np.load(path, allow_pickle=False)
    if embedding.ndim != 2 or not np.isfinite(embedding).all() or (embedding < 0).any():
        raise ValueError(f"{path} is {embedding.shape}; expected a finite, non-negative matrix [concepts, dimensions].")
    return np.asarray(embedding, np.float64)


def read_responses(path: Path, n_concepts: int) -> Responses:
    """Human responses from a CSV with `concept_0`, `concept_1`, `concept_2`, `odd_position`.

    Raises:
        ValueError: a column is missing, a row names a concept outside 0..n-1 (1-based files end at n),
            a concept twice, or a position outside 0..2; the message gives the row.
    """
    columns = ("concept_0", "concept_1", "concept_2", "odd_position")
    cells = [[to_int(path, i, row, name) for name in columns] for i, row in enumerate(read_rows(path, columns))]
    rows = np.array(cells, np.int64).reshape(-1, 4)
    concepts, odd = rows[:, :3], rows[:, 3]
    outside = (concepts < 0) | (concepts >= n_concepts)
    if outside.any():
        row = int(outside.any(1).argmax())
        raise ValueError(
            f"{path}, row {row}: concepts {concepts[row].tolist()}; expected 0 to {n_concepts - 1}. Is it 1-based? "
            f"{int(outside.any(1).sum())} of {len(rows)} rows are outside."
        )
    ordered = np.sort(concepts, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(1) | (odd < 0) | (odd > 2)
    if repeated.any():
        row = int(repeated.argmax())
        raise ValueError(f"{path}, row {row}: {rows[row].tolist()} repeats a concept or has a position outside 0..2.")
    return Responses(concepts, odd)


def read_concepts(path: Path, n_concepts: int) -> NDArray[np.int64]:
    """The concept number of each row of features: [n], negative where it has none.

    Args:
        path: .npy of whole numbers [n], or a CSV manifest with a column `things_index` (empty for none).
        n_concepts: how many concepts there are.

    Raises:
        ValueError: no such file, 1-based numbers, or a number of n or more; the row is named.
    """
    if path.suffix == ".csv":
        rows = read_rows(path, ("things_index",))
        numbers = np.array([to_int(path, i, row, "things_index", empty=-1) for i, row in enumerate(rows)], np.int64)
    else:
        numbers = _read_numbers(path)
    _check_numbers(path, numbers, n_concepts)
    return numbers


def read_held_out(path: Path, n_concepts: int) -> NDArray[np.int64]:
    """Concept numbers to keep from training, ascending: .npy [k], or text with one number a line.

    Raises:
        ValueError: no such file, 1-based numbers, or a number outside 0..n-1; the row is named.
    """
    if path.suffix == ".npy":
        numbers = _read_numbers(path)
    else:
        lines = [{"concept": line} for line in path.read_text().split("\n") if line.strip()]
        numbers = np.array([to_int(path, i, line, "concept") for i, line in enumerate(lines)], np.int64)
    _check_numbers(path, numbers, n_concepts)
    if (numbers < 0).any():
        raise ValueError(f"{path}, row {int((numbers < 0).argmax())}: {numbers.min()}; expected 0 to {n_concepts - 1}.")
    return np.unique(numbers)


def _read_numbers(path: Path) -> NDArray[np.int64]:
    raw = np.load(path, allow_pickle=False)
    if not isinstance(raw, np.ndarray) or raw.ndim != 1 or raw.dtype.kind not in "iu":
        raise ValueError(f"{path} is {getattr(raw, 'dtype', type(raw))} {np.shape(raw)}; expected whole numbers [n].")
    return raw.astype(np.int64)


def _check_numbers(path: Path, numbers: NDArray[np.int64], n_concepts: int) -> None:
    if not len(numbers):
        raise ValueError(f"{path} holds no concept number.")
    if (numbers >= n_concepts).any():
        one_based = " Is it 1-based?" if numbers.max() == n_concepts and not (numbers == 0).any() else ""
        row = int((numbers >= n_concepts).argmax())
        raise ValueError(f"{path}, row {row}: concept {numbers[row]}; expected 0 to {n_concepts - 1}.{one_based}")
