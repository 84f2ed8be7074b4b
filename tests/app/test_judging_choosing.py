"""Which triplet is asked next."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.judging.choosing import PART, WHOLE, Chooser, NoneLeft, kinds
from app.judging.study import Study
from contract import triplets
from contract.manifest import Space

SPACE = Space(
    size=4, normalized=False, similarity="dot", temperature=1.0, calibrated=True, calibrated_on="", fingerprint=""
)


def a_study(**fields: Any) -> Study:
    return Study(**{"photos": Path("photos"), "data": Path("data"), "consent": "x" * 20, "repeats": 0.0} | fields)


def chooser(n: int = 40, **fields: Any) -> Chooser:
    vectors = np.random.default_rng(0).normal(size=(n, 4)) * 2
    return Chooser(np.arange(n) * 3 + 5, vectors, SPACE, a_study(**fields))  # numbers with gaps, as after removals


def draws(made: Chooser, n: int = 100) -> list[Any]:
    return [made.main(np.random.default_rng(seed), Counter(), set()) for seed in range(n)]


def test_the_least_sure_are_asked_and_more_candidates_are_less_sure() -> None:
    mean = {k: np.mean([c.entropy for c in draws(chooser(explore=0.0, candidates=k))]) for k in (1, 10, 200)}
    random = np.mean([c.entropy for c in draws(chooser(explore=1.0))])
    assert mean[200] > mean[10] > mean[1] + 0.1
    assert abs(mean[1] - random) < 0.15
    assert mean[200] > 1.0, "of 200 candidates one is nearly even"


def test_what_is_stored_is_the_models_own_probability_of_what_is_shown() -> None:
    made = chooser()
    for chosen in draws(made, 20):
        rows = (np.array(chosen.items) - 5) // 3
        sims = triplets.pair_similarities(made._vectors[rows], "dot")
        assert chosen.probabilities == pytest.approx(triplets.odd_probabilities(sims).tolist())
        assert chosen.entropy == pytest.approx(float(triplets.entropy(np.array(chosen.probabilities))))
        assert set(chosen.items) <= set(made.items.tolist()) and len(set(chosen.items)) == 3


def test_every_order_comes_as_often_and_every_seed_again_the_same() -> None:
    made = chooser(n=3, explore=1.0)
    seen = Counter(chosen.items for chosen in draws(made, 600))
    assert len(seen) == 6 and min(seen.values()) > 65
    assert draws(made, 5) == draws(chooser(n=3, explore=1.0), 5)


def test_shares_of_the_study_are_kept() -> None:
    made = chooser(repeats=0.3, explore=0.5)
    judged = Counter({(5, 8, 11): 1, (5, 8, 14): 4, (5, 8, 17): 5})
    found = [made.main(np.random.default_rng(seed), judged, set()) for seed in range(300)]
    sources = Counter(chosen.source for chosen in found)
    assert sources == pytest.approx({"repeat": 90, "explore": 105, "unsure": 105}, abs=35)
    assert {tuple(sorted(c.items)) for c in found if c.source == "repeat"} == {(5, 8, 11), (5, 8, 14)}


def test_nobody_is_asked_a_triplet_twice_and_no_triplet_more_often_than_wanted() -> None:
    made = chooser(n=5, responses=2)
    judged: Counter[Any] = Counter()
    for _ in range(2):
        seen: set[Any] = set()
        for _ in range(10):  # all triplets of five photos
            key = tuple(sorted(made.main(np.random.default_rng(len(seen)), judged, seen).items))
            assert key not in seen
            seen.add(key)
            judged[key] += 1
    assert set(judged.values()) == {2}
    with pytest.raises(NoneLeft, match="2 times"):
        made.main(np.random.default_rng(0), judged, set())


def test_an_obvious_trial_shows_a_photo_twice_and_one_that_is_unlike_it() -> None:
    vectors = np.repeat(np.eye(4), 5, axis=0) + 0.01
    made = Chooser(np.arange(20), vectors, SPACE, a_study())
    for seed in range(50):
        chosen = made.obvious(np.random.default_rng(seed))
        odd = chosen.items[chosen.expected]
        twice = {(item, view) for item, view in zip(chosen.items, chosen.views, strict=True) if item != odd}
        (item,) = {item for item, _ in twice}
        assert twice == {(item, WHOLE), (item, PART)} and item // 5 != odd // 5
    assert Counter(made.obvious(np.random.default_rng(s)).expected for s in range(300)).keys() == {0, 1, 2}


def test_catch_trials_are_spread_and_come_on_top() -> None:
    plan = kinds(a_study(trials=95, catch=0.05, practice=2), seed=7)
    assert Counter(plan) == {"practice": 2, "main": 95, "catch": 5}
    places = [i - 2 for i, kind in enumerate(plan) if kind == "catch"]
    assert [place // 20 for place in places] == [0, 1, 2, 3, 4], "one in each fifth"
    assert kinds(a_study(), 1) == kinds(a_study(), 1) != kinds(a_study(), 2)


def test_two_photos_are_too_few() -> None:
    with pytest.raises(NoneLeft, match="needs three"):
        chooser(n=2)
