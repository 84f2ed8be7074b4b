"""Uncertainty: whether a model is unsure where people disagree, and its probabilities are the frequencies they claim.

Probabilities are softmax(similarities / T), T fitted for each model to VICE on the very triplets that are judged: one
number of 20,000 triplets, which flatters every model alike. With p VICE's and q the model's probabilities of a triplet:

    entropy correlation    Spearman between the entropies of q and p (Muttenthaler et al. 2025, "Uncertainty")
    KL                     mean KL(p || q), nats
    Brier                  expected squared error, mean of |q|^2 - 2 q.p + 1 (Brier 1950), 0 to 2
    ECE                    15 equal bins of confidence max q from 1/3 to 1, mean |confidence - agreement| weighted by
                           bin (Guo et al. 2017); the agreement is p of the model's choice, an expectation, not a draw

Human disagreement is the entropy of real responses (the 20 of each THINGS test triplet), where photos exist.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from contract import triplets
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import (
    concept_data,
    draw_photos,
    judged_concepts,
    similarities,
    temperature_on,
    vice_triplets,
)
from training.evaluation.intervals import Weighted
from training.evaluation.odd_one_out import read_choices
from training.evaluation.result import PEOPLE, Plot, Result, Row, Setting

Matrix = NDArray[np.float64]
BINS = 15
EDGES = np.linspace(1 / 3, 1, BINS + 1)
DECILES = 10
ASKED, FEWEST = 4, 10
"""People who judged a triplet, and triplets, below which nothing is said about disagreement."""


def uncertainty(setting: Setting) -> Result:
    """Entropy, calibration and the table from entropy to expected agreement, by dot product."""
    data, c = concept_data(setting.data), setting.constants
    drawn = vice_triplets(setting)
    p = triplets.pair_probabilities(drawn.vice)
    out = Result()
    statistics: dict[str, dict[str, Weighted]] = {}
    reliability, agreement = [], []
    for name, x in setting.vectors(data.photos).items():
        sims = similarities(x, drawn.photos, "dot")
        t = temperature_on(sims, triplets.pair_log_probabilities(drawn.vice), name)
        q = triplets.pair_probabilities(sims, t)
        out.rows.append(Row("temperature", name, Estimate(t, t, t, len(q)), setting="dot", unit="similarity"))
        statistics[name] = against(p, q)
        reliability.append({"label": name} | reliability_curve(p, q))
        agreement.append({"label": name} | entropy_to_agreement(p, q))
    keys = [(f, m, s) for m, by in statistics.items() for f, s in by.items()]
    for a, b in setting.pairs:
        keys += [(f, f"{a} - {b}", intervals.minus(s, statistics[b][f])) for f, s in statistics[a].items()]
    estimates = intervals.over_concepts(drawn.concepts, [s for _, _, s in keys], c.repetitions, c.seed)
    units = {"entropy correlation with VICE": "Spearman", "KL from VICE": "nats", "Brier score": "squared error"}
    out.rows += [
        Row(f, m, e, "", "dot", units.get(f, "fraction")) for (f, m, _), e in zip(keys, estimates, strict=True)
    ]
    out.rows += _people(setting) + _disagreement(setting, out.notes)
    diagonal = {"label": "perfect", "x": [1 / 3, 1.0], "y": [1 / 3, 1.0]}
    out.plots += [
        Plot(
            "lines",
            "Reliability",
            {"x": "confidence", "y": "expected human agreement", "series": [*reliability, diagonal]},
        ),
        Plot(
            "lines",
            "Entropy to expected agreement",
            {"x": "entropy of the model's choice, nats", "y": "expected human agreement", "series": agreement},
        ),
    ]
    return out


def against(p: Matrix, q: Matrix) -> dict[str, Weighted]:
    """Weighted statistics of a model's pair probabilities q [t, 3] against people's p [t, 3]."""
    ranks = [rankdata(triplets.entropy(x)) for x in (q, p)]
    safe = np.where(p > 0, p, 1.0)
    divergence = (p * (np.log(safe) - np.log(np.maximum(q, np.finfo(np.float64).tiny)))).sum(1)
    return {
        "entropy correlation with VICE": intervals.weighted_correlation(*ranks),
        "KL from VICE": intervals.weighted_mean(divergence),
        "Brier score": intervals.weighted_mean(brier(p, q)),
        "expected calibration error": calibration_error(p, q),
    }


def brier(p: Matrix, q: Matrix) -> Matrix:
    """Expected squared error [t] of q when the outcome is drawn from p."""
    out: Matrix = (q * q).sum(1) - 2 * (q * p).sum(1) + 1
    return out


def _confidence(p: Matrix, q: Matrix) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """(confidence of q, probability under p of q's choice, bin), each [t]; equal largest q share the agreement."""
    confidence = q.max(1)
    best = q == confidence[:, None]
    expected = (p * best).sum(1) / best.sum(1)
    return confidence, expected, np.clip(np.digitize(confidence, EDGES) - 1, 0, BINS - 1)


def calibration_error(p: Matrix, q: Matrix) -> Weighted:
    """Expected calibration error as the module docstring says."""
    confidence, expected, which = _confidence(p, q)

    def statistic(weights: Matrix) -> float:
        gap = np.bincount(which, weights * (confidence - expected), minlength=BINS)
        return float(np.abs(gap).sum() / weights.sum())

    return statistic


def reliability_curve(p: Matrix, q: Matrix) -> dict[str, list[float]]:
    """Mean confidence x, mean agreement y and count n of every bin that is not empty."""
    confidence, expected, which = _confidence(p, q)
    n = np.bincount(which, minlength=BINS)
    full = n > 0
    x, y = (np.bincount(which, values, minlength=BINS)[full] / n[full] for values in (confidence, expected))
    return {"x": x.tolist(), "y": y.tolist(), "n": n[full].tolist(), "bin": np.flatnonzero(full).tolist()}


def entropy_to_agreement(p: Matrix, q: Matrix) -> dict[str, list[float]]:
    """Mean entropy x and expected agreement y in ten equally large groups by entropy: how often people will agree."""
    h = triplets.entropy(q)
    _, expected, _ = _confidence(p, q)
    parts = [part for part in np.array_split(np.argsort(h, kind="stable"), DECILES) if len(part)]
    return {"x": [float(h[i].mean()) for i in parts], "y": [float(expected[i].mean()) for i in parts]}


def _people(setting: Setting) -> list[Row]:
    """How well VICE's own entropy tells real disagreement: what a model that equals VICE would reach."""
    data, c = concept_data(setting.data), setting.constants
    rows = []
    for choices in read_choices(setting.data, data):
        several = choices.counts.sum(1) >= ASKED
        if several.sum() < FEWEST:
            continue
        counts = choices.counts[several]
        disagreement = triplets.entropy(counts / counts.sum(1, keepdims=True))
        objects = choices.objects[several]
        h = triplets.entropy(triplets.pair_probabilities(triplets.pair_similarities(data.vice[objects])))
        if (estimate := intervals.spearman(h, disagreement, c.repetitions, c.seed)) is not None:
            rows.append(Row("entropy of VICE with disagreement", PEOPLE, estimate, choices.source, "dot", "Spearman"))
    return rows


def _disagreement(setting: Setting, notes: list[str]) -> list[Row]:
    """How well a model's entropy tells real disagreement, at its temperature on these triplets; by dot product."""
    data, c, judged = concept_data(setting.data), setting.constants, judged_concepts(setting)
    rows = []
    for choices in read_choices(setting.data, data):
        kept = (choices.counts.sum(1) >= ASKED) & np.isin(choices.objects, judged).all(1)
        if kept.sum() < FEWEST:
            several = f"{int(kept.sum())} triplets that several people judged have photos that may be judged"
            notes.append(f"{choices.source}: {several}; model entropy against human disagreement needs {FEWEST}.")
            continue
        counts, objects = choices.counts[kept], choices.objects[kept]
        share = counts / counts.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            log_p = np.log(share[:, ::-1])  # objects 0, 1, 2 to pairs 01, 02, 12
        photos, disagreement = draw_photos(data, objects, c.seed), triplets.entropy(share)
        found = {}
        for name, x in setting.vectors(data.photos).items():
            sims = similarities(x, photos, "dot")
            h = triplets.entropy(triplets.pair_probabilities(sims, temperature_on(sims, log_p, name)))
            if (estimate := intervals.spearman(h, disagreement, c.repetitions, c.seed)) is not None:
                found[name] = estimate
        both = [(a, b) for a, b in setting.pairs if a in found and b in found]
        found |= {f"{a} - {b}": intervals.difference(found[a], found[b]) for a, b in both}
        figure = "entropy with human disagreement"
        rows += [Row(figure, name, e, choices.source, "dot", "Spearman") for name, e in found.items()]
    return rows
