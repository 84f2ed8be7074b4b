"""K-fold cross-validation over objects, for judgments that are about three objects at once.

An object is in exactly one fold. When a fold is validated, a triplet trains if none of its three objects is in
the fold, validates if all three are, and is discarded otherwise: a triplet that mixes both would tell the
training about a validated object, or validate on a known one. Three folds keep 8/27 of the triplets for training
and 1/27 for validation; four keep 42 % and 1.6 %.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fold:
    """One division of the triplets.

    Attributes:
        number: 0 to k - 1.
        objects: that this fold validates on, ascending.
        train, validation: row numbers of the triplets, ascending.
        discarded: how many triplets are neither.
    """

    number: int
    objects: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    discarded: int


def object_folds(rows: NDArray[np.int64], n_objects: int, k: int, *, seed: int) -> list[Fold]:
    """`k` folds of the objects 0 to n_objects - 1, as equal in size as can be, and what they make of the triplets.

    Args:
        rows: [n, 3] object numbers.
        n_objects: how many objects there are; those that no triplet names are divided too.
        k: number of folds.
        seed: of the division.

    Raises:
        ValueError: k is not within 2 and the number of objects, or a fold has nothing to train or validate on.
    """
    if not 2 <= k <= n_objects:
        raise ValueError(f"{k} folds of {n_objects} objects; expected 2 folds or more, and no more than objects.")
    fold_of = np.empty(n_objects, np.int64)
    fold_of[np.random.default_rng(seed).permutation(n_objects)] = np.arange(n_objects) % k
    out = []
    for number in range(k):
        held_out = (fold_of == number)[rows].sum(1)
        train, validation = np.flatnonzero(held_out == 0), np.flatnonzero(held_out == 3)
        if not (len(train) and len(validation)):
            raise ValueError(
                f"fold {number} of {k} has {len(train)} triplets to train and {len(validation)} to validate on; "
                "expected some of both: fewer folds, or more triplets."
            )
        discarded = len(rows) - len(train) - len(validation)
        out.append(Fold(number, np.flatnonzero(fold_of == number), train, validation, discarded))
    return out


def check_rows(rows: NDArray[Any], n_objects: int) -> None:
    """Refuse what cannot be triplets [n, 3] of 0-based object numbers.

    Raises:
        ValueError: not such an array, 1-based numbers, a number outside 0..n-1, or an object twice; the row is named.
    """
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "iu" or not len(rows):
        raise ValueError(f"triplets are {rows.dtype} {rows.shape}; expected whole numbers [n, 3], n > 0.")
    if rows.min() == 1 and rows.max() == n_objects:
        raise ValueError(f"triplets are 1-based: they run from 1 to {n_objects}. Subtract 1.")
    outside = ((rows < 0) | (rows >= n_objects)).any(1)
    repeated = (rows == np.roll(rows, 1, axis=1)).any(1)
    for wrong, what in ((outside, f"expected objects 0 to {n_objects - 1}"), (repeated, "an object stands twice")):
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"triplet {row} is {rows[row].tolist()}; {what}.")
