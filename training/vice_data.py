"""Odd-one-out triplets for VICE: reading the THINGS files, checking their convention, simulating choices.

Inside this package a triplet is always three 0-based object numbers, the ODD ONE LAST: what people paired
stands first, so the chosen pair is number 0 of `contract.triplets.PAIRS`. The official THINGS files
(`train_90`, `test_10`: N x 3 whole numbers, .npy or .txt) are 0-based and odd-last, and so are SPoSE's.
Others are not: some loaders put the odd one FIRST, and tables of raw responses are 1-based. Neither can be
seen in a file with certainty, so the caller says which it is, the reader refuses what cannot be, and
`fitting_odd` compares both conventions with an embedding that is known to be right.
"""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contract import triplets

Odd = Literal["first", "last"]

CHUNK = 1 << 16
"""Triplets whose vectors are in memory at once."""

FIRST = np.array([[*pair, 2 - k] for k, pair in enumerate(triplets.PAIRS)])
"""Row k: the positions of a triplet as (pair k, odd one)."""

CLEAR = 4.0
"""Standard errors by which one convention must win before it is said to fit."""


def read_triplets(path: Path, n_objects: int, *, odd: Odd) -> NDArray[np.int64]:
    """Triplets [n, 3] of a .npy or .txt file, odd one last.

    Args:
        path: N x 3 whole numbers; .txt with spaces between them.
        n_objects: how many objects there are. Never the largest number plus one: an object may be absent.
        odd: which column of the FILE is the odd one out; it is moved to the end.

    Raises:
        ValueError: no such matrix, a pickle, 1-based numbers, a number outside 0..n-1, or an object twice in a row.
    """
    raw = _read_matrix(path)
    if raw.ndim != 2 or raw.shape[1] != 3 or len(raw) == 0:
        raise ValueError(f"{path} is {raw.shape}; expected N x 3 object numbers, N > 0.")
    rows = raw.astype(np.int64) if np.isfinite(raw).all() else np.zeros(raw.shape, np.int64)
    if (rows != raw).any():
        row = int((rows != raw).any(1).argmax())
        raise ValueError(f"{path}, row {row}: {raw[row].tolist()} are not whole numbers.")
    low, high = int(rows.min()), int(rows.max())
    if low == 1 and high == n_objects:
        raise ValueError(f"{path} is 1-based: its numbers run from 1 to {high}. Subtract 1; expected 0 to {high - 1}.")
    outside = ((rows < 0) | (rows >= n_objects)).any(1)
    repeated = (rows == np.roll(rows, 1, axis=1)).any(1)
    for wrong, what in ((outside, f"expected objects 0 to {n_objects - 1}"), (repeated, "an object stands twice")):
        if wrong.any():
            row = int(wrong.argmax())
            count = f"{int(wrong.sum())} of {len(rows)} rows are wrong"
            raise ValueError(f"{path}, row {row}: {rows[row].tolist()}; {what}. {count}.")
    return rows if odd == "last" else np.ascontiguousarray(rows[:, [1, 2, 0]])


def _read_matrix(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{path} holds {array.dtype}; expected whole numbers.")
        return array
    with path.open("rb") as stream:
        if stream.read(1) == pickle.PROTO:
            raise ValueError(f"{path} is a Python pickle, whatever its name says; it is not read. Expected text.")
    try:
        return np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is no table of numbers: {error}") from error


def agreement(rows: NDArray[np.int64], embedding: NDArray[np.floating[Any]], *, odd: Odd) -> float:
    """Fraction of rows [n, 3] whose odd one by this convention is the embedding's; ties count as wrong."""
    column = 2 if odd == "last" else 0
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    sims = np.concatenate([triplets.pair_similarities(embedding[chunk]) for chunk in chunks])
    return triplets.accuracy(sims, np.full(len(rows), column))


def fitting_odd(rows: NDArray[np.int64], embedding: NDArray[np.floating[Any]]) -> tuple[Odd, dict[Odd, float]]:
    """Which column of `rows` is the odd one out, judged by an embedding known to be right.

    Args:
        rows: [n, 3] as they stand in the file, 0-based (read with `odd="last"`, which moves nothing).
        embedding: [objects, dimensions], non-negative; its dot products are similarities.

    Returns:
        the convention, and the agreement under each. Chance is 1/3; the true one of THINGS gives about .64.

    Raises:
        ValueError: neither is clearly better; the numbering may be shifted, or the embedding of other objects.
    """
    both: dict[Odd, float] = {"first": agreement(rows, embedding, odd="first"), "last": 0.0}
    both["last"] = agreement(rows, embedding, odd="last")
    best: Odd = "first" if both["first"] > both["last"] else "last"
    clear = CLEAR * (0.5 / len(rows)) ** 0.5  # two fractions of the same rows differ by chance by less than this
    if abs(both["first"] - both["last"]) <= clear or both[best] <= 1 / 3 + clear:
        raise ValueError(
            f"the odd one first agrees with the embedding in {both['first']:.3f} of rows, the odd one last in "
            f"{both['last']:.3f}; neither fits. Are the numbers 1-based, or is the embedding of other objects?"
        )
    return best, both


def odd_last(objects: NDArray[np.int64], odd: NDArray[np.int64]) -> NDArray[np.int64]:
    """Objects [n, 3] and the positions [n] chosen as odd, to rows [n, 3] with the odd one last."""
    return np.take_along_axis(objects, FIRST[2 - odd], axis=1)


def simulate_choices(embedding: NDArray[np.floating[Any]], n: int, *, seed: int) -> NDArray[np.int64]:
    """`n` choices [n, 3], odd one last, drawn from the embedding's choice probabilities (temperature 1).

    Triplets are drawn uniformly and may repeat; so do real ones.
    """
    rng = np.random.default_rng(seed)
    out = []
    while n > 0:
        objects = rng.integers(len(embedding), size=(min(n, CHUNK), 3))
        objects = objects[(objects != np.roll(objects, 1, axis=1)).all(1)]
        p = triplets.pair_probabilities(triplets.pair_similarities(embedding[objects].astype(np.float64)))
        pair = (rng.random((len(p), 1)) > p.cumsum(1)[:, :2]).sum(1)
        out.append(np.take_along_axis(objects, FIRST[pair], axis=1))
        n -= len(objects)
    return np.concatenate(out)
