"""Bootstrap intervals: 95 % percentiles over items drawn with replacement, paired wherever two models are compared.

Items are what a new experiment would draw anew: triplets of a published set, or the concepts that triplets are made
of. Triplets that share concepts are not independent, so where triplets are drawn here, concepts are resampled, and a
triplet counts as often as its three concepts were drawn together (their multiplicities' product).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from training.evaluate import Estimate

Matrix = NDArray[np.float64]


class Drawn(Estimate):
    """An estimate that still has the samples [repetitions] of its interval, NaN where the statistic is not defined.

    They are no field: what is written of an estimate is its value and interval.
    """

    samples: Matrix

    def __init__(self, value: float, low: float, high: float, n: int, samples: Matrix) -> None:
        super().__init__(value, low, high, n)
        object.__setattr__(self, "samples", samples)


def mean_over_items(scores: NDArray[np.floating], repetitions: int, seed: int) -> Estimate:
    """Mean of one score an item [n], items drawn with replacement. Two calls with one seed draw the same items.

    Raises:
        ValueError: no item.
    """
    if not len(scores):
        raise ValueError("there is no item to average.")
    return over_items(len(scores), lambda rows: float(scores[rows].mean()), repetitions, seed)


def over_items(n: int, statistic: Callable[[NDArray[np.int64]], float], repetitions: int, seed: int) -> Drawn:
    """A statistic of row numbers, of all n and of n drawn with replacement; samples it is not defined on are left out.

    Raises:
        ValueError: the statistic of all rows is not finite.
    """
    value = statistic(np.arange(n))
    if not np.isfinite(value):
        raise ValueError(f"the statistic of {n} items is {value}; are they all equal?")
    rng = np.random.default_rng(seed)
    samples = np.array([statistic(rng.integers(n, size=n)) for _ in range(repetitions)])
    return of_samples(value, samples, n)


def spearman(x: NDArray[np.floating], y: NDArray[np.floating], repetitions: int, seed: int) -> Drawn | None:
    """Spearman's correlation of x and y [n], items drawn with replacement; two calls with one seed draw the same.

    Items of which either is not finite are left out. None where fewer than three are left, or one does not vary.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    n = int(finite.sum())
    if n < 3 or np.ptp(x[finite]) == 0 or np.ptp(y[finite]) == 0:
        return None
    weighted = weighted_correlation(rankdata(x[finite]), rankdata(y[finite]))
    return over_items(n, lambda rows: weighted(np.bincount(rows, minlength=n).astype(np.float64)), repetitions, seed)


def difference(first: Drawn, second: Drawn) -> Drawn:
    """First minus second, paired: both must have drawn the same items."""
    return of_samples(first.value - second.value, first.samples - second.samples, first.n)


def concept_weights(concepts: NDArray[np.int64], repetitions: int, seed: int) -> Iterator[Matrix]:
    """Weights [t] of triplets of concepts [t, 3], for each time the concepts are drawn with replacement.

    A sample in which no triplet has weight is drawn again.
    """
    distinct, position = np.unique(concepts, return_inverse=True)
    position = position.reshape(concepts.shape)
    rng = np.random.default_rng(seed)
    for _ in range(repetitions):
        while True:
            times = np.bincount(rng.integers(len(distinct), size=len(distinct)), minlength=len(distinct))
            weights = times[position].prod(1).astype(np.float64)
            if weights.any():
                yield weights
                break


# A weighted statistic of triplets: weights [t] to a number.
Weighted = Callable[[Matrix], float]


def over_concepts(
    concepts: NDArray[np.int64], statistics: Sequence[Weighted], repetitions: int, seed: int
) -> list[Estimate]:
    """Each statistic with its interval; all see the same samples, so differences among them are paired too.

    Args:
        concepts: [t, 3] concept numbers of each triplet.
        statistics: of weights [t], 1 for each triplet in the value itself.
        repetitions: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: a statistic of all triplets is not finite.
    """
    values = [statistic(np.ones(len(concepts))) for statistic in statistics]
    if not np.isfinite(values).all():
        raise ValueError(f"a statistic of {len(concepts)} triplets is not finite; do all scores or entropies agree?")
    samples = np.array([[s(w) for s in statistics] for w in concept_weights(concepts, repetitions, seed)])
    n = len(np.unique(concepts))
    return [of_samples(value, column, n) for value, column in zip(values, samples.T, strict=True)]


def weighted_mean(scores: Matrix) -> Weighted:
    """Mean of one score a triplet."""
    return lambda weights: float(np.average(scores, weights=weights))


def weighted_correlation(x: Matrix, y: Matrix) -> Weighted:
    """Pearson correlation; of ranks, it is Spearman's with the ranks of the whole sample.

    Where every weight is 1 that is Spearman's exactly. NaN where either does not vary.
    """

    def statistic(weights: Matrix) -> float:
        a, b = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
        spread = float(np.sqrt((weights * a * a).sum() * (weights * b * b).sum()))
        return float((weights * a * b).sum()) / spread if spread > 0 else float("nan")

    return statistic


def minus(first: Weighted, second: Weighted) -> Weighted:
    """The paired difference of two statistics."""
    return lambda weights: first(weights) - second(weights)


def of_samples(value: float, samples: Matrix, n: int) -> Drawn:
    """A statistic, the percentiles of its samples, and the number of items behind it."""
    finite = samples[np.isfinite(samples)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    return Drawn(float(value), float(low), float(high), n, samples)
