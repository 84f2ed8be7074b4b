"""The linear probe: a map finds what people see among features that hide it, on objects it was not learned on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.evaluation.worlds import tiny_setting
from training.evaluation import linear_probe as probing
from training.evaluation.linear_probe import linear_probe
from training.probe_grid import Grid


def test_a_map_finds_what_is_hidden_and_what_is_done_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "GRID", Grid(penalties=(1e-3,), learning_rates=(0.02,), folds=2))
    monkeypatch.setattr(probing, "CONFIG", replace(probing.CONFIG, steps=100, validate_every=50, sigma=0.1))
    setting = tiny_setting(tmp_path, hidden=0.0)
    clean = np.load(tmp_path / "models/hidden.npy")
    loud = np.random.default_rng(0).normal(size=(len(clean), 3)) * 20
    np.save(tmp_path / "models/hidden.npy", np.hstack([clean, loud]).astype(np.float32))
    rows = linear_probe(setting).rows
    value = {row.figure: row.estimate.value for row in rows}
    assert value["accuracy, probed"] > value["accuracy, as it is"] + 0.1
    monkeypatch.setattr("training.probe_grid.fit_probe", None)  # fitting again would fail
    assert linear_probe(setting).rows == rows
