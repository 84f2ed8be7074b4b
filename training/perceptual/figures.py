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


def columns(before: Scores, after: Scores, untrained: Scores | None) -> dict[str, Scores]:
    """What is reported of each judgment: what it earns, and the paired differences.

    Args:
        before: earned by what the alignment is compared with.
        after: earned after training.
        untrained: earned before the first step, where that is not `before`: what is looked at, without what is learned.
    """
    start = {} if untrained is None else {"untrained": untrained, "after - untrained": after - untrained}
    return {"before": before, "after": after, "after - before": after - before, **start}


def accuracy_figures(
    trials: Trials,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    taught: Sequence[str],
    *,
    untrained: NDArray[np.float32] | None = None,
    repetitions: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy by kind of trial, of kinds taught and held out, and of all.

    Args:
        trials: that are reported, none of them trained on.
        before: [n, d] embeddings of all images, of what the alignment is compared with.
        after: [n, d] after training.
        taught: kinds that training saw.
        untrained: [n, d] before the first step, where that is not `before`.
        repetitions: bootstrap samples.
        seed: of the samples.

    Returns:
        {column: {group: estimate}} for the columns of `columns`, and "rule": how trials are scored, "trials": their
        number.
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
    start = None if untrained is None else judgment_scores(trials, untrained)
    earned = columns(judgment_scores(trials, before), judgment_scores(trials, after), start)
    figures: dict[str, Any] = {
        column: {
            group: asdict(accuracy(score[inside], unit[inside], repetitions=repetitions, seed=seed))
            for group, inside in groups.items()
        }
        for column, score in earned.items()
    }
    return figures | {"rule": trials.rule, "trials": len(trials), "distance": "1 - cosine"}
