"""Uncertainty: scores as defined, zero where they must be, and models that see VICE score as VICE."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.evaluation.worlds import tiny_setting
from training.evaluation.uncertainty import against, brier, calibration_error, entropy_to_agreement, uncertainty

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(3), 4_000)


@given(st.integers(0, 1_000))
def test_brier_is_the_mean_squared_error_over_drawn_outcomes(seed: int) -> None:
    p, q = np.random.default_rng(seed).dirichlet(np.ones(3), (2, 1))
    by_hand = sum(p[0, k] * ((q[0] - np.eye(3)[k]) ** 2).sum() for k in range(3))
    assert brier(p, q)[0] == pytest.approx(by_hand)


def test_people_themselves_are_calibrated_and_have_no_divergence() -> None:
    found = {name: statistic(np.ones(len(P))) for name, statistic in against(P, P).items()}
    assert found["expected calibration error"] == pytest.approx(0, abs=1e-12)
    assert found["KL from VICE"] == pytest.approx(0, abs=1e-9)
    assert found["entropy correlation with VICE"] == pytest.approx(1)


def test_an_overconfident_model_is_off_by_its_overconfidence() -> None:
    sure = np.tile([1.0, 0.0, 0.0], (1000, 1))
    thirds = np.full((1000, 3), 1 / 3)
    assert calibration_error(thirds, sure)(np.ones(1000)) == pytest.approx(2 / 3)
    assert calibration_error(thirds, thirds)(np.ones(1000)) == pytest.approx(0)  # a tie is worth a third


def test_agreement_falls_with_entropy_where_probabilities_are_right() -> None:
    table = entropy_to_agreement(P, P)
    assert len(table["x"]) == 10
    assert all(np.diff(table["x"]) > 0) and all(np.diff(table["y"]) < 0)


def test_the_protocol_ranks_seeing_above_noise(tmp_path: Path) -> None:
    result = uncertainty(tiny_setting(tmp_path, noise=1.0, vice=0.0))
    value = {(r.figure, r.model): r.estimate.value for r in result.rows}
    assert value["entropy correlation with VICE", "vice"] > 0.99
    assert value["temperature", "vice"] == pytest.approx(1, abs=0.05)
    assert value["KL from VICE", "vice - noise"] < 0
    assert {plot.title for plot in result.plots} == {"Reliability", "Entropy to expected agreement"}
