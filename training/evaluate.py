"""Does it judge like people? Agreement, RSA, uncertainty and nearest neighbours, with intervals.

Judgments compare Gram matrices: [c, c] similarities between one photo of each of c concepts, against VICE's
dot products between the same concepts. Intervals are bootstraps over splits and concepts together: the
training splits are drawn with replacement, and the held-out concepts within each, because a score would be
another with other concepts held out and with other concepts to judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from contract import triplets
from contract.triplets import Kernel
from training.feeds import random_triplets

Matrix = NDArray[np.float64]
TRIPLETS_PER_SAMPLE = 5_000


@dataclass(frozen=True)
class Judged:
    """One split's held-out concepts, as the model and as people see them.

    Attributes:
        model: [draws, c, c] similarities between photos; each draw takes one random photo a concept.
        pearson: [draws, c, c] the same photos, Pearson kernel.
        vice: [c, c] dot products of VICE between the concepts.
    """

    model: Matrix
    pearson: Matrix
    vice: Matrix


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, and how many concepts, photos or responses are behind it."""

    value: float
    low: float
    high: float
    n: int


def judge_split(
    vectors: NDArray[np.float32],
    rows_of: Sequence[NDArray[np.int64]],
    vice: Matrix,
    kernel: Kernel,
    *,
    draws: int,
    seed: int,
) -> Judged:
    """Similarities between one random photo of each concept, `draws` times.

    Args:
        vectors: [n, d] of all photos.
        rows_of: rows of the photos of each of c concepts.
        vice: [c, dimensions] VICE embedding of the same concepts.
        kernel: similarity of the judgments.
        draws: how often photos are drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    model, pearson = [], []
    for _ in range(draws):
        x = vectors[[rows[rng.integers(len(rows))] for rows in rows_of]].astype(np.float64)
        model.append(triplets.similarity_matrix(x, x, kernel))
        pearson.append(triplets.similarity_matrix(x, x, "pearson"))
    return Judged(np.stack(model), np.stack(pearson), vice @ vice.T)


# A statistic of one draw: (model gram, pearson gram, VICE gram, triplets over them) to a number.
Statistic = Callable[[Matrix, Matrix, Matrix, NDArray[np.int64]], float]


def agreement(model: Matrix, _: Matrix, vice: Matrix, index: NDArray[np.int64]) -> float:
    """Fraction of triplets with the odd one out that VICE finds most likely; a tie counts as wrong."""
    ours, theirs = (triplets.similarities_at(gram, index) for gram in (model, vice))
    return triplets.accuracy(ours, triplets.odd_one_out(theirs, "argmax"))


def rsa(_: Matrix, pearson: Matrix, vice: Matrix, __: NDArray[np.int64]) -> float:
    """Spearman correlation of the strict upper triangles: model by Pearson kernel, VICE by dot product.

    Pairs of one concept with itself, which resampling makes, are left out.
    """
    i, j = np.triu_indices(len(vice), 1)
    different = pearson[i, j] < 1 - 1e-9
    return float(spearmanr(pearson[i, j][different], vice[i, j][different]).statistic)


def entropy_correlation(temperature: float) -> Statistic:
    """Spearman correlation between the model's entropy at a temperature and VICE's, over triplets."""

    def statistic(model: Matrix, _: Matrix, vice: Matrix, index: NDArray[np.int64]) -> float:
        ours = triplets.entropy(triplets.pair_probabilities(triplets.similarities_at(model, index), temperature))
        theirs = triplets.entropy(triplets.pair_probabilities(triplets.similarities_at(vice, index)))
        return float(spearmanr(ours, theirs).statistic)

    return statistic


def divergence(temperature: float) -> Statistic:
    """Mean KL(VICE || model) in nats at a temperature."""

    def statistic(model: Matrix, _: Matrix, vice: Matrix, index: NDArray[np.int64]) -> float:
        log_p = triplets.pair_log_probabilities(triplets.similarities_at(vice, index))
        log_q = triplets.pair_log_probabilities(triplets.similarities_at(model, index), temperature)
        return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())

    return statistic


def estimate(splits: Sequence[Judged], statistic: Statistic, *, repetitions: int, seed: int) -> Estimate:
    """Mean of a statistic over splits and draws, with a bootstrap interval over splits and concepts.

    Args:
        splits: what each split judged.
        statistic: of one draw.
        repetitions: bootstrap samples; the interval is their 2.5th to 97.5th percentile.
        seed: of triplets and samples.

    Raises:
        ValueError: a split of fewer than three concepts.
    """
    return _bootstrap([(split,) for split in splits], (statistic,), (1.0,), repetitions, seed)


def difference(
    first: Sequence[Judged],
    second: Sequence[Judged],
    statistics: tuple[Statistic, Statistic],
    *,
    repetitions: int,
    seed: int,
) -> Estimate:
    """Mean of (statistic of first - statistic of second), paired: the same splits, photos, concepts and triplets.

    Args:
        first, second: what two models judged, split by split.
        statistics: of the first and of the second; the same unless each has a temperature of its own.
        repetitions: bootstrap samples, as in `estimate`.
        seed: of triplets and samples.

    Raises:
        ValueError: other splits in one than in the other, or a split of fewer than three concepts.
    """
    if len(first) != len(second) or any(a.vice.shape != b.vice.shape for a, b in zip(first, second, strict=True)):
        raise ValueError("the two models judged other splits; a paired difference needs the same concepts.")
    return _bootstrap(list(zip(first, second, strict=True)), statistics, (1.0, -1.0), repetitions, seed)


def _bootstrap(
    splits: Sequence[tuple[Judged, ...]],
    statistics: tuple[Statistic, ...],
    signs: tuple[float, ...],
    repetitions: int,
    seed: int,
) -> Estimate:
    """Mean and interval of the signed sum of statistics, one a model, that all see the same triplets."""
    if any(len(models[0].vice) < 3 for models in splits):
        raise ValueError("a split judges fewer than three concepts; there is no triplet to judge.")
    rng = np.random.default_rng(seed)

    def one(models: tuple[Judged, ...], draw: int, concepts: NDArray[np.int64]) -> float:
        index = random_triplets(len(concepts), TRIPLETS_PER_SAMPLE, rng)
        a, b, c = concepts[index].T
        index = index[(a != b) & (b != c) & (a != c)]
        grid = np.ix_(concepts, concepts)
        return sum(
            sign * statistic(m.model[draw][grid], m.pearson[draw][grid], m.vice[grid], index)
            for sign, statistic, m in zip(signs, statistics, models, strict=True)
        )

    every = [np.arange(len(models[0].vice)) for models in splits]
    draws = [range(min(len(m.model) for m in models)) for models in splits]
    value = np.mean([one(m, d, all_) for m, all_, ds in zip(splits, every, draws, strict=True) for d in ds])

    def sample() -> float:
        drawn = [int(i) for i in rng.integers(len(splits), size=len(splits))]
        return float(
            np.mean([one(splits[i], int(rng.integers(len(draws[i]))), _resample(every[i], rng)) for i in drawn])
        )

    samples = [sample() for _ in range(repetitions)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), sum(len(models[0].vice) for models in splits))


def _resample(concepts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many concepts, drawn with replacement; drawn again until three are different, so that a triplet exists."""
    while True:
        drawn = rng.choice(concepts, len(concepts))
        if len(np.unique(drawn)) >= 3:
            return drawn


def fit_temperature(similarities: Matrix, log_p: Matrix) -> float:
    """Temperature that maximises the expected log-likelihood of choices drawn from p.

    Args:
        similarities: [t, 3] of the model.
        log_p: [t, 3] log-probabilities of people's choices.

    Raises:
        ValueError: similarities that do not differ carry no temperature.
    """
    scale = float(similarities.std())
    if not scale > 0:
        raise ValueError("all similarities are equal; there is no temperature to fit.")

    def loss(log_t: float) -> float:
        log_q = triplets.pair_log_probabilities(similarities, scale * float(np.exp(log_t)))
        return float(-(np.exp(log_p) * log_q).sum(-1).mean())

    return scale * float(np.exp(minimize_scalar(loss, bounds=(-8, 8), method="bounded").x))


def pooled(splits: Sequence[Judged], *, per_split: int, seed: int) -> tuple[Matrix, Matrix]:
    """Similarities and VICE log-probabilities [t, 3] of triplets from all splits and draws, for `fit_temperature`."""
    rng = np.random.default_rng(seed)
    sims, log_p = [], []
    for split in splits:
        for gram in split.model:
            index = random_triplets(len(split.vice), per_split // len(split.model), rng)
            sims.append(triplets.similarities_at(gram, index))
            log_p.append(triplets.pair_log_probabilities(triplets.similarities_at(split.vice, index)))
    return np.concatenate(sims), np.concatenate(log_p)


def proportion(successes: float, n: int) -> Estimate:
    """A proportion with its Wald 95 % interval (the paper's choice for downstream accuracies)."""
    p = successes / n
    half = 1.96 * float(np.sqrt(p * (1 - p) / n))
    return Estimate(p, max(0.0, p - half), min(1.0, p + half), n)


def mean(values: Matrix) -> Estimate:
    """The mean of [n] values with its normal 95 % interval."""
    half = 1.96 * float(values.std() / np.sqrt(len(values)))
    centre = float(values.mean())
    return Estimate(centre, centre - half, centre + half, len(values))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over splits, with the interval of one split.

    Half its width is the larger of a split's own and 1.96 standard deviations between splits: splits share
    photos, so dividing by their number would promise too much, and a split has few concepts.
    """
    value, low, high, n = (float(np.mean([getattr(e, k) for e in estimates])) for k in ("value", "low", "high", "n"))
    half = max((high - low) / 2, 1.96 * float(np.std([e.value for e in estimates])))
    return Estimate(value, value - half, value + half, round(n))


def nearest_neighbour(vectors: NDArray[np.float32], label: Sequence[str], query: NDArray[np.bool_]) -> Estimate:
    """Leave-one-out accuracy of the nearest neighbour by cosine. Arguments and errors: `nearest_neighbour_hits`."""
    hits = nearest_neighbour_hits(vectors, label, query)
    return proportion(float(hits.sum()), len(hits))


def nearest_neighbour_hits(
    vectors: NDArray[np.float32], label: Sequence[str], query: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether the nearest neighbour by cosine, among all others, has the photo's label; [q].

    Args:
        vectors: [n, d].
        label: n class names.
        query: [n] which q photos to classify; all n are neighbours.

    Raises:
        ValueError: no photo to classify, or no other to be its neighbour.
    """
    if len(vectors) < 2 or not query.any():
        raise ValueError(f"{int(query.sum())} photos to classify among {len(vectors)}; expected at least 1 among 2.")
    names = np.unique(np.array(label), return_inverse=True)[1]
    sims = triplets.similarity_matrix(vectors[query], vectors, "cosine")
    sims[np.arange(query.sum()), np.flatnonzero(query)] = -np.inf
    hits: NDArray[np.bool_] = names[sims.argmax(1)] == names[query]
    return hits
