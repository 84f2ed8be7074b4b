"""Triplets of images, drawn by group: what a teacher is asked about.

Four ways to draw (Muttenthaler et al. 2025, and the names of the files that came with it):

- `cluster_border`, `class_border`: two images of one group and one of another; groups are k-means clusters of
  the features (the main experiments) or class labels;
- `random`: three different images, all images alike; this is the paper's text. `between_class` is its file:
  three different classes;
- `within_class`: three images of one class; the files have it, for evaluation.

How groups are drawn is not stated. `draw="uniform"` (default): every group alike, then its images alike, the
literal reading, which gives rare kinds of image as many borders as common ones. `draw="size"`: every image
alike, so that large groups come up more. A group with too few images for the sampling is left out, also as the
group of the odd image, because its one image would come up as often as a whole group; it is reported.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["cluster_border", "class_border", "random", "between_class", "within_class"]
Draw = Literal["uniform", "size"]

LEAST = {"cluster_border": (2, 2), "class_border": (2, 2), "between_class": (3, 1), "within_class": (1, 3)}
"""For each sampling of groups: how many groups it needs, and how many images in each."""


@dataclass(frozen=True)
class Groups:
    """Images sorted by group; only groups that have enough.

    Attributes:
        rows: image numbers, those of one group after those of another.
        start, size: [g] where each group begins in `rows`, and how many it has.
        skipped: (label, image) of each group that has too few; the image is its first.
    """

    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    skipped: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, labels: NDArray[Any], sampling: Sampling, where: str = "labels") -> Self:
        """Sort images by label, a whole number from 0.

        Raises:
            ValueError: a negative label (the row is named), or too few groups with enough images.
        """
        groups, images = LEAST[sampling]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
            raise ValueError(f"{where} are {labels.dtype} {labels.shape}; expected one whole number an image.")
        if labels.min() < 0:
            row = int((labels < 0).argmax())
            raise ValueError(f"{where}, row {row}: label {labels[row]}; expected 0 or above.")
        order = np.argsort(labels, kind="stable")
        label, start, size = np.unique(labels[order], return_index=True, return_counts=True)
        enough = size >= images
        few = ~enough
        skipped = tuple(zip(label[few].tolist(), order[start[few]].tolist(), strict=True))
        if enough.sum() < groups:
            example = f"; group {skipped[0][0]} has too few, its first image is row {skipped[0][1]}" if skipped else ""
            raise ValueError(
                f"{where}: {enough.sum()} of {len(label)} groups have at least {images} images; "
                f"{sampling} needs {groups}{example}."
            )
        rows = order[np.repeat(enough, size)]
        size = size[enough]
        return cls(rows, np.cumsum(size) - size, size, skipped)


def sample(
    sampling: Sampling, count: int, rng: np.random.Generator, images: int, groups: Groups | None, draw: Draw = "uniform"
) -> NDArray[np.int64]:
    """Triplets [count, 3] of image numbers, never one image twice in a triplet.

    Border triplets have the two of one group first and the one of another last.

    Args:
        images: how many there are; matters for `random` only.
        groups: of the images; None for `random`.

    Raises:
        ValueError: fewer than three images; `between_class` by size where three classes hardly ever come up.
    """
    if sampling == "random":
        if images < 3:
            raise ValueError(f"{images} images; a triplet needs three.")
        return _distinct(rng, images, count, 3)
    assert groups is not None
    if sampling == "between_class":
        return _between(rng, groups, count, draw)
    if draw == "uniform":
        first = rng.integers(0, len(groups.size), count)
    else:
        first = _group_at(groups, rng.integers(0, len(groups.rows), count))
    members = 3 if sampling == "within_class" else 2
    inside: NDArray[np.int64] = groups.start[first, None] + _distinct(rng, groups.size[first], count, members)
    if sampling != "within_class":
        inside = np.column_stack([inside, _outside(rng, groups, first, draw)])
    drawn: NDArray[np.int64] = groups.rows[inside]
    return drawn


def _outside(rng: np.random.Generator, groups: Groups, first: NDArray[np.int64], draw: Draw) -> NDArray[np.int64]:
    """Positions in `groups.rows`, each outside the group given."""
    if draw == "uniform":
        other = rng.integers(0, len(groups.size) - 1, len(first))
        other += other >= first
        return groups.start[other] + rng.integers(0, groups.size[other])
    # As if the group were cut out of the row of all images.
    position = rng.integers(0, len(groups.rows) - groups.size[first])
    return position + np.where(position >= groups.start[first], groups.size[first], 0)


def _distinct(rng: np.random.Generator, below: Any, count: int, members: int) -> NDArray[np.int64]:
    """[count, members] different whole numbers below a bound (or below one of each row), all sets alike."""
    a = rng.integers(0, below, count)
    b = rng.integers(0, below - 1, count)
    b += b >= a
    if members == 2:
        return np.column_stack([a, b])
    c = rng.integers(0, below - 2, count)
    c += c >= np.minimum(a, b)
    c += c >= np.maximum(a, b)
    return np.column_stack([a, b, c])


def _group_at(groups: Groups, position: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of each position in `groups.rows`."""
    found: NDArray[np.int64] = np.searchsorted(groups.start, position, side="right") - 1
    return found


def _between(rng: np.random.Generator, groups: Groups, count: int, draw: Draw) -> NDArray[np.int64]:
    """Three images of three groups; by size, three images of all until their groups differ."""
    if draw == "uniform":
        chosen = _distinct(rng, len(groups.size), count, 3)
        images: NDArray[np.int64] = groups.rows[groups.start[chosen] + rng.integers(0, groups.size[chosen])]
        return images
    share = groups.size / groups.size.sum()
    chance = 1 - 3 * (share**2).sum() + 2 * (share**3).sum()  # that three images have three groups
    if chance < 1e-3:
        raise ValueError(f"three random images are of three classes in {chance:.2g} of draws; draw groups uniformly.")
    out = np.empty((count, 3), np.int64)
    pending = np.arange(count)
    while len(pending):
        position = rng.integers(0, len(groups.rows), (len(pending), 3))
        of = np.sort(_group_at(groups, position), axis=1)
        fine = (of[:, 1:] != of[:, :-1]).all(1)
        out[pending[fine]] = groups.rows[position[fine]]
        pending = pending[~fine]
    return out
