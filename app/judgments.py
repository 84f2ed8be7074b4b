"""Triplets over vectors to judgments: the contract's maths, a block at a time."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.manifest import Space
from contract.triplets import TIE, TieRule

# Triplets of one block: 256 x 3 x 1280 float64 values are 8 MB.
BLOCK = 256


class Thresholds(NamedTuple):
    """Where to abstain instead of answering; None never does."""

    min_margin: float | None
    max_entropy: float | None


def judge(
    vectors: NDArray[np.float64],
    index: NDArray[np.int64],
    space: Space,
    tie_rule: TieRule,
    thresholds: Thresholds,
) -> list[dict[str, Any]]:
    """Judge every triplet.

    Args:
        vectors: [n, d], finite.
        index: [t, 3] rows of `vectors`.

    Returns:
        t judgments, each with the fields of `app.schemas.Judgment`. One depends on its three vectors only,
        not on what else is asked.
    """
    blocks = [
        triplets.pair_similarities(vectors[index[i : i + BLOCK]], space.similarity) for i in range(0, len(index), BLOCK)
    ]
    sims = np.concatenate(blocks)  # [t, 3]
    p = triplets.odd_probabilities(sims, space.temperature)
    position = triplets.odd_one_out(sims, tie_rule).astype(np.int64)
    entropy = triplets.entropy(p)
    normalized = triplets.normalized_entropy(p)
    margin = triplets.margin(p)
    abstained = _abstained(position, margin, normalized, thresholds)
    odd = index[np.arange(len(index)), position]  # where there is a tie, abstained says so
    # Plain dicts: a pydantic object of each costs several times the maths.
    return [
        {
            "triplet": triplet,
            "odd_one_out": None if reason else answer,
            "abstained": reason,
            "probabilities": probabilities,
            "similarities": similarities,
            "entropy": nats,
            "entropy_normalized": share,
            "margin": lead,
        }
        for triplet, answer, reason, probabilities, similarities, nats, share, lead in zip(
            index.tolist(),
            odd.tolist(),
            abstained,
            p.tolist(),
            sims.tolist(),
            entropy.tolist(),
            normalized.tolist(),
            margin.tolist(),
            strict=True,
        )
    ]


def _abstained(
    position: NDArray[np.int64], margin: NDArray[np.float64], entropy: NDArray[np.float64], thresholds: Thresholds
) -> list[Literal["tie", "margin", "entropy"] | None]:
    """Why there is no answer to each triplet, [t]; None where there is one."""
    reason: NDArray[np.object_] = np.full(len(position), None, object)
    if thresholds.max_entropy is not None:
        reason[entropy > thresholds.max_entropy] = "entropy"
    if thresholds.min_margin is not None:
        reason[margin < thresholds.min_margin] = "margin"
    reason[position == TIE] = "tie"
    return list(reason)


def triplet_index(given: Sequence[Sequence[int]] | None, n: int) -> NDArray[np.int64]:
    """Triplets as [t, 3] row numbers of n images or vectors.

    Raises:
        ValueError: (position of the triplet, message): out of range, the same image twice, or no
            triplets where there are not exactly three images.
    """
    if given is None:
        if n != 3:
            raise TripletError(None, f"`triplets` may be left out with exactly three images or vectors; here are {n}.")
        return np.array([[0, 1, 2]], np.int64)
    try:
        index = np.array(given, np.int64)
    except OverflowError:
        index = np.array([[min(max(i, -1), n) for i in triplet] for triplet in given], np.int64)
    a, b, c = index.T
    good = np.all((index >= 0) & (index < n), axis=1) & (a != b) & (a != c) & (b != c)
    if not good.all():
        t = int(good.argmin())
        if not (index[t].min() >= 0 and index[t].max() < n):
            raise TripletError(t, f"triplet {t} is {list(given[t])}; positions go from 0 to {n - 1}.")
        raise TripletError(t, f"triplet {t} is {list(given[t])}; it must name three different images.")
    return index


class TripletError(ValueError):
    """A triplet that cannot be judged; `index` is its position in the request."""

    def __init__(self, index: int | None, message: str) -> None:
        super().__init__(message)
        self.index = index
