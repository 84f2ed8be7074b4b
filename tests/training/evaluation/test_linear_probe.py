"""The linear probe: a map finds what people see among features that hide it, on objects it was not learned on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.evaluation.worlds import tiny_setting
from training.evaluation import linear_probe as probing
from training.evaluation.linear_probe import in_their_span, linear_probe
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
    assert value["gained by the probe"] == pytest.approx(value["accuracy, probed"] - value["accuracy, as it is"])
    monkeypatch.setattr("training.probe_grid.fit_probe", None)  # fitting again would fail
    assert linear_probe(setting).rows == rows


def test_figures_are_those_of_the_fits_and_differences_are_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "GRID", Grid(penalties=(1e-3, 1e-1), learning_rates=(0.02,), folds=2))
    monkeypatch.setattr(probing, "CONFIG", replace(probing.CONFIG, steps=60, validate_every=20, sigma=0.1))
    found = linear_probe(tiny_setting(tmp_path, clear=0.0, noisy=2.0, same=0.0))
    by = {(row.figure, row.model): row.estimate for row in found.rows}
    lines: dict[str, list[dict[str, float]]] = {}
    for file in (tmp_path / "probes").glob("*/summary.json"):
        cell = json.loads(file.read_text())["cell"]
        all_lines = [json.loads(line) for line in (file.parent / "results.jsonl").read_text().splitlines()]
        lines[file.parent.name] = [line for line in all_lines if line["cell"] == cell]
        assert len(list(file.parent.glob("cell-*.npz"))) == 2  # those of the best cell
    keys = {"accuracy, probed": "accuracy", "accuracy, as it is": "untransformed_accuracy"}
    for figure, key in keys.items():
        means = {
            round(sum(f[key] * f["triplets_validation"] for f in own) / sum(f["triplets_validation"] for f in own), 9)
            for own in lines.values()
        }
        assert {round(by[figure, model].value, 9) for model in ("clear", "noisy")} == means
        change = by[figure, "noisy - clear"]
        assert change.value == pytest.approx(by[figure, "noisy"].value - by[figure, "clear"].value)
        assert (by[figure, "same - clear"].low, by[figure, "same - clear"].high) == (0, 0)


def test_wide_features_are_rotated_without_a_change_of_dot_products() -> None:
    x = np.random.default_rng(0).normal(1.0, 2.0, (7, 50))
    y = in_their_span(x)
    assert y.shape == (7, 7) and np.allclose(y @ y.T, x @ x.T) and abs(y.mean()) < 1e-12
    again = in_their_span(y - y.mean(0))  # whose mean vector is 0 already
    assert np.allclose(again @ again.T, (y - y.mean(0)) @ (y - y.mean(0)).T)


def test_a_wide_model_is_probed_as_the_narrow_one_that_it_is_a_rotation_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "GRID", Grid(penalties=(1e-3,), learning_rates=(0.02,), folds=2))
    monkeypatch.setattr(probing, "CONFIG", replace(probing.CONFIG, steps=200, validate_every=20, sigma=0.1))
    setting = tiny_setting(tmp_path, clear=0.0, wide=0.0)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(60, 60)))[0][:3].astype(np.float32)
    np.save(tmp_path / "models/wide.npy", np.load(tmp_path / "models/wide.npy") @ turn)
    value = {(r.figure, r.model): r.estimate.value for r in linear_probe(setting).rows}
    assert value["accuracy, probed", "wide"] == pytest.approx(value["accuracy, probed", "clear"], abs=0.1)
