import math
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from contract.triplets import (
    KERNELS,
    PAIRS,
    TIE,
    TIE_RULES,
    Kernel,
    TieRule,
    accuracy,
    entropy,
    margin,
    normalized_entropy,
    odd_one_out,
    odd_probabilities,
    pair_log_probabilities,
    pair_probabilities,
    pair_similarities,
    similarity_matrix,
    tie_rate,
)

ORDERS = list(permutations(range(3)))
# Whole numbers are exact in float64: sums in another order stay equal to the last bit.
WHOLE = st.integers(-8, 8).map(float)
SIMILARITY = st.floats(-50, 50, allow_nan=False)
TRIPLE = arrays(np.float64, 3, elements=SIMILARITY)
PROBABILITIES = TRIPLE.map(pair_probabilities)


def pair_position(i: int, j: int) -> int:
    return PAIRS.index((min(i, j), max(i, j)))


# --- similarities -----------------------------------------------------------------------------


def test_pairs_stand_in_the_order_01_02_12() -> None:
    # One-hot sums make each pair's dot product a number of its own: 01 shares the 2, 02 the 3, 12 the 5.
    images = np.array([[2.0, 3.0, 0.0], [1.0, 0.0, 5.0], [0.0, 1.0, 1.0]])
    assert PAIRS == ((0, 1), (0, 2), (1, 2))
    assert pair_similarities(images).tolist() == [2.0, 3.0, 5.0]


def test_hand_worked_dot_products() -> None:
    images = np.array([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]])
    # 1*3 + 2*4 = 11;  1*-5 + 2*6 = 7;  3*-5 + 4*6 = 9
    assert pair_similarities(images, "dot").tolist() == [11.0, 7.0, 9.0]


def test_hand_worked_cosines() -> None:
    images = np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]])
    # 1 is twice 0: cosine 1. 2 is 0 turned by 90 degrees: cosine 0.
    np.testing.assert_allclose(pair_similarities(images, "cosine"), [1.0, 0.0, 0.0], atol=1e-15)
    tilted = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0]])
    # 3 / (1 * 5) = 0.6;  0 / (1 * 2) = 0;  -8 / (5 * 2) = -0.8
    np.testing.assert_allclose(pair_similarities(tilted, "cosine"), [0.6, 0.0, -0.8], atol=1e-15)


def test_hand_worked_correlations() -> None:
    images = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 9.0], [7.0, 5.0, 6.0]])
    # Centred: (-1, 0, 1), (-3, -1, 4), (1, -1, 0) with squared lengths 2, 26, 2.
    # 01: (3 + 4) / sqrt(52);  02: -1 / 2;  12: (-3 + 1) / sqrt(52)
    expected = [7 / math.sqrt(52), -0.5, -2 / math.sqrt(52)]
    np.testing.assert_allclose(pair_similarities(images, "pearson"), expected, atol=1e-15)


@given(arrays(np.float64, (3, 5), elements=WHOLE), st.floats(0.01, 100), st.floats(-100, 100))
def test_cosine_ignores_length_and_pearson_ignores_length_and_offset(
    images: np.ndarray, scale: float, offset: float
) -> None:
    cosine, pearson = pair_similarities(images, "cosine"), pair_similarities(images, "pearson")
    np.testing.assert_allclose(pair_similarities(images * scale, "cosine"), cosine, atol=1e-12)
    np.testing.assert_allclose(pair_similarities(images * scale + offset, "pearson"), pearson, atol=1e-9)
    assert (np.abs(cosine) <= 1 + 1e-12).all() and (np.abs(pearson) <= 1 + 1e-12).all()


@pytest.mark.parametrize("kernel", ["cosine", "pearson"])
def test_a_vector_without_direction_has_similarity_zero_not_nan(kernel: Kernel) -> None:
    images = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0], [2.0, 4.0, 8.0]])
    np.testing.assert_allclose(pair_similarities(images, kernel), [0.0, 0.0, 1.0], atol=1e-15)


@given(st.floats(-1e6, 1e6), st.integers(2, 600), st.sampled_from([np.float32, np.float64]))
def test_a_constant_vector_correlates_zero_with_everything(value: float, d: int, dtype: type) -> None:
    # 0.1 repeated does not average to 0.1 exactly; the rounding noise must not be taken for a pattern.
    ramp = np.arange(d, dtype=dtype)
    images = np.stack([np.full(d, value, dtype), ramp, -ramp])
    np.testing.assert_allclose(pair_similarities(images, "pearson"), [0.0, 0.0, -1.0], atol=1e-5)
    assert pair_similarities(images, "pearson")[0] == 0.0


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_triplet_has_the_same_similarities_bit_for_bit_alone_and_in_any_batch(
    kernel: Kernel, dtype: type, order: str
) -> None:
    # "F" is the memory order that e.g. a projection `(matrix @ x.T).T` leaves behind.
    rng = np.random.default_rng(0)
    for d in (1, 7, 8, 9, 64, 129, 1000):
        alone = rng.standard_normal((40, 3, d)).astype(dtype)
        batch = np.array(alone, order=order)  # type: ignore[call-overload]
        together = pair_similarities(batch, kernel)
        for i in range(40):
            assert pair_similarities(alone[i].copy(), kernel).tobytes() == together[i].tobytes(), d


@given(arrays(np.float64, (3, 4), elements=WHOLE), st.sampled_from(KERNELS))
def test_similarity_matrix_and_pair_similarities_agree(images: np.ndarray, kernel: Kernel) -> None:
    matrix = similarity_matrix(images, images, kernel)
    expected = [matrix[i, j] for i, j in PAIRS]
    np.testing.assert_allclose(pair_similarities(images, kernel), expected, atol=1e-12)


def test_similarity_matrix_has_a_row_per_query_and_a_column_per_candidate() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 2.0]])
    candidates = np.array([[3.0, 4.0], [5.0, 6.0], [0.0, 0.0]])
    assert similarity_matrix(queries, candidates).tolist() == [[3.0, 5.0, 0.0], [8.0, 12.0, 0.0]]
    np.testing.assert_allclose(similarity_matrix(queries, candidates, "cosine")[0], [0.6, 5 / math.sqrt(61), 0.0])


@pytest.mark.parametrize("kernel", ["euclidean", "", "Dot", None])
def test_an_unknown_kernel_is_refused_by_name(kernel: str) -> None:
    images = np.ones((3, 2))
    with pytest.raises(ValueError, match=f"kernel is {kernel!r}"):
        pair_similarities(images, kernel)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"kernel is {kernel!r}"):
        similarity_matrix(images, images, kernel)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 5), (7, 3, 2, 5), (0,)])
def test_vectors_that_are_not_three_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vectors have shape") as caught:
        pair_similarities(np.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (2, 3)), ((2, 3), (3,)), ((1, 2, 3), (2, 3))])
def test_similarity_matrix_refuses_vectors_of_different_sizes(shapes: tuple[tuple[int, ...], ...]) -> None:
    queries, candidates = shapes
    with pytest.raises(ValueError, match="candidates") as caught:
        similarity_matrix(np.zeros(queries), np.zeros(candidates))
    assert str(queries) in str(caught.value) and str(candidates) in str(caught.value)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 2), (0,)])
@pytest.mark.parametrize(
    "function", [pair_log_probabilities, pair_probabilities, odd_probabilities, odd_one_out, entropy, margin]
)
def test_anything_but_three_values_per_triplet_is_refused_with_its_shape(
    function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="has shape") as caught:
        function(np.zeros(shape))
    assert str(shape) in str(caught.value)


# --- probabilities ----------------------------------------------------------------------------


def test_hand_worked_probabilities() -> None:
    # exp(ln 6) : exp(ln 3) : exp(ln 1) = 6 : 3 : 1
    similarities = np.log([6.0, 3.0, 1.0])
    np.testing.assert_allclose(pair_probabilities(similarities), [0.6, 0.3, 0.1], atol=1e-15)
    np.testing.assert_allclose(pair_log_probabilities(similarities), np.log([0.6, 0.3, 0.1]), atol=1e-15)
    # Pair 01 leaves image 2, pair 02 image 1, pair 12 image 0.
    np.testing.assert_allclose(odd_probabilities(similarities), [0.1, 0.3, 0.6], atol=1e-15)


def test_the_temperature_divides() -> None:
    # At T = 1/2 the odds square: 36 : 9 : 1.
    np.testing.assert_allclose(pair_probabilities(np.log([6.0, 3.0, 1.0]), 0.5), np.array([36, 9, 1]) / 46, atol=1e-15)


@given(TRIPLE, st.floats(1e-3, 1e3), SIMILARITY)
def test_probabilities_sum_to_one_and_ignore_a_common_offset(s: np.ndarray, t: float, offset: float) -> None:
    p = pair_probabilities(s, t)
    assert abs(p.sum() - 1) < 1e-12 and (p >= 0).all()
    np.testing.assert_allclose(pair_log_probabilities(s + offset, t), pair_log_probabilities(s, t), atol=1e-9 / t)


@given(TRIPLE, st.floats(1e-2, 1e2))
def test_scaling_similarities_and_temperature_together_changes_nothing(s: np.ndarray, t: float) -> None:
    np.testing.assert_allclose(pair_probabilities(s * t, t), pair_probabilities(s), atol=1e-12)


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_huge_dot_products_give_finite_probabilities_and_finite_losers(size: float) -> None:
    side = math.sqrt(size)
    images = np.array([[side, 0.0], [side, 0.0], [0.0, side]])
    similarities = pair_similarities(images)
    p = pair_probabilities(similarities)
    assert p.tolist() == [1.0, 0.0, 0.0]
    log_p = pair_log_probabilities(similarities)
    # The loser is not merely -inf: its log-probability is what the similarities say.
    np.testing.assert_allclose(log_p, [0.0, -size, -size], rtol=1e-12)


@pytest.mark.parametrize("temperature", [0, 0.0, -1, -1e-9, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [pair_log_probabilities, pair_probabilities, odd_probabilities])
def test_a_temperature_that_is_not_finite_and_positive_is_refused_by_value(
    function: Callable[[np.ndarray, float], np.ndarray], temperature: float
) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature};"):
        function(np.zeros(3), temperature)


# --- permutations -----------------------------------------------------------------------------


@given(arrays(np.float64, (3, 4), elements=WHOLE), st.sampled_from(ORDERS), st.sampled_from(KERNELS))
def test_permuting_images_permutes_probabilities(images: np.ndarray, order: tuple[int, ...], kernel: Kernel) -> None:
    before, after = pair_similarities(images, kernel), pair_similarities(images[list(order)], kernel)
    pairs = [pair_position(order[i], order[j]) for i, j in PAIRS]
    np.testing.assert_allclose(pair_probabilities(after), pair_probabilities(before)[pairs], atol=1e-12)
    np.testing.assert_allclose(odd_probabilities(after), odd_probabilities(before)[list(order)], atol=1e-12)


@given(
    arrays(np.float64, (3, 4), elements=WHOLE),
    st.sampled_from(ORDERS),
    st.sampled_from(["strict", "all-equal", "rounded"]),
)
def test_permuting_images_moves_the_odd_one_out_with_them(
    images: np.ndarray, order: tuple[int, ...], rule: TieRule
) -> None:
    similarities = pair_similarities(images)  # whole numbers: exact, so ties stay ties
    before = int(odd_one_out(similarities, rule))
    after = int(odd_one_out(pair_similarities(images[list(order)]), rule))
    if rule == "all-equal" and (np.sort(similarities)[1:] == similarities.max()).all():
        return  # two equal winners: this rule takes the first, so order decides
    assert (TIE if after == TIE else order[after]) == before


@pytest.mark.parametrize("order", ORDERS)
def test_the_image_left_out_of_the_most_similar_pair_is_odd(order: tuple[int, ...]) -> None:
    animals = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])  # two cats and a car
    assert order[int(odd_one_out(pair_similarities(animals[list(order)])))] == 2


# --- ties -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("similarities", "rule", "odd"),
    [
        ((0.5, 0.1, 0.1), "all-equal", 2),
        ((0.5, 0.1, 0.1), "rounded", TIE),
        ((0.5, 0.1, 0.1), "strict", 2),
        ((0.5, 0.1, 0.1), "argmax", 2),
        ((0.5, 0.5, 0.1), "all-equal", 2),
        ((0.5, 0.5, 0.1), "rounded", TIE),
        ((0.5, 0.5, 0.1), "strict", TIE),
        ((0.5, 0.5, 0.1), "argmax", 2),
        ((0.001, 0.0, -0.001), "all-equal", 2),
        ((0.001, 0.0, -0.001), "rounded", TIE),
        ((0.001, 0.0, -0.001), "strict", 2),
        ((0.001, 0.0, -0.001), "argmax", 2),
        ((0.1, 0.1, 0.1), "all-equal", TIE),
        ((0.1, 0.1, 0.1), "rounded", TIE),
        ((0.1, 0.1, 0.1), "strict", TIE),
        ((0.1, 0.1, 0.1), "argmax", 2),
        ((1.0, 0.5, 0.0), "rounded", 2),
        ((0.1, 0.5, 0.1), "rounded", TIE),
        ((0.1, 0.1, 0.5), "rounded", TIE),
        ((0.1, 0.5, 0.5), "strict", TIE),
        ((0.5, 0.1, 0.5), "strict", TIE),
    ],
)
def test_each_tie_rule_names_its_odd_one_out(similarities: tuple[float, ...], rule: TieRule, odd: int) -> None:
    s = np.array(similarities)
    assert int(odd_one_out(s, rule)) == odd
    assert accuracy(s[None], np.array([2]), rule) == (1.0 if odd == 2 else 0.0)
    assert tie_rate(s[None], rule) == (1.0 if odd == TIE else 0.0)


def test_strict_is_the_rule_where_none_is_named() -> None:
    tie = np.array([[0.5, 0.5, 0.1]])
    assert odd_one_out(tie).tolist() == odd_one_out(tie, "strict").tolist() == [TIE]
    assert accuracy(tie, np.array([2])) == 0.0 and tie_rate(tie) == 1.0


@given(TRIPLE)
def test_strict_answers_exactly_when_one_similarity_is_larger_than_both_others(s: np.ndarray) -> None:
    winners = [k for k in range(3) if all(s[k] > s[other] for other in range(3) if other != k)]
    assert int(odd_one_out(s, "strict")) == (2 - winners[0] if winners else TIE)


def test_strict_compares_without_rounding() -> None:
    assert int(odd_one_out(np.array([0.1, np.nextafter(0.1, 1), 0.1]))) == 1


def test_similarities_that_are_not_numbers_name_no_odd_one_out() -> None:
    # NaN is larger than nothing: a broken model must score 0, not the 33 % of a guess.
    broken = np.array([[np.nan, np.nan, np.nan], [np.nan, 0.2, 0.1], [0.1, np.nan, 0.2]])
    assert odd_one_out(broken, "strict").tolist() == [TIE, TIE, TIE]


def test_an_unknown_tie_rule_is_refused_by_name() -> None:
    assert get_args(TieRule) == TIE_RULES
    with pytest.raises(ValueError, match="tie rule is 'lenient'"):
        odd_one_out(np.zeros(3), "lenient")  # type: ignore[arg-type]


# --- entropy and margin -----------------------------------------------------------------------


def test_entropy_is_zero_when_certain_and_ln_3_when_uniform() -> None:
    p = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(entropy(p), [0.0, math.log(3), math.log(2)], atol=1e-15)
    np.testing.assert_allclose(normalized_entropy(p), [0.0, 1.0, math.log(2) / math.log(3)], atol=1e-15)
    assert math.copysign(1, entropy(p)[0]) == 1  # 0, not -0


@given(PROBABILITIES)
def test_normalized_entropy_lies_between_0_and_1(p: np.ndarray) -> None:
    assert 0 <= normalized_entropy(p) <= 1 + 1e-12
    assert entropy(p) == pytest.approx(sum(-x * math.log(x) for x in p if x > 0), abs=1e-12)


@given(arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
def test_margin_is_the_largest_minus_the_second_of_the_sorted_values(p: np.ndarray) -> None:
    ordered = np.sort(p, axis=-1)
    assert margin(p).tolist() == (ordered[:, 2] - ordered[:, 1]).tolist()


# --- accuracy ---------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_answers_and_a_tie_is_wrong() -> None:
    s = np.array([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    assert accuracy(s, np.array([2, 1, 2, 2])) == 0.5  # right, right, wrong, tie
    assert accuracy(s, np.array([2, 1, 2, 2]), "argmax") == 0.75
    assert tie_rate(s) == 0.25


def test_a_constant_embedding_scores_zero_and_ties_always() -> None:
    s = pair_similarities(np.ones((7, 3, 5)))
    odd = np.arange(7) % 3
    assert (accuracy(s, odd), tie_rate(s)) == (0.0, 1.0)


@pytest.mark.parametrize("odd", [[], [0], [0, 1, 2], [[0], [1]], [[0, 1], [0, 1]]])
def test_accuracy_refuses_choices_that_do_not_match_the_triplets(odd: list[int]) -> None:
    with pytest.raises(ValueError, match="choices"):
        accuracy(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array(odd, int))


def test_accuracy_and_tie_rate_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="n > 0"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="no triplets"):
        tie_rate(np.zeros((0, 3)))


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3), (5, 2)])
def test_tie_rate_refuses_anything_but_a_list_of_triplets(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape|expected"):
        tie_rate(np.zeros(shape))


@pytest.mark.parametrize("position", [-1, 3])
def test_accuracy_refuses_a_position_outside_the_triplet(position: int) -> None:
    with pytest.raises(ValueError, match="outside 0, 1, 2"):
        accuracy(np.zeros((2, 3)), np.array([0, position]))


# --- imports ----------------------------------------------------------------------------------


def test_importing_contract_loads_neither_torch_nor_another_room() -> None:
    program = (
        "import sys, contract.bundle, contract.pixels, contract.triplets\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    unwanted = ["torch", "onnx", "onnxruntime", "scipy", "fastapi", "pydantic", "app", "training", "export"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *unwanted], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
