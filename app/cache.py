"""Vectors that were computed before, by what the pixels were: bounded, in memory, off unless asked for."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.metrics import Metrics

Row = Mapping[str, NDArray[np.float32]]
"""Space name to one vector [size]."""


def pixel_key(pixels: NDArray[Any]) -> bytes:
    """A digest of one tensor. Files that differ in metadata or lossless format only have the same."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


class VectorCache:
    """The vectors of the images seen last. It belongs to one model, so to one fingerprint; no image is kept.

    Args:
        most: images whose vectors are kept; the one not asked for longest goes first.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._metrics = metrics

    def __len__(self) -> int:
        """Images whose vectors are kept."""
        return len(self._rows)

    def get(self, key: bytes) -> Row | None:
        """The vectors of the pixels with this key, if known."""
        row = self._rows.get(key)
        self._metrics.cache.labels("miss" if row is None else "hit").inc()
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: Row) -> None:
        """Keep the vectors of these pixels."""
        self._rows[key] = {space: vector.copy() for space, vector in row.items()}  # a row would keep its whole batch
        self._rows.move_to_end(key)
        if len(self._rows) > self._most:
            self._rows.popitem(last=False)
