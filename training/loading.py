"""Pixels of a run's photos, decoded once by the server's own code and kept in memory while they fit."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.pixels import ImageError, PixelSpec, load_pixels
from training.photos import Photos


class PixelLoader:
    """Rows of photos to uint8 pixels.

    Args:
        photos: where the files are.
        spec: how the model wants its pixels; dtype uint8.
        workers: decoding threads.
        memory: bytes of decoded pixels kept; what does not fit is decoded again each time.
    """

    def __init__(self, photos: Photos, spec: PixelSpec, *, workers: int = 2, memory: int = 2**31) -> None:
        self._photos = photos
        self._spec = spec
        self._pool = ThreadPoolExecutor(workers)
        self._kept: dict[int, NDArray[Any]] = {}
        self._room = memory // int(np.prod(spec.shape))

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """[m] rows to [m, 3, height, width]. Raises ValueError naming a photo that does not decode."""
        return torch.from_numpy(np.stack(list(self._pool.map(self._one, rows.tolist()))))

    def _one(self, row: int) -> NDArray[Any]:
        if (kept := self._kept.get(row)) is not None:
            return kept
        path = self._photos.root / self._photos.paths[row]
        try:
            pixels = load_pixels(path.read_bytes(), self._spec)
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
        if len(self._kept) < self._room:
            self._kept[row] = pixels
        return pixels
