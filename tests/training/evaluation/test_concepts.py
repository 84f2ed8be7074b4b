"""Triplets of photos: the two ways of computing similarities are one, and photos drawn are of their concept."""

import numpy as np
import pytest

from contract.triplets import KERNELS, Kernel, pair_similarities
from training.evaluation import concepts
from training.evaluation.concepts import similarities

X = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
ROWS = np.random.default_rng(1).permuted(np.tile(np.arange(30), (200, 1)), axis=1)[:, :3]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gram", [True, False])
def test_similarities_are_those_of_the_contract(kernel: Kernel, gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "LARGEST_GRAM", 100 if gram else 0)
    monkeypatch.setattr(concepts, "CHUNK_BYTES", 1)
    assert np.allclose(similarities(X, ROWS, kernel), pair_similarities(X[ROWS].astype(np.float64), kernel))
