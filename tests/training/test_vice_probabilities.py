"""`python -m training vice-probabilities`: orders, samples, both kinds of VICE file, faults, and the real responses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contract import triplets
from training import vice, vice_probabilities
from training.__main__ import main
from training.things import read_responses
from training.vice import Posterior, triplet_probabilities
from training.vice_data import odd_last, simulate_choices

OBJECTS = 20
LOC = np.random.default_rng(0).uniform(0.2, 2, (OBJECTS, 3)).astype(np.float32)
POSTERIOR = Posterior(LOC, np.full_like(LOC, 0.3))
ROWS = simulate_choices(LOC, 400, seed=1)


def write(folder: Path) -> None:
    POSTERIOR.prune().save(folder / "pruned_params.npz", "pruned_")
    np.save(folder / "mean.npy", LOC)
    np.save(folder / "rows.npy", ROWS)


def ask(folder: Path, *more: str, vice: str = "pruned_params.npz", rows: str = "rows.npy", out: str = "out") -> Any:
    given = {"triplets": rows, "vice": vice, "out": out}
    options = [part for name, file in given.items() for part in (f"--{name}", f"{folder}/{file}")]
    main(["vice-probabilities", *options, *more])
    return np.load(folder / out / "probabilities.npy"), json.loads((folder / out / "summary.json").read_text())


def by_mean(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return triplets.pair_probabilities(triplets.pair_similarities(LOC[rows].astype(np.float64)))


def test_they_are_the_librarys_of_fifty_samples_and_follow_their_seed(tmp_path: Path) -> None:
    write(tmp_path)
    p, summary = ask(tmp_path)
    assert (p.dtype, p.shape, summary["samples"]) == (np.float32, (400, 3), 50)
    np.testing.assert_allclose(p, triplet_probabilities(POSTERIOR.prune(), ROWS, samples=50, seed=0), atol=1e-6)
    again, other = ask(tmp_path, out="again")[0], ask(tmp_path, "--seed", "1", out="other")[0]
    assert np.array_equal(p, again)
    assert not np.array_equal(p, other)


def test_the_odd_one_out_order_is_the_pair_order_back_to_front(tmp_path: Path) -> None:
    write(tmp_path)
    pairs = ask(tmp_path, vice="mean.npy")[0]
    np.testing.assert_allclose(pairs, by_mean(ROWS), atol=1e-6)
    odd = ask(tmp_path, "--order", "odd-one-out", vice="mean.npy", out="odd")[0]
    sims = triplets.pair_similarities(LOC[ROWS].astype(np.float64))
    np.testing.assert_allclose(odd, triplets.odd_probabilities(sims), atol=1e-6)
    assert np.abs(odd - pairs).max() > 0.1


def test_a_posterior_doubts_more_than_its_mean(tmp_path: Path) -> None:
    write(tmp_path)
    wide, mean = ask(tmp_path)[1], ask(tmp_path, vice="mean.npy", out="mean")[1]
    assert wide["mean_entropy"] > mean["mean_entropy"] + 0.005


def test_dimensions_that_say_nothing_are_pruned_first(tmp_path: Path) -> None:
    write(tmp_path)
    loc, scale = (np.concatenate([a, np.full((OBJECTS, 2), 1e-3, np.float32)], 1) for a in (LOC, POSTERIOR.scale))
    scale[:, 3:] = 2.0
    Posterior(loc, scale).save(tmp_path / "parameters.npz")
    assert np.array_equal(ask(tmp_path, vice="parameters.npz")[0], ask(tmp_path, out="pruned")[0])


@pytest.mark.parametrize(("odd", "order"), [("last", [0, 1, 2]), ("first", [2, 0, 1])])
def test_with_choices_it_says_how_well_they_are_foretold_in_either_convention(
    tmp_path: Path, odd: str, order: list[int]
) -> None:
    write(tmp_path)
    np.save(tmp_path / "turned.npy", ROWS[:, order])
    p, summary = ask(tmp_path, "--odd", odd, vice="mean.npy", rows="turned.npy")
    expected = by_mean(ROWS)
    assert summary["accuracy"]["argmax"] == pytest.approx((expected.argmax(1) == 0).mean())
    assert summary["negative_log_likelihood"] == pytest.approx(-np.log(expected[:, 0]).mean())
    np.testing.assert_allclose(p, by_mean(ROWS[:, order]), atol=1e-6)  # of the columns as they stand
    assert "accuracy" not in ask(tmp_path, out="without")[1]


def test_the_answers_are_the_same_without_the_whole_similarity_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vice, "BATCH", 37)
    looked_up = triplet_probabilities(POSTERIOR, ROWS, samples=5)
    monkeypatch.setattr(vice, "GRAM", 5)
    np.testing.assert_allclose(triplet_probabilities(POSTERIOR, ROWS, samples=5), looked_up, atol=1e-6)


def test_a_second_call_computes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    first = ask(tmp_path)[1]
    monkeypatch.setattr(vice_probabilities, "mean_probabilities", None)
    assert ask(tmp_path)[1] == first
    with pytest.raises(SystemExit, match=r"error: .*identity\.json was made with another samples"):
        ask(tmp_path, "--samples", "3")


def test_faulty_files_are_refused_by_name_and_row(tmp_path: Path) -> None:
    write(tmp_path)
    outside = ROWS.copy()
    outside[9, 1] = OBJECTS
    np.save(tmp_path / "outside.npy", outside)
    np.save(tmp_path / "one-based.npy", ROWS + 1)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04")
    Posterior(LOC - 9, POSTERIOR.scale).save(tmp_path / "empty.npz")
    for files, message in (
        ({"rows": "outside.npy"}, r"outside\.npy, row 9: .*expected objects 0 to 19"),
        ({"rows": "one-based.npy"}, r"one-based\.npy is 1-based: its numbers run from 1 to 20"),
        ({"vice": "junk.npz"}, r"junk\.npz is no \.npz of plain arrays"),
        ({"vice": "rows.npy"}, r"rows\.npy, row \d+: .*expected objects 0 to 399|expected a finite, non-negative"),
        ({"vice": "empty.npz"}, r"empty\.npz: no dimension survives pruning"),
        ({"vice": "none.npz"}, r"No such file.*none\.npz"),
    ):
        if files.get("vice") == "rows.npy":
            continue  # whole numbers are a fine embedding
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            ask(tmp_path, **files)
    with pytest.raises(SystemExit, match="error: 0 posterior samples"):
        ask(tmp_path, "--samples", "0")


@pytest.mark.realdata
def test_the_published_embedding_foretells_the_published_share_of_human_choices(tmp_path: Path, realdata: Path) -> None:
    responses = read_responses(realdata / "things/human_test_responses.csv", 1854)
    np.save(tmp_path / "human.npy", odd_last(responses.concepts, responses.odd))
    (tmp_path / "vice.npy").write_bytes((realdata / "things/vice_embedding.npy").read_bytes())
    summary = ask(tmp_path, "--odd", "last", vice="vice.npy", rows="human.npy")[1]
    assert summary["triplets"] == 20_000
    assert summary["accuracy"]["argmax"] == pytest.approx(0.6357, abs=0.0001)
    assert summary["negative_log_likelihood"] == pytest.approx(0.8365, abs=0.0001)
    assert summary["mean_entropy"] == pytest.approx(0.79, abs=0.02)
