"""Which images a distillation step embeds, and which triplets it forms among them.

An encoder pass is what costs, so the two feeds differ in how many triplets they get out of one:

- `triplet`, the reference's way: b triplets drawn from the whole set, three passes a triplet;
- `labelled`, the same from a file of triplets that a teacher has judged;
- `in-batch`: B images, a few clusters at a time, embedded once; many triplets formed among them.

Both give rows of images and positions of triplets among those rows, so one loss serves both. A step is a
function of (seed, step) alone: resuming needs no state, and every process of a distributed run agrees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["random", "border"]


@dataclass(frozen=True)
class Step:
    """What one step does.

    Attributes:
        rows: [m] of the images to embed.
        index: [t, 3] triplets as positions among them.
        similarities: [t, 3] the teacher's, order 01, 02, 12; None where its vectors are given.
        votes: [t] share of people who find image 2 nearer to image 0 than image 1, of two-alternative trials; None
            for odd-one-out triplets.
    """

    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    similarities: NDArray[np.float32] | None = None
    votes: NDArray[np.float64] | None = None


Feed = Callable[[int], Step]
"""Step number to what that step does."""


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """What a step embeds and judges.

    Attributes:
        feed: `in-batch` or `triplet`.
        batch: images of an in-batch step; triplets of any other.
        per_group: images of each cluster in an in-batch step.
        triplets_per_step: formed among the images of an in-batch step.
        sampling: `border` takes two images of one cluster and one of another, `random` any three.
        feed_seed: of all that is drawn.
    """

    feed: Literal["in-batch", "triplet"] = "in-batch"
    batch: int = 512
    per_group: int = 8
    triplets_per_step: int = 20_000
    sampling: Sampling = "border"
    feed_seed: int = 0


def feed_of(config: FeedConfig, rows: NDArray[np.int64], label: NDArray[np.int64]) -> Feed:
    """The feed of a config over the images `rows`, with the cluster or class `label` [n] of each image."""
    if config.feed == "triplet":
        return triplet_feed(rows, label, batch=config.batch, sampling=config.sampling, seed=config.feed_seed)
    return in_batch(
        rows,
        label,
        batch=config.batch,
        per_group=config.per_group,
        triplets=config.triplets_per_step,
        sampling=config.sampling,
        seed=config.feed_seed,
    )


def groups_of(label: NDArray[np.int64], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each label, for labels with at least two rows; a border triplet needs two of a kind."""
    found = label[rows]
    groups = [rows[found == value] for value in np.unique(found)]
    return [group for group in groups if len(group) >= 2]


def border_triplets(label: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Triplets [t, 3] of positions: two with one label, the third with another; t is a little below `size`.

    Args:
        label: [m] cluster or class of each position.
    """
    order = np.argsort(label, kind="stable")
    first = np.searchsorted(label[order], label)  # where the position's own group starts in `order`
    _, group, counts = np.unique(label, return_inverse=True, return_counts=True)
    count = counts[group]
    i = rng.integers(len(label), size=size)
    j = order[first[i] + rng.integers(count[i])]
    k = rng.integers(len(label), size=size)
    good: NDArray[np.bool_] = (i != j) & (label[k] != label[i])
    index: NDArray[np.int64] = np.stack([i, j, k], 1)
    return index[good]


def random_triplets(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Triplets [t, 3] of three different positions below n; t is a little below `size`."""
    index: NDArray[np.int64] = rng.integers(n, size=(size, 3))
    i, j, k = index.T
    different: NDArray[np.bool_] = (i != j) & (j != k) & (i != k)
    return index[different]


def in_batch(
    rows: NDArray[np.int64],
    label: NDArray[np.int64],
    *,
    batch: int,
    per_group: int,
    triplets: int,
    sampling: Sampling,
    seed: int,
) -> Feed:
    """`batch` images a step, `per_group` of each drawn group, and about `triplets` triplets among them.

    Groups are drawn in proportion to their size, so that every image is equally likely.

    Raises:
        ValueError: no group of two images, or a batch that holds fewer than two groups.
    """
    groups = groups_of(label, rows)
    n_groups = batch // per_group
    if not groups or n_groups < 2 or len(groups) < 2:
        raise ValueError(
            f"{len(groups)} groups of two or more images, {n_groups} a batch; expected at least 2 of each."
        )
    share = np.array([len(group) for group in groups], np.float64)
    share /= share.sum()

    def step(number: int) -> Step:
        rng = np.random.default_rng([seed, number])
        chosen = rng.choice(len(groups), min(n_groups, len(groups)), replace=False, p=share)
        drawn = [rng.choice(groups[g], min(per_group, len(groups[g])), replace=False) for g in chosen]
        embedded = np.concatenate(drawn)
        if sampling == "border":
            return Step(embedded, border_triplets(label[embedded], triplets, rng))
        return Step(embedded, random_triplets(len(embedded), triplets, rng))

    return step


def triplet_feed(
    rows: NDArray[np.int64], label: NDArray[np.int64], *, batch: int, sampling: Sampling, seed: int
) -> Feed:
    """`batch` triplets a step from the whole set, three images each."""
    position_label = label[rows]

    def step(number: int) -> Step:
        rng = np.random.default_rng([seed, number])
        found = np.empty((0, 3), np.int64)
        while len(found) < batch:
            more = (
                border_triplets(position_label, batch * 2, rng)
                if sampling == "border"
                else random_triplets(len(rows), batch * 2, rng)
            )
            found = np.concatenate([found, more])
        return Step(rows[found[:batch].ravel()], np.arange(3 * batch).reshape(batch, 3))

    return step


def labelled_feed(rows: NDArray[Any], similarities: NDArray[np.float32], *, batch: int, seed: int) -> Feed:
    """`batch` labelled triplets a step, each once an epoch, in an order of its own every epoch.

    Args:
        rows: [n, 3] rows of one's images, as `triplet_gates.load` gives them.
        similarities: [n, 3] the teacher's.
        batch: triplets a step.
        seed: of the orders.

    Raises:
        ValueError: fewer triplets than a batch.
    """
    n = len(rows)
    if batch > n:
        raise ValueError(f"{n} labelled triplets, {batch} a step; expected a step to be no larger than the set.")
    per_epoch = n // batch

    @lru_cache(maxsize=1)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(n)

    def step(number: int) -> Step:
        epoch, position = divmod(number, per_epoch)
        chosen = np.sort(order(epoch)[position * batch : (position + 1) * batch])
        found, index = np.unique(rows[chosen], return_inverse=True)
        return Step(found.astype(np.int64), index.reshape(-1, 3).astype(np.int64), similarities[chosen])

    return step
