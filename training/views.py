"""Views: cropped and mirrored copies of images that are images of their own, so that a teacher judges each itself.

Where images are few, a student that sees the same pixels every epoch learns them by heart. Augmenting what the
student sees alone leaves the teacher's answer to the whole photo; here both see the same crop (Beyer et al. 2022,
"Knowledge distillation: A good teacher is patient and consistent"), and the teacher still runs only once.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.feeds import Feed, Step
from training.images import Images

AREA = (0.5, 1.0)
"""Share of an image that a view shows, drawn uniformly; sides keep their proportion."""


@dataclass(frozen=True)
class Views:
    """Images and `copies` views of each; an `Images`.

    Row v * n + i is view v of image i; view 0 is the image itself.
    """

    images: Images
    copies: int

    def __len__(self) -> int:
        return len(self.images) * (self.copies + 1)

    @property
    def names(self) -> Sequence[str]:
        """Of an image, its own; of a view, that and the number of the view."""
        own = list(self.images.names)
        return own + [f"{name}#view-{view}" for view in range(1, self.copies + 1) for name in own]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Encoded bytes of the image itself."""
        return np.tile(self.images.sizes, self.copies + 1)

    @property
    def labels(self) -> Sequence[str] | None:
        """Of the image itself."""
        own = self.images.labels
        return None if own is None else list(own) * (self.copies + 1)

    def where(self, row: int) -> str:
        """See `Images`."""
        view, image = divmod(row, len(self.images))
        return f"view {view} of {self.images.where(image)}" if view else self.images.where(image)

    def read(self, row: int) -> bytes:
        """A view as PNG, which loses nothing; a function of (image, view) alone."""
        view, number = divmod(row, len(self.images))
        encoded = self.images.read(number)
        if not view:
            return encoded
        rng = np.random.default_rng([number, view])
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        share = float(np.sqrt(rng.uniform(*AREA)))
        width, height = (max(1, round(share * side)) for side in image.size)
        left, top = (
            int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True)
        )
        image = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=0)  # it is decoded at once: nothing is gained by packing it
        return out.getvalue()


def with_views(feed: Feed, images: int, copies: int, *, seed: int) -> Feed:
    """A feed whose steps embed a random view of each image, the image itself included.

    Args:
        feed: over rows of `images` images, an image at most once a step.
        copies: views of each image, besides itself.
        seed: of the views drawn.
    """

    def step(number: int) -> Step:
        whole = feed(number)
        view = np.random.default_rng([seed, number]).integers(copies + 1, size=len(whole.rows))
        return Step(whole.rows + images * view, whole.index, whole.similarities)

    return step
