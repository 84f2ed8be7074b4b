"""Odd-one-out triplets for VICE: reading the THINGS files, checking their convention, simulating choices.

Inside this package a triplet is always three 0-based object numbers, the ODD ONE LAST: what people paired
stands first, so the chosen pair is number 0 of `contract.triplets.PAIRS`. The official THINGS files
(`train_90`, `test_10`: N x 3 whole numbers, .npy or .txt) are 0-based and odd-last, and so are SPoSE's.
Others are not: some loaders put the odd one FIRST, and tables of raw responses are 1-based. Neither can be
seen in a file with certainty, so the caller says which it is, and the reader refuses what cannot be. An embedding of
the same objects tells more: one known to be right must fit (`confirm`), a model's features may object (`misread`).
"""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.triplets import Kernel

Odd = Literal["first", "last"]

CHUNK = 1 << 16
"""Choices that are simulated at once."""

NUMBERS = 1 << 22
"""Of the vectors of triplets that are in memory at once."""

ENOUGH = 20_000
"""Rows by which a convention is judged: with more, what is chance in the objects would count as clear."""

OFTEN = 20
"""Rows that an object is in on average, from which on one that is in none was hardly asked about."""

FIRST = np.array([[*pair, 2 - k] for k, pair in enumerate(triplets.PAIRS)])
"""Row k: the positions of a triplet as (pair k, odd one)."""

CLEAR = 4.0
"""Standard errors by which one convention must be above the other, and above chance, before it is said to fit."""


def read_triplets(path: Path, n_objects: int, *, odd: Odd, zero_absent: bool = False) -> NDArray[np.int64]:
    """Triplets [n, 3] of a .npy or .txt file, odd one last.

    Args:
        path: N x 3 whole numbers; .txt with spaces between them.
        n_objects: how many objects there are. Never the largest number plus one: an object may be absent.
        odd: which column of the FILE is the odd one out; it is moved to the end.
        zero_absent: that object 0 is in no row is known. Otherwise many rows without it are taken for 1-based ones:
            a fit to the wrong objects would look like any other.

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
    if low >= 1 and high == n_objects:
        raise ValueError(
            f"{path} is 1-based: its numbers run from {low} to {high}. Subtract 1; expected 0 to {high - 1}."
        )
    outside = ((rows < 0) | (rows >= n_objects)).any(1)
    repeated = (rows == np.roll(rows, 1, axis=1)).any(1)
    for wrong, what in ((outside, f"expected objects 0 to {n_objects - 1}"), (repeated, "an object stands twice")):
        if wrong.any():
            row = int(wrong.argmax())
            count = f"{int(wrong.sum())} of {len(rows)} rows are wrong"
            raise ValueError(f"{path}, row {row}: {rows[row].tolist()}; {what}. {count}.")
    if low >= 1 and rows.size >= OFTEN * n_objects and not zero_absent:
        raise ValueError(
            f"{path} looks 1-based: object 0 of {n_objects} is in none of {len(rows)} rows, where an object is in "
            f"{rows.size / n_objects:.0f} on average. Subtract 1; or, if object 0 was really not asked about, say so: "
            "--zero-absent."
        )
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


def agreement(
    rows: NDArray[np.int64], embedding: NDArray[np.floating[Any]], *, odd: Odd, kernel: Kernel = "dot"
) -> float:
    """Fraction of rows [n, 3] whose odd one by this convention is the embedding's; ties count as wrong."""
    column = 2 if odd == "last" else 0
    step = max(1, NUMBERS // (3 * embedding.shape[1]))
    chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
    sims = np.concatenate([triplets.pair_similarities(embedding[chunk], kernel) for chunk in chunks])
    return triplets.accuracy(sims, np.full(len(rows), column))


def fitting_odd(
    rows: NDArray[np.int64], embedding: NDArray[np.floating[Any]], *, kernel: Kernel = "dot"
) -> tuple[Odd | None, dict[Odd, float]]:
    """Which column of `rows` is the odd one out, judged by an embedding of the same objects.

    Args:
        rows: [n, 3] as they stand in the file, 0-based (read with `odd="last"`, which moves nothing), n > 0; of many,
            `ENOUGH` at equal distances are judged.
        embedding: [objects, dimensions].
        kernel: its similarity: dot products for VICE and what was fitted to choices, cosine for a model's features.

    Returns:
        the convention, and the agreement under each. Chance is 1/3; VICE has about .64 under the true one of THINGS.
        None where neither is above the other, and above chance, by `CLEAR` standard errors: there are too few rows or
        objects, the embedding does not see what people see, the numbers are shifted, or it is of other objects.
    """
    judged = rows[:: max(1, len(rows) // ENOUGH)]
    both: dict[Odd, float] = {"first": agreement(judged, embedding, odd="first", kernel=kernel), "last": 0.0}
    both["last"] = agreement(judged, embedding, odd="last", kernel=kernel)
    best: Odd = "first" if both["first"] > both["last"] else "last"
    objects = len(np.unique(judged))
    # Rows share pairs of objects, and a pair has one similarity: there are no more independent answers than pairs.
    independent = min(len(judged), objects * (objects - 1) // 2)
    chance, other = CLEAR * (2 / 9 / independent) ** 0.5, CLEAR * (2 / 3 / independent) ** 0.5
    fits = both[best] > 1 / 3 + chance and abs(both["first"] - both["last"]) > other
    return best if fits else None, both


def misread(
    rows: NDArray[np.int64], embedding: NDArray[np.floating[Any]], *, odd: Odd, kernel: Kernel = "dot"
) -> str | None:
    """What an embedding of the same objects has against a file's convention, for a message; None without an objection.

    Args:
        rows: [n, 3] of `read_triplets`, n > 0.
        embedding: [objects, dimensions].
        odd: what was said of the file.
        kernel: see `fitting_odd`.
    """
    as_given = rows if odd == "last" else rows[:, [2, 0, 1]]
    found, both = fitting_odd(as_given, embedding, kernel=kernel)
    if found is not None and found != odd:
        return f"{_in_words(both)}; the odd one stands {found}, and was said to stand {odd}"
    if found is None and rows.min() >= 1:
        shifted, then = fitting_odd(as_given - 1, embedding, kernel=kernel)
        if shifted is not None:
            return f"{_in_words(both)}, {then[shifted]:.3f} with 1 subtracted from all numbers; the file is 1-based"
    return None


def confirm(path: Path, rows: NDArray[np.int64], known: NDArray[np.floating[Any]], *, odd: Odd) -> None:
    """Let an embedding known to be right [objects, dimensions] speak for the convention `odd` of rows of `path`.

    Raises:
        ValueError: it speaks for the other one, or for neither; the agreement under each is in the message.
    """
    if said := misread(rows, known, odd=odd):
        raise ValueError(f"{path}: {said}.")
    found, both = fitting_odd(rows if odd == "last" else rows[:, [2, 0, 1]], known)
    if found is None:
        raise ValueError(
            f"{path}: {_in_words(both)}; neither fits. Is the embedding of other objects, are the numbers shifted, or "
            f"are {len(rows)} rows about {len(np.unique(rows))} objects too few to tell?"
        )


def _in_words(both: dict[Odd, float]) -> str:
    first, last = both["first"], both["last"]
    return f"agreement with the embedding is {first:.3f} if the odd one stands first, {last:.3f} if it stands last"


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
