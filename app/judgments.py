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
    position = triplets.odd_one_out(sims, tie_rule)
    entropy = triplets.entropy(p)
    normalized = triplets.normalized_entropy(p)
    margin = triplets.margin(p)
    columns = zip(
        index.tolist(),
        position.tolist(),
        p.tolist(),
        sims.tolist(),
        entropy.tolist(),
        normalized.tolist(),
        margin.tolist(),
        strict=True,
    )
    out = []
    for triplet, odd, probabilities, similarities, nats, share, lead in columns:
        abstained = _abstain(odd, lead, share, thresholds)
        out.append(
            # Plain dicts: a pydantic object of each costs several times the maths.
            {
                "triplet": triplet,
                "odd_one_out": None if abstained else triplet[odd],
                "abstained": abstained,
                "probabilities": probabilities,
                "similarities": similarities,
                "entropy": nats,
                "entropy_normalized": share,
                "margin": lead,
            }
        )
    return out


def _abstain(
    odd: int, margin: float, entropy: float, thresholds: Thresholds
) -> Literal["tie", "margin", "entropy"] | None:
    if odd == TIE:
        return "tie"
    if thresholds.min_margin is not None and margin < thresholds.min_margin:
        return "margin"
    if thresholds.max_entropy is not None and entropy > thresholds.max_entropy:
        return "entropy"
    return None


def triplet_index(given: Sequence[tuple[int, int, int]] | None, n: int) -> NDArray[np.int64]:
    """Triplets as [t, 3] row numbers of n images or vectors.

    Raises:
        ValueError: (position of the triplet, message): out of range, the same image twice, or no
            triplets where there are not exactly three images.
    """
    if given is None:
        if n != 3:
            raise TripletError(None, f"`triplets` may be left out with exactly three images or vectors; here are {n}.")
        return np.array([[0, 1, 2]], np.int64)
    for t, (a, b, c) in enumerate(given):
        if not (0 <= a < n and 0 <= b < n and 0 <= c < n):
            raise TripletError(t, f"triplet {t} is {[a, b, c]}; positions go from 0 to {n - 1}.")
        if len({a, b, c}) < 3:
            raise TripletError(t, f"triplet {t} is {[a, b, c]}; it must name three different images.")
    return np.array(given, np.int64)


class TripletError(ValueError):
    """A triplet that cannot be judged; `index` is its position in the request."""

    def __init__(self, index: int | None, message: str) -> None:
        super().__init__(message)
        self.index = index
