from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from contract.triplets import (
    KERNELS,
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
    similarities_at,
    similarity_matrix,
    tie_rate,
)

# Whole numbers, so that zero vectors, constant vectors and ties come up often.
WHOLE = st.integers(-4, 4).map(float)
TRIPLETS = arrays(np.float64, (5, 3, 4), elements=WHOLE)
SIMILARITIES = arrays(np.float64, (6, 3), elements=WHOLE)


def assert_same_on_torch(function: Callable[..., Any], array: np.ndarray, *args: Any) -> None:
    expected, given_back = function(array, *args), function(torch.from_numpy(array), *args)
    assert isinstance(given_back, torch.Tensor) and not isinstance(expected, torch.Tensor)
    assert tuple(given_back.shape) == expected.shape
    np.testing.assert_allclose(given_back.numpy(), expected, atol=1e-12, rtol=1e-12)


@settings(deadline=None)
@given(TRIPLETS, st.sampled_from(KERNELS))
def test_similarities_are_the_same_on_torch(triplets: np.ndarray, kernel: Kernel) -> None:
    assert_same_on_torch(pair_similarities, triplets, kernel)
    assert_same_on_torch(lambda x: similarity_matrix(x[0], x[1], kernel), triplets)


@settings(deadline=None)
@given(SIMILARITIES, st.floats(0.01, 100))
def test_probabilities_are_the_same_on_torch(similarities: np.ndarray, temperature: float) -> None:
    for function in (pair_log_probabilities, pair_probabilities, odd_probabilities):
        assert_same_on_torch(function, similarities, temperature)


@settings(deadline=None)
@given(SIMILARITIES)
def test_entropy_and_margin_are_the_same_on_torch(similarities: np.ndarray) -> None:
    for function in (entropy, normalized_entropy, margin):
        assert_same_on_torch(function, pair_probabilities(similarities, 0.01))  # 0.01: many exact zeros


@settings(deadline=None)
@given(SIMILARITIES, st.sampled_from(TIE_RULES))
def test_odd_one_out_and_scores_are_the_same_on_torch(similarities: np.ndarray, rule: TieRule) -> None:
    assert_same_on_torch(odd_one_out, similarities, rule)
    odd = np.arange(len(similarities)) % 3
    tensor = torch.from_numpy(similarities)
    assert accuracy(tensor, torch.from_numpy(odd), rule) == accuracy(similarities, odd, rule)
    assert tie_rate(tensor, rule) == tie_rate(similarities, rule)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_of_the_log_probabilities_is_right(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pair_log_probabilities(pair_similarities(x, kernel), 0.7), images)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_zero_vectors_constant_vectors_and_ties(kernel: Kernel, dtype: torch.dtype) -> None:
    zero_and_constant = [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1.0, 2.0, 4.0]]
    all_zero, all_equal = [[0.0] * 3] * 3, [[1.0, 2.0, 4.0]] * 3
    images = torch.tensor([zero_and_constant, all_zero, all_equal], dtype=dtype, requires_grad=True)
    p = pair_probabilities(pair_similarities(images, kernel), 0.1)
    (p.sum() + entropy(p).sum() + margin(p).sum()).backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()


def test_the_gradient_of_entropy_is_finite_where_a_probability_is_zero() -> None:
    similarities = torch.tensor([[0.0, -1e4, -1e5]], requires_grad=True)
    entropy(pair_probabilities(similarities)).sum().backward()
    assert similarities.grad is not None and torch.isfinite(similarities.grad).all()


def test_the_gradient_of_a_tie_pushes_all_winners_alike() -> None:
    similarities = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pair_log_probabilities(similarities)[0].backward()
    # d log p0 / d s = (1 - 1/3, -1/3, -1/3)
    torch.testing.assert_close(similarities.grad, torch.tensor([2 / 3, -1 / 3, -1 / 3], dtype=torch.float64))


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_huge_dot_products_stay_finite_on_torch(size: float) -> None:
    similarities = torch.tensor([size, size / 2, 0.0], dtype=torch.float64, requires_grad=True)
    log_p = pair_log_probabilities(similarities)
    np.testing.assert_allclose(log_p.detach().numpy(), [0.0, -size / 2, -size])
    log_p.sum().backward()
    assert similarities.grad is not None and torch.isfinite(similarities.grad).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_triplet_has_the_same_similarities_bit_for_bit_alone_and_in_a_batch_of_tensors(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    for d in (1, 7, 64, 129, 1000):
        batch = torch.randn(40, 3, d, generator=generator)
        together = pair_similarities(batch, kernel)
        for i in range(40):
            assert torch.equal(pair_similarities(batch[i].clone(), kernel), together[i]), d


def test_single_precision_stays_single_and_the_device_stays() -> None:
    images = torch.ones(2, 3, 4)
    out = pair_probabilities(pair_similarities(images, "pearson"))
    assert (out.dtype, out.device) == (images.dtype, images.device)
    assert odd_one_out(out).tolist() == [-1, -1]


@pytest.mark.parametrize("function", [pair_probabilities, entropy, odd_one_out])
def test_wrong_shapes_of_tensors_are_refused_with_their_shape(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        function(torch.zeros(3, 2))


def test_similarities_read_from_a_matrix_are_those_of_the_vectors() -> None:
    vectors = torch.randn(7, 4, dtype=torch.float64)
    index = torch.tensor([[0, 1, 2], [6, 3, 5], [2, 0, 1]])
    got = similarities_at(vectors @ vectors.T, index)
    torch.testing.assert_close(got, pair_similarities(vectors[index]))
    numpy = similarities_at((vectors @ vectors.T).numpy(), index.numpy())
    np.testing.assert_array_equal(numpy, got.numpy())
