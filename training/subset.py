"""Some of one's images, as images of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.images import Images


@dataclass(frozen=True)
class Subset:
    """The images of these rows, in this order; an `Images`."""

    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> Sequence[str]:
        """See `Images`."""
        own = self.images.names
        return [own[row] for row in self.rows]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """See `Images`."""
        return self.images.sizes[self.rows]

    @property
    def labels(self) -> Sequence[str] | None:
        """See `Images`."""
        own = self.images.labels
        return None if own is None else [own[row] for row in self.rows]

    def where(self, row: int) -> str:
        """See `Images`."""
        return self.images.where(int(self.rows[row]))

    def read(self, row: int) -> bytes:
        """See `Images`."""
        return self.images.read(int(self.rows[row]))
