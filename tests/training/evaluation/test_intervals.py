"""Bootstrap: its interval holds the truth about as often as it says, and weighting equals drawing."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from training.evaluation import intervals


def test_the_interval_of_a_mean_covers_it_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        e = intervals.mean_over_items(rng.normal(1.0, 1.0, 60), 200, seed)
        covered += e.low <= 1.0 <= e.high
    assert 180 <= covered <= 199


def test_the_same_seed_draws_the_same_items() -> None:
    x = np.random.default_rng(0).random(50)
    a, b = (intervals.mean_over_items(x + shift, 50, 3) for shift in (0.0, 10.0))
    assert (b.low - a.low, b.high - a.high) == (pytest.approx(10), pytest.approx(10))


def test_weights_are_how_often_the_three_concepts_were_drawn_together() -> None:
    concepts = np.array([[0, 1, 2], [3, 4, 5], [0, 4, 2], [5, 1, 3]])
    rng = np.random.default_rng(7)
    for weights in intervals.concept_weights(concepts, 5, 7):
        by_hand = [0] * 4
        while not any(by_hand):
            drawn = rng.integers(6, size=6).tolist()
            together = [set(three) for three in combinations(drawn, 3)]
            by_hand = [together.count(set(row)) for row in concepts.tolist()]
        assert weights.tolist() == by_hand


def test_correlation_of_ranks_is_spearman_where_no_weight_differs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 200))
    statistic = intervals.weighted_correlation(rankdata(x), rankdata(y))
    assert statistic(np.ones(200)) == pytest.approx(spearmanr(x, y).statistic)


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="no item"):
        intervals.mean_over_items(np.zeros(0), 5, 0)


def test_spearman_is_scipys_and_its_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(40), rng.random(40)
    z, holed = x + 0.3 * rng.random(40), np.where(np.arange(40) < 5, np.nan, y)
    a, b = (intervals.spearman(one, x, 50, 1) for one in (z, y))
    assert a is not None and b is not None
    assert a.value == pytest.approx(spearmanr(z, x).statistic) and a.low < a.value < a.high
    assert intervals.difference(a, b).value == pytest.approx(a.value - b.value)
    assert (intervals.difference(a, a).low, intervals.difference(a, a).high) == (0, 0)
    left = intervals.spearman(holed, x, 5, 1)
    assert left is not None and (left.n, left.value) == (35, pytest.approx(spearmanr(y[5:], x[5:]).statistic))
    assert intervals.spearman(np.ones(9), rng.random(9), 5, 1) is None
    assert intervals.spearman(np.array([1.0, np.nan, 2.0]), np.ones(3), 5, 1) is None
