"""Figures of several splits as one: means over splits, intervals over splits and items together.

Every split is judged on its own, on the concepts that its models have not seen. A pooled figure is the mean of the
splits' figures; its interval draws splits with replacement and, of each, a bootstrap sample, as `training.evaluate`
does for the page of results. All splits drawn take the sample of the same number: test photos that the splits share
are then drawn alike in each, so that judging them three times makes no interval narrower, while held-out concepts,
which differ from split to split, are drawn independently. Where an interval is not of samples but Wald's, its normal
distribution is drawn from. Maps, heat maps and pairs of photos are those of the first split.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.intervals import Drawn
from training.evaluation.result import Plot, Result, Row

WALD = 2 * 1.959963984540054
"""Width of a 95 % interval in standard errors."""


def pool(results: Sequence[Result], seeds: Sequence[int], repetitions: int, seed: int) -> Result:
    """One result of those of several splits.

    Args:
        results: of each split, by the same protocol.
        seeds: the splits' numbers.
        repetitions: samples of the intervals.
        seed: of the splits drawn; the same for all figures, so that they stay paired.
    """
    keys = dict.fromkeys(_key(row) for result in results for row in result.rows)
    by_split = [{_key(row): row for row in result.rows} for result in results]
    out = Result()
    for key in keys:
        found = [rows[key] for rows in by_split if key in rows]
        out.rows.append(replace(found[0], estimate=pooled([row.estimate for row in found], repetitions, seed)))
    partly = sum(any(key not in rows for rows in by_split) for key in keys)
    if partly:
        out.notes.append(f"{partly} figures are means of fewer than {len(results)} splits: the others lack the items.")
    common = [note for note in results[0].notes if all(note in result.notes for result in results)]
    own = [
        f"split {number}: {note}"
        for number, result in zip(seeds, results, strict=True)
        for note in result.notes
        if note not in common
    ]
    out.notes += common + own
    out.plots = _plots(results, seeds[0])
    return out


def pooled(estimates: Sequence[Estimate], repetitions: int, seed: int) -> Drawn:
    """The mean of estimates of several splits, and its interval; n is the mean number of items of a split."""
    samples = np.array([_samples(e, repetitions, seed) for e in estimates])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(estimates), size=(repetitions, len(estimates)))
    with np.errstate(invalid="ignore"):
        means = np.array([samples[splits, r].mean() for r, splits in enumerate(drawn)])
    value = float(np.mean([e.value for e in estimates]))
    return intervals.of_samples(value, means, round(float(np.mean([e.n for e in estimates]))))


def _samples(e: Estimate, repetitions: int, seed: int) -> NDArray[np.float64]:
    if isinstance(e, Drawn) and len(e.samples) == repetitions:
        return e.samples
    return e.value + (e.high - e.low) / WALD * np.random.default_rng(seed + 1).standard_normal(repetitions)


def _key(row: Row) -> tuple[str, str, str, str, str]:
    return row.figure, row.group, row.setting, row.model, row.unit


def _plots(results: Sequence[Result], first: int) -> list[Plot]:
    """Those of the first split, and those that only others have; lines are means over the splits."""
    by_title: dict[str, list[Plot]] = {}
    for result in results:
        for plot in result.plots:
            by_title.setdefault(plot.title, []).append(plot)
    out = []
    for title, plots in by_title.items():
        if plots[0].kind == "bars":
            out.append(plots[0])
        elif plots[0].kind == "lines":
            out.append(replace(plots[0], values=plots[0].values | {"series": _merged(plots)}))
        else:
            out.append(replace(plots[0], title=f"{title}; split {first}"))
    return out


def _merged(plots: Sequence[Plot]) -> list[dict[str, Any]]:
    """Series of the same label, point by point: those of one `bin` are averaged, weighted by their count `n`."""
    series: dict[str, list[dict[str, Any]]] = {}
    for plot in plots:
        for line in plot.values["series"]:
            series.setdefault(line["label"], []).append(line)
    out = []
    for label, lines in series.items():
        points: dict[int, list[tuple[float, float, float]]] = {}
        for line in lines:
            numbers = line.get("bin", range(len(line["x"])))
            counts = line.get("n", [1.0] * len(line["x"]))
            for number, x, y, n in zip(numbers, line["x"], line["y"], counts, strict=True):
                points.setdefault(number, []).append((x, y, n))
        merged: dict[str, Any] = {"label": label, "x": [], "y": [], "n": []}
        for number in sorted(points):
            x, y, n = np.array(points[number]).T
            merged["x"].append(float(np.average(x, weights=n)))
            merged["y"].append(float(np.average(y, weights=n)))
            merged["n"].append(float(n.sum()))
        out.append(merged)
    return out
