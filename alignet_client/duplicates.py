"""Photos that show nearly the same: groups joined by pairs whose cosine reaches a threshold."""

import numpy as np
from numpy.typing import NDArray

_ROWS = 1024
"""Rows compared with all others at once; with 100,000 vectors that takes 400 MB."""


def groups(vectors: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Positions of the groups of two or more, each ascending, in order of their first.

    Args:
        vectors: [n, d], each of length 1, so that a dot product is the cosine.
        threshold: of the cosine. A chain of pairs is one group, so its ends may be less alike.
    """
    root = np.arange(len(vectors))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    for start in range(0, len(vectors), _ROWS):
        alike = vectors[start : start + _ROWS] @ vectors[start:].T >= threshold
        for i, others in enumerate(alike):
            a = find(start + i)
            for j in np.flatnonzero(others[i + 1 :]) + start + i + 1:
                b = find(int(j))
                root[max(a, b)] = a = min(a, b)
    found: dict[int, list[int]] = {}
    for i in range(len(vectors)):
        found.setdefault(find(i), []).append(i)
    return [group for group in found.values() if len(group) > 1]
