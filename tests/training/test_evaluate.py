"""Figures: each is 1 or 0 where it must be, at chance on noise, and as worked by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr

from contract import triplets
from contract.triplets import similarities_at
from training import evaluate
from training.evaluate import Judged, Matrix
from training.feeds import random_triplets

EVERY_TRIPLET = np.array([(i, j, k) for i in range(6) for j in range(6) for k in range(6) if len({i, j, k}) == 3])


def a_gram(seed: int, n: int = 6) -> Matrix:
    vectors = np.random.default_rng(seed).exponential(1, (n, 4))
    return np.asarray(vectors @ vectors.T)


def judged_of(n: int, noise: float, seed: int) -> Judged:
    """`n` concepts seen through symmetric noise, three draws."""
    rng = np.random.default_rng(seed)
    vice = a_gram(seed, n)
    grams = [vice + noise * (e + e.T) for e in rng.normal(size=(3, n, n))]
    return Judged(np.stack(grams), np.stack([np.corrcoef(g) for g in grams]), vice)


def test_agreement_is_one_for_vice_itself_and_does_not_change_with_scale() -> None:
    vice = a_gram(0)
    for model in (vice, 100 * vice, vice - 50):
        assert evaluate.agreement(model, vice, vice, EVERY_TRIPLET) == 1


def test_agreement_of_noise_is_a_third() -> None:
    judged = [judged_of(60, noise=1e6, seed=seed) for seed in range(4)]
    assert evaluate.estimate(judged, evaluate.agreement, repetitions=1, seed=0).value == pytest.approx(1 / 3, abs=0.02)


def test_ties_of_the_model_are_wrong_and_ties_of_vice_fall_to_the_first_pair() -> None:
    constant, vice = np.ones((6, 6)), a_gram(0)
    assert evaluate.agreement(constant, vice, vice, EVERY_TRIPLET) == 0
    first_pair_wins = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    assert evaluate.agreement(first_pair_wins, vice, constant[:3, :3], np.array([[0, 1, 2]])) == 1


def test_agreement_counts_as_worked_by_hand() -> None:
    vice = np.array([[0, 3, 1], [3, 0, 2], [1, 2, 0]], float)  # pair 01 is most similar
    model = np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0]], float)  # pair 02
    other = np.array([[0, 9, 8], [9, 0, 7], [8, 7, 0]], float)
    index = np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
    assert [evaluate.agreement(m, m, vice, index) for m in (model, other)] == [0, 1]


def test_gathered_similarities_stand_in_the_contracts_order() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    expected = triplets.pair_similarities(x[EVERY_TRIPLET])
    np.testing.assert_allclose(similarities_at(x @ x.T, EVERY_TRIPLET), expected, atol=1e-12)


def test_sampled_triplets_hold_three_different_numbers_and_reach_all_of_them() -> None:
    index = random_triplets(6, 5000, np.random.default_rng(0))
    assert 0.4 * 5000 < len(index) < 0.7 * 5000  # 6 * 5 * 4 of 6 ** 3 are different: 56 %
    assert np.array_equal(np.unique(index, axis=0), EVERY_TRIPLET)


def test_rsa_is_spearmans_correlation_of_the_upper_triangles() -> None:
    pearson = np.array([[1, 0.1, 0.5], [0.1, 1, 0.4], [0.5, 0.4, 1]])
    vice = np.array([[9, 1, 3], [1, 9, 2], [3, 2, 9]], float)
    assert evaluate.rsa(pearson, pearson, vice, EVERY_TRIPLET) == pytest.approx(1)  # ranks 1 3 2 and 1 3 2
    a, b = np.corrcoef(a_gram(1)), a_gram(2)
    upper = np.triu_indices(6, 1)
    assert evaluate.rsa(b, a, b, EVERY_TRIPLET) == pytest.approx(spearmanr(a[upper], b[upper]).statistic)


def test_rsa_leaves_out_pairs_of_a_concept_with_itself() -> None:
    pearson, vice = np.corrcoef(a_gram(1)), a_gram(2)
    resampled = np.array([0, 1, 2, 3, 4, 5, 5, 5])
    grid = np.ix_(resampled, resampled)
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8) if resampled[i] != resampled[j]]
    i, j = resampled[np.array(pairs).T]
    expected = spearmanr(pearson[i, j], vice[i, j]).statistic
    assert evaluate.rsa(vice, pearson[grid], vice[grid], EVERY_TRIPLET) == pytest.approx(expected)


def test_vices_own_entropy_correlates_fully_and_has_no_divergence() -> None:
    vice = a_gram(3)
    at = (vice, vice, vice, EVERY_TRIPLET)
    assert evaluate.entropy_correlation(1.0)(*at) == pytest.approx(1)
    assert evaluate.divergence(1.0)(*at) == 0
    assert evaluate.divergence(2.0)(*at) > 0.01
    assert evaluate.divergence(2.0)(2 * vice, vice, vice, EVERY_TRIPLET) == pytest.approx(0, abs=1e-12)


def test_divergence_is_the_one_worked_by_hand() -> None:
    # VICE chooses 0.6, 0.3, 0.1 (dot products ln 6, ln 3, ln 1); the model is undecided.
    vice, constant = np.zeros((3, 3)), np.zeros((3, 3))
    vice[0, 1], vice[0, 2] = np.log(6), np.log(3)
    expected = sum(p * np.log(3 * p) for p in (0.6, 0.3, 0.1))
    got = evaluate.divergence(1.0)(constant, constant, vice, np.array([[0, 1, 2]]))
    assert got == pytest.approx(expected)


def test_judging_takes_one_photo_of_each_concept_and_the_kernels_asked_for() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    rows_of, vice = [np.array([0, 1]), np.array([4]), np.array([2, 3])], np.eye(3)
    judged = evaluate.judge_split(vectors, rows_of, vice, "cosine", draws=40, seed=0)
    assert judged.model.shape == judged.pearson.shape == (40, 3, 3)
    for kernel, grams in (("cosine", judged.model), ("pearson", judged.pearson)):
        possible = {
            round(float(triplets.similarity_matrix(vectors[[a]], vectors[[b]], kernel)[0, 0]), 5)
            for a in rows_of[0]
            for b in rows_of[2]
        }
        assert {round(float(gram[0, 2]), 5) for gram in grams} == possible
    assert np.array_equal(judged.vice, vice @ vice.T)


def test_an_interval_holds_its_value_and_shrinks_with_more_concepts() -> None:
    few, many = (
        evaluate.estimate([judged_of(n, noise=1, seed=s) for s in range(3)], evaluate.agreement, repetitions=60, seed=0)
        for n in (8, 60)
    )
    for estimate in (few, many):
        assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert many.high - many.low < (few.high - few.low) / 1.5
    assert (few.n, many.n) == (24, 180)


def test_an_interval_widens_where_the_splits_disagree() -> None:
    vice, constant = a_gram(0, 12), np.ones((12, 12))
    right, wrong = (Judged(model[None], model[None], vice) for model in (vice, constant))
    got = evaluate.estimate([right, wrong] * 2, evaluate.agreement, repetitions=60, seed=0)
    assert got.value == 0.5
    assert got.low < 0.3 and got.high > 0.7  # concepts make no difference here, splits do


def test_every_draw_of_photos_counts() -> None:
    vice, constant = a_gram(0, 12), np.ones((12, 12))
    judged = Judged(np.stack([vice, constant]), np.stack([vice, constant]), vice)
    assert 0.2 < evaluate.estimate([judged] * 20, evaluate.agreement, repetitions=1, seed=0).value < 0.8


def test_the_same_seed_gives_the_same_estimate() -> None:
    judged = [judged_of(12, noise=1, seed=0)]
    first, again, other = (evaluate.estimate(judged, evaluate.rsa, repetitions=9, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 100), st.floats(0.05, 20), st.integers(0, 2**32 - 1))
def test_a_known_temperature_is_recovered(scale: float, sharpness: float, seed: int) -> None:
    sims = scale * np.random.default_rng(seed).normal(size=(300, 3)) + 10 * scale
    temperature = scale / sharpness
    fitted = evaluate.fit_temperature(sims, triplets.pair_log_probabilities(sims, temperature))
    assert fitted == pytest.approx(temperature, rel=0.02)


def test_a_temperature_is_recovered_from_single_choices() -> None:
    rng = np.random.default_rng(0)
    sims = rng.normal(size=(60_000, 3))
    chosen = (rng.random((60_000, 1)) > triplets.pair_probabilities(sims, 0.7).cumsum(1)[:, :2]).sum(1)
    log_p = np.where(np.arange(3) == chosen[:, None], 0.0, -1e9)
    assert evaluate.fit_temperature(sims, log_p) == pytest.approx(0.7, rel=0.02)


def test_equal_similarities_have_no_temperature() -> None:
    with pytest.raises(ValueError, match="all similarities are equal; there is no temperature to fit"):
        evaluate.fit_temperature(np.full((4, 3), 0.25), np.log(np.full((4, 3), 1 / 3)))


def test_pooling_takes_triplets_from_every_split_and_draw_and_pairs_them_with_vice() -> None:
    judged = [Judged(np.stack([a_gram(s), a_gram(s)]), np.stack([a_gram(s)] * 2), a_gram(s)) for s in (1, 2)]
    sims, log_p = evaluate.pooled(judged, per_split=1000, seed=0)
    np.testing.assert_allclose(log_p, triplets.pair_log_probabilities(sims))
    assert len(sims) == len(log_p) > 2 * 400
    for gram in (a_gram(1), a_gram(2)):
        assert np.isin(sims[:, 0], gram).mean() > 0.3  # both splits are there


def test_a_proportion_has_the_wald_interval_worked_by_hand() -> None:
    # p = 0.2, n = 100: 1.96 * sqrt(0.2 * 0.8 / 100) = 1.96 * 0.04 = 0.0784
    got = evaluate.proportion(20, 100)
    assert (got.value, got.n) == (0.2, 100)
    assert (got.low, got.high) == pytest.approx((0.1216, 0.2784))
    assert evaluate.proportion(0, 5) == evaluate.Estimate(0, 0, 0, 5)
    assert evaluate.proportion(99, 100).high == 1


def test_a_mean_has_the_normal_interval_worked_by_hand() -> None:
    # Mean 2, standard deviation 1, n = 4: half-width 1.96 / 2 = 0.98
    got = evaluate.mean(np.array([1.0, 3.0, 1.0, 3.0]))
    assert (got.value, got.n) == (2, 4)
    assert (got.low, got.high) == pytest.approx((1.02, 2.98))


def test_an_average_over_splits_is_no_narrower_than_one_split_and_than_what_differs_between_them() -> None:
    alike = evaluate.average([evaluate.Estimate(0.4, 0.3, 0.5, 10), evaluate.Estimate(0.4, 0.2, 0.6, 13)])
    assert (alike.value, alike.low, alike.high) == pytest.approx((0.4, 0.25, 0.55))
    assert alike.n in (11, 12)
    apart = evaluate.average([evaluate.Estimate(0.2, 0.1, 0.3, 10), evaluate.Estimate(0.6, 0.5, 0.7, 10)])
    assert (apart.low, apart.high) == pytest.approx((0.4 - 1.96 * 0.2, 0.4 + 1.96 * 0.2))


def test_a_photo_is_not_its_own_neighbour() -> None:
    at = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    every = np.ones(4, bool)
    assert evaluate.nearest_neighbour(at, ["a", "b", "a", "b"], every).value == 0
    assert evaluate.nearest_neighbour(at, ["a", "a", "b", "b"], every).value == 1


def test_only_queries_are_classified_but_all_photos_are_neighbours() -> None:
    at = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    got = evaluate.nearest_neighbour(at, ["a", "a", "b", "c"], np.array([True, False, True, False]))
    assert (got.value, got.n) == (0.5, 2)  # photo 0 finds photo 1, which is no query; photo 2 finds c


def test_neighbours_are_found_by_direction_not_by_length() -> None:
    at = np.array([[1, 0], [9, 0.5], [0.9, 0.3]], np.float32)
    assert evaluate.nearest_neighbour(at, ["a", "a", "b"], np.array([True, False, False])).value == 1


@pytest.mark.parametrize("query", [np.zeros(2, bool), np.zeros(0, bool)])
def test_no_photo_to_classify_is_refused_with_a_message(query: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match="photo"):
        evaluate.nearest_neighbour(np.ones((len(query), 2), np.float32), ["a"] * len(query), query)


@pytest.mark.parametrize("statistic", [evaluate.agreement, evaluate.rsa, evaluate.divergence(1.0)])
def test_an_interval_of_four_concepts_is_still_a_number(statistic: Callable[..., Any]) -> None:
    estimate = evaluate.estimate([judged_of(4, noise=1, seed=0)], statistic, repetitions=60, seed=0)
    assert np.isfinite([estimate.low, estimate.value, estimate.high]).all()
