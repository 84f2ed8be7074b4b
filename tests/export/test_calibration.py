"""Temperature, errors and table: right where the truth is known, and held out."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import triplets
from contract.bundle import read_bundle
from export.calibration import calibrate, of_run, read_judgments
from export.card import card
from tests.export.conftest import Run
from tests.export.test_package import main_with
from tests.training.tiny import write_photos, write_rows, write_tiny_data

RNG = np.random.default_rng(0)
SIMS = RNG.normal(size=(6000, 3)) * 5
HALF = np.arange(6000) % 2


def test_people_who_follow_the_model_give_its_temperature_and_no_error() -> None:
    chosen = triplets.pair_probabilities(SIMS, 2.5)
    got = calibrate(SIMS, chosen, HALF, "themselves")
    assert got["temperature"] == pytest.approx(2.5, rel=1e-3)
    assert got["expected_calibration_error"] < 1e-3
    assert got["negative_log_likelihood"] == pytest.approx(float(triplets.entropy(chosen).mean()), rel=1e-3)
    assert got["brier"] == pytest.approx(float((1 - (chosen**2).sum(1)).mean()), rel=1e-3)
    assert got["agreement"] == pytest.approx(float(chosen.max(1).mean()))


def test_single_choices_give_nearly_what_their_probabilities_give() -> None:
    q = triplets.pair_probabilities(SIMS, 2.5)
    choice = (q.cumsum(1) < RNG.random((6000, 1))).sum(1)
    given, drawn = (calibrate(SIMS, chosen, HALF, "") for chosen in (q, np.eye(3)[choice]))
    for name in ("temperature", "brier", "agreement", "negative_log_likelihood"):
        assert drawn[name] == pytest.approx(given[name], rel=0.08), name
    assert drawn["expected_calibration_error"] < 0.05


def test_a_half_that_is_surer_than_the_other_is_measured_at_the_others_temperature() -> None:
    chosen = np.where(HALF[:, None] == 0, *(triplets.pair_probabilities(SIMS, t) for t in (1.0, 6.0)))
    apart = calibrate(SIMS, chosen, HALF, "")
    mixed = calibrate(SIMS, chosen, RNG.permutation(HALF), "")
    assert apart["expected_calibration_error"] > 0.1 + mixed["expected_calibration_error"]


def test_the_table_falls_from_certain_to_uncertain_and_holds_every_triplet() -> None:
    table = calibrate(SIMS, triplets.pair_probabilities(SIMS, 2.5), HALF, "")["table"]
    assert len(table) == 10 and sum(row["triplets"] for row in table) == 6000
    for before, after in pairwise(table):
        assert before["agreement"] > after["agreement"]
        assert before["entropy_from"] <= before["entropy_to"] <= after["entropy_from"] <= np.log(3)


def test_a_tie_agrees_with_nobody() -> None:
    sims = SIMS.copy()
    sims[: len(sims) // 2] = 1.0
    chosen = triplets.pair_probabilities(SIMS, 2.5)
    assert calibrate(sims, chosen, HALF, "")["agreement"] == pytest.approx(float(chosen[3000:].max(1).sum() / 6000))


@pytest.mark.parametrize(("n", "half"), [(150, HALF[:150]), (300, np.zeros(300, np.int64))])
def test_too_few_judgments_are_counted(n: int, half: Any) -> None:
    with pytest.raises(ValueError, match=rf"{n} judgments, .* in the smaller half; expected 100"):
        calibrate(SIMS[:n], triplets.pair_probabilities(SIMS[:n]), half, "")


def test_vice_judges_photos_of_its_concepts_and_a_half_has_its_own(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    (tmp_path / "held.txt").write_text("\n".join(str(c) for c in range(12, 24)))
    judgments = read_judgments(data, tmp_path / "held.txt")
    concept = np.array([int(str(judgments.images.names[r]).split("/")[1].split("-")[0]) for r in judgments.rows])
    assert set(concept) == set(range(12, 24))
    of = [set(concept[judgments.index[judgments.half == number]].ravel()) for number in (0, 1)]
    assert len(of[0]) == len(of[1]) == 6 and not of[0] & of[1]
    vice = np.load(data / "things/vice_embedding.npy").astype(np.float64)
    expected = triplets.pair_probabilities(triplets.pair_similarities(vice[concept][judgments.index]))
    np.testing.assert_allclose(judgments.chosen, expected, rtol=1e-5)


def test_choices_of_a_csv_keep_their_order_and_repeats_share_a_half(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, 9)
    rows = [[*RNG.permutation(9)[:3], int(RNG.integers(3))] for _ in range(400)]
    head = ["image_0", "image_1", "image_2", "odd_position"]
    file = write_rows(tmp_path / "c.csv", [head, *([*(photos.names[i] for i in r[:3]), r[3]] for r in rows)])
    judgments = read_judgments(file)
    for row, index, chosen in zip(rows, judgments.index, judgments.chosen, strict=True):
        assert [judgments.images.names[i] for i in index] == [photos.names[i] for i in row[:3]]
        assert triplets.odd_one_out(chosen) == row[3]
    same = [tuple(sorted(index)) for index in judgments.index.tolist()]
    assert len({(s, h) for s, h in zip(same, judgments.half.tolist(), strict=True)}) == len(set(same))


@pytest.mark.parametrize(
    ("row", "said"), [(["0.png", "0.png", "1.png", 1], "row 0"), (["0.png", "2.png", "1.png", 3], "row 0")]
)
def test_choices_that_cannot_be_are_named(tmp_path: Path, row: list[Any], said: str) -> None:
    write_photos(tmp_path, 3)
    file = write_rows(tmp_path / "c.csv", [["image_0", "image_1", "image_2", "odd_position"], row])
    with pytest.raises(ValueError, match=said):
        read_judgments(file)


def test_a_run_is_judged_on_what_each_split_was_not_shown(tiny_run: Run) -> None:
    got = of_run(tiny_run.folder, tiny_run.data)
    fitted = json.loads((tiny_run.folder / "figures.json").read_text())["temperature"]
    assert set(got) == {"aligned", "base"}
    for space, entry in got.items():
        assert entry["temperature"] == pytest.approx(fitted[space], rel=0.05)
        assert 0 <= entry["expected_calibration_error"] <= 1 and len(entry["table"]) == 10
    assert got["aligned"]["negative_log_likelihood"] < np.log(3)


@pytest.mark.parametrize("served", ["aligned", "both"])
def test_a_model_is_calibrated_and_the_manifest_and_card_say_on_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    data, out = write_tiny_data(tmp_path / "data"), tmp_path / "b"
    weights = RNG.normal(size=(64, 8)).astype(np.float32)
    np.savez(tmp_path / "t.npz", weights=weights, mean=np.float32(0.1), std=np.float32(0.5))
    model = ("tiny", "--transform", tmp_path / "t.npz", "--space", served, "--precision", "fp32")
    main_with(
        monkeypatch,
        "bundle",
        *model,
        "--images",
        data / "images",
        "--out",
        out,
        "--parity-photos",
        36,
        "--calibrate",
        data,
    )
    manifest = read_bundle(out).manifest
    assert list(manifest.calibration) == list(manifest.spaces)
    space, entry = manifest.spaces["aligned"], manifest.calibration["aligned"]
    assert space.calibrated and space.temperature != 1 and "VICE" in space.calibrated_on
    assert set(entry) >= {"expected_calibration_error", "brier", "table", "triplets"} and "temperature" not in entry
    assert f"| aligned | {entry['people']} | {entry['triplets']} |" in card(manifest)
    assert "| 10 |" in card(manifest)
