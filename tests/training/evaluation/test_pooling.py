"""Pooling of splits: means, intervals that shared photos do not narrow, lines merged point by point."""

import numpy as np
import pytest

from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.pooling import pool, pooled
from training.evaluation.result import Plot, Result, Row


def test_a_pooled_figure_is_the_mean_and_its_interval_draws_splits_and_items() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(shift, 1, 40) for shift in (0.0, 1.0, 2.0)]
    found = pooled([intervals.mean_over_items(x, 4_000, seed) for seed, x in enumerate(values)], 4_000, 0)
    by_hand = []
    for _ in range(4_000):
        splits = rng.integers(3, size=3)
        by_hand.append(np.mean([rng.choice(values[k], 40).mean() for k in splits]))
    assert found.value == pytest.approx(np.mean([x.mean() for x in values]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])), abs=0.06)
    assert found.n == 40


def test_the_same_photos_judged_thrice_make_no_narrower_interval() -> None:
    one = intervals.mean_over_items(np.random.default_rng(0).normal(size=100), 500, 0)
    found = pooled([one, one, one], 500, 0)
    assert (found.low, found.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_an_interval_without_samples_is_taken_as_a_normal_one() -> None:
    found = pooled([Estimate(1.0, 0.8, 1.2, 50)] * 2, 5_000, 0)
    assert (found.low, found.high) == (pytest.approx(0.8, abs=0.02), pytest.approx(1.2, abs=0.02))


def test_figures_that_a_split_lacks_are_pooled_from_the_others_and_said() -> None:
    rows = [Row("share", "m", Estimate(v, v, v, 3), group) for v, group in ((0.2, "a"), (0.4, "b"))]
    found = pool([Result(rows, ["same", "one"]), Result(rows[:1], ["same", "two"])], [3, 5], 20, 0)
    assert {r.group: r.estimate.value for r in found.rows} == {"a": pytest.approx(0.2), "b": pytest.approx(0.4)}
    assert found.notes == [
        "1 figures are means of fewer than 2 splits: the others lack the items.",
        "same",
        "split 3: one",
        "split 5: two",
    ]


def test_lines_are_merged_bin_by_bin_and_maps_are_the_first_splits() -> None:
    def result(x: list[float], bins: list[int], n: list[int]) -> Result:
        series = [{"label": "m", "x": x, "y": [2 * v for v in x], "bin": bins, "n": n}]
        lines = Plot("lines", "reliability", {"x": "c", "y": "a", "series": series})
        return Result(plots=[lines, Plot("map", "map", {"points": {}, "classes": []})])

    found = pool([result([0.4, 0.6], [0, 2], [1, 1]), result([0.8], [2], [3])], [7, 8], 5, 0)
    (line,) = found.plots[0].values["series"]
    assert line["x"] == pytest.approx([0.4, 0.75]) and line["y"] == pytest.approx([0.8, 1.5])
    assert found.plots[1].title == "map; split 7"
