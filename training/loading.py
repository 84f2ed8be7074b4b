"""Pixels of a run's photos, decoded once by the server's own code and kept in memory while they fit."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.pixels import PixelSpec
from training.images import Images, load_image


class PixelLoader:
    """Rows of images to uint8 pixels.

    Args:
        images: where they come from.
        spec: how the model wants its pixels; dtype uint8.
        workers: decoding threads.
        memory: bytes of decoded pixels kept; what does not fit is decoded again each time.
    """

    def __init__(self, images: Images, spec: PixelSpec, *, workers: int = 2, memory: int = 2**31) -> None:
        self._images = images
        self._spec = spec
        self._pool = ThreadPoolExecutor(workers)
        self._kept: dict[int, NDArray[Any]] = {}
        self._room = memory // int(np.prod(spec.shape))

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """[m] rows to [m, 3, height, width]. Raises UnreadableImage naming an image that does not decode."""
        return torch.from_numpy(np.stack(list(self._pool.map(self._one, rows.tolist()))))

    def _one(self, row: int) -> NDArray[Any]:
        if (kept := self._kept.get(row)) is not None:
            return kept
        pixels = load_image(self._images, row, self._spec)
        if len(self._kept) < self._room:
            self._kept[row] = pixels
        return pixels
