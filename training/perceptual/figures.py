"""Two-alternative accuracy with intervals, before alignment against after, on the same trials."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate import Estimate
from training.evaluation.intervals import over_items
from training.perceptual.trials import Trials, distances, scores

Scores = NDArray[np.float64]


def judgment_scores(trials: Trials, vectors: NDArray[np.float32]) -> Scores:
    """What each judgment earns [j], in order of its number: the least of its trials."""
    earned = scores(trials, distances(vectors, trials.index))
    _, at = np.unique(trials.judgment, return_inverse=True)
    out = np.full(at.max() + 1, np.inf)
    np.minimum.at(out, at, earned)
    return out


def accuracy(score: Scores, unit: NDArray[np.int64], *, repetitions: int, seed: int) -> Estimate:
    """Mean of [j] scores with its interval; units are drawn with replacement, `n` is how many there are.

    Args:
        score: of each judgment, or its difference between two models.
        unit: [j] of each judgment.
        repetitions: bootstrap samples.
        seed: of the samples; two calls with one seed draw the same units.
    """
    _, at = np.unique(unit, return_inverse=True)
    total, count = np.bincount(at, score), np.bincount(at)
    return over_items(len(count), lambda rows: float(total[rows].sum() / count[rows].sum()), repetitions, seed)


def accuracy_figures(
    trials: Trials,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    taught: Sequence[str],
    *,
    repetitions: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy by kind of trial, of kinds taught and held out, and of all.

    Args:
        trials: that are reported, none of them trained on.
        before: [n, d] embeddings of all images before training.
        after: [n, d] after it.
        taught: kinds that training saw.
        repetitions: bootstrap samples.
        seed: of the samples.

    Returns:
        {"before", "after", "after - before": {group: estimate}, "rule": how trials are scored, "trials": their number}
    """
    _, first = np.unique(trials.judgment, return_index=True)
    kind, unit = trials.kind[first], trials.unit[first]
    groups = {"all": np.ones(len(first), bool)}
    seen = np.isin(kind, list(taught))
    if not seen.all():
        groups |= {"kinds that training saw": seen, "kinds held out": ~seen}
    if len(names := np.unique(kind)) > 1:
        groups |= {str(name): kind == name for name in names}
    groups = {name: inside for name, inside in groups.items() if inside.any()}
    own = [judgment_scores(trials, vectors) for vectors in (before, after)]
    columns = {"before": own[0], "after": own[1], "after - before": own[1] - own[0]}
    figures: dict[str, Any] = {
        column: {
            group: asdict(accuracy(score[inside], unit[inside], repetitions=repetitions, seed=seed))
            for group, inside in groups.items()
        }
        for column, score in columns.items()
    }
    return figures | {"rule": trials.rule, "trials": len(trials), "distance": "1 - cosine"}
