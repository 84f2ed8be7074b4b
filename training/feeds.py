"""Which images a distillation step embeds, and which triplets it forms among them.

An encoder pass is what costs, so the two feeds differ in how many triplets they get out of one:

- `triplet`, the reference's way: b triplets drawn from the whole set, three passes a triplet;
- `labelled`, the same from a file of triplets that a teacher has judged;
- `in-batch`: B images, a few clusters at a time, embedded once; many triplets formed among them.

Both give rows of images and positions of triplets among those rows, so one loss serves both. A step is a
function of (seed, step) alone: resuming needs no state, and every process of a distributed run agrees.
"""

import warnings
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
        per_group: images of each cluster in an in-batch step; None draws them from all alike, whatever their cluster.
        triplets_per_step: formed among the images of an in-batch step.
        sampling: `border` takes two images of one cluster and one of another, `random` any three.
        feed_seed: of all that is drawn.
    """

    feed: Literal["in-batch", "triplet"] = "in-batch"
    batch: int = 512
    per_group: int | None = 8
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


def _triplets(sampling: Sampling, label: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Triplets [size, 3] of positions; where a draw gives too few, as of groups of unequal size, another adds to it."""
    found = np.empty((0, 3), np.int64)
    while len(found) < size:
        some = border_triplets(label, size, rng) if sampling == "border" else random_triplets(len(label), size, rng)
        found = np.concatenate([found, some])
    return found[:size]


def in_batch(
    rows: NDArray[np.int64],
    label: NDArray[np.int64],
    *,
    batch: int,
    per_group: int | None,
    triplets: int,
    sampling: Sampling,
    seed: int,
) -> Feed:
    """`batch` images a step, `per_group` of each drawn group, and `triplets` triplets among them.

    Groups are drawn in proportion to their size, and images of a group alike. A group with fewer images than
    `per_group` gives all that it has, so a step may embed fewer than `batch` (log.jsonl says how many); images that are
    alone in their group are never drawn, which a warning says. With `per_group` None images are drawn from all `rows`
    alike.

    Raises:
        ValueError: fewer groups of two images than a batch holds, a batch of fewer than two groups, or fewer images
            than a batch.
    """
    if per_group is None:
        if len(rows) < batch or batch < 3:
            raise ValueError(
                f"{len(rows)} images, {batch} a step; expected at least 3 a step, and no more than there are."
            )
        groups, n_groups = [rows], 1
    else:
        groups, n_groups = groups_of(label, rows), batch // per_group
        if n_groups < 2 or len(groups) < n_groups:
            raise ValueError(
                f"a step takes {n_groups} groups of {per_group} images, and {len(groups)} groups have two or more "
                f"images; expected at least 2 groups a step, and no more than there are: change batch ({batch}), "
                "per_group or the number of clusters."
            )
        if alone := len(rows) - sum(map(len, groups)):
            warnings.warn(f"{alone} of {len(rows)} images are alone in their group and never drawn.", stacklevel=2)
    share = np.array([len(group) for group in groups], np.float64)
    share /= share.sum()

    def step(number: int) -> Step:
        rng = np.random.default_rng([seed, number])
        chosen = rng.choice(len(groups), n_groups, replace=False, p=share)
        drawn = [rng.choice(groups[g], min(per_group or batch, len(groups[g])), replace=False) for g in chosen]
        embedded = np.concatenate(drawn)
        return Step(embedded, _triplets(sampling, label[embedded], triplets, rng))

    return step


def triplet_feed(
    rows: NDArray[np.int64], label: NDArray[np.int64], *, batch: int, sampling: Sampling, seed: int
) -> Feed:
    """`batch` triplets a step from the whole set, three images each.

    Raises:
        ValueError: a set without such a triplet: fewer than three images, or, on borders, one group only or no two
            images of one.
    """
    position_label = label[rows]
    _, counts = np.unique(position_label, return_counts=True)
    if len(rows) < 3 or (sampling == "border" and (len(counts) < 2 or counts.max() < 2)):
        raise ValueError(
            f"{len(rows)} images in {len(counts)} groups, {counts.max(initial=0)} in the largest; a triplet needs "
            "three images, on a border two of one group and one of another."
        )

    def step(number: int) -> Step:
        rng = np.random.default_rng([seed, number])
        found = _triplets(sampling, position_label, batch, rng)
        return Step(rows[found.ravel()], np.arange(3 * batch).reshape(batch, 3))

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
