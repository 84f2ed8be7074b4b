"""Class triplets: two images of a class and one of another, the control that no person has judged."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.feeds import border_triplets
from training.images import Images
from training.perceptual.trials import SPLITS, Trials

SHARES = (0.8, 0.1, 0.1)
"""Of the images, in training, validation and test."""


def class_triplets(images: Images, source: str, *, trials: int = 20_000, seed: int = 0) -> Trials:
    """Random trials whose reference and one alternative share a class; no image is in two splits.

    Args:
        images: with classes.
        source: what an error message calls them.
        trials: in all splits together.
        seed: of splits, trials and sides.

    Raises:
        ValueError: images without classes, or a split without two images of one class and one of another.
    """
    if images.labels is None:
        raise ValueError(f"{source} has no classes; class triplets need a folder for each class, or a column `label`.")
    label = np.unique(np.array(images.labels), return_inverse=True)[1].astype(np.int64)
    split = split_images(len(images), seed)
    found, splits = [], []
    for name, share in zip(SPLITS, SHARES, strict=True):
        rows = np.flatnonzero(split == name)
        wanted = max(1, round(share * trials))
        rng = np.random.default_rng([seed, SPLITS.index(name)])
        found.append(rows[_drawn(label[rows], wanted, rng, f"{source}, split {name}")])
        splits += [name] * wanted
    reference, near, far = np.concatenate(found).T
    right = np.random.default_rng([seed, len(SPLITS)]).random(len(reference)) < 0.5
    return Trials(
        source=source,
        images=images,
        index=np.stack([reference, np.where(right, far, near), np.where(right, near, far)], 1).astype(np.int64),
        votes=right.astype(np.float64),
        split=np.array(splits),
        kind=np.full(len(reference), "class"),
        judgment=np.arange(len(reference)),
        unit=reference.astype(np.int64),
    )


def split_images(n: int, seed: int, shares: Sequence[float] = SHARES) -> NDArray[np.str_]:
    """The split of each of n images, at random in these shares."""
    ends = np.round(np.cumsum(shares) * n).astype(int)
    position = np.random.default_rng(seed).permutation(n)
    return np.array(SPLITS)[np.searchsorted(ends, position, side="right")]


def _drawn(label: NDArray[np.int64], wanted: int, rng: np.random.Generator, where: str) -> NDArray[np.int64]:
    """Positions [wanted, 3]: two of a class, one of another."""
    _, counts = np.unique(label, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(f"{where}: {len(label)} images of {len(counts)} classes; expected two of one and another.")
    found = np.empty((0, 3), np.int64)
    while len(found) < wanted:
        found = np.concatenate([found, border_triplets(label, 2 * wanted, rng)])
    return found[:wanted]
