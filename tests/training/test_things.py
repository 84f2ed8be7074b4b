"""VICE and human responses: what is read, what is refused, and two facts about the real files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import triplets
from contract.triplets import pair_probabilities
from tests.training.tiny import write_rows
from training.things import read_responses, read_vice

HEADER = ["concept_0", "concept_1", "concept_2", "odd_position", "participant"]


def test_a_vice_embedding_is_read_in_double_precision(tmp_path: Path) -> None:
    np.save(tmp_path / "vice.npy", np.array([[0.0, 1.5], [2.0, 0.0], [0.25, 0.0]], np.float32))
    vice = read_vice(tmp_path / "vice.npy")
    assert vice.dtype == np.float64
    assert vice.tolist() == [[0.0, 1.5], [2.0, 0.0], [0.25, 0.0]]


@pytest.mark.parametrize("bad", [[[1.0, -0.1]], [[1.0, np.nan]], [[np.inf, 0.0]], [1.0, 2.0], [[[1.0]]]])
def test_a_vice_embedding_that_is_negative_not_finite_or_no_matrix_is_refused(tmp_path: Path, bad: Any) -> None:
    np.save(tmp_path / "vice.npy", np.array(bad))
    with pytest.raises(ValueError, match=r"vice\.npy is \(.*expected a finite, non-negative matrix"):
        read_vice(tmp_path / "vice.npy")


def test_a_pickle_in_place_of_vice_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "vice.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_vice(tmp_path / "vice.npy")


def test_responses_keep_the_order_of_the_participants_view(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "r.csv", [HEADER, [4, 0, 2, 1, 77], [0, 2, 4, 0, 78]])
    responses = read_responses(file, 5)
    assert responses.concepts.tolist() == [[4, 0, 2], [0, 2, 4]]
    assert responses.odd.tolist() == [1, 0]


def test_a_file_without_responses_gives_none(tmp_path: Path) -> None:
    responses = read_responses(write_rows(tmp_path / "r.csv", [HEADER]), 5)
    assert responses.concepts.shape == (0, 3)
    assert responses.odd.shape == (0,)


def test_missing_columns_of_responses_are_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "r.csv", [["concept_0", "concept_2"], [0, 1]])
    with pytest.raises(ValueError, match=r"lacks the columns \['concept_1', 'odd_position'\]"):
        read_responses(file, 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 5, 2, 0, 9], r"row 1: concepts \[1, 5, 2\]; expected 0 to 4\. Is it 1-based\? 1 of 3 rows"),
        ([1, -1, 2, 0, 9], r"row 1: concepts \[1, -1, 2\]; expected 0 to 4"),
        ([1, 2, 1, 0, 9], r"row 1: \[1, 2, 1, 0\] repeats a concept"),
        ([1, 1, 2, 0, 9], r"row 1: \[1, 1, 2, 0\] repeats a concept"),
        ([0, 1, 2, 3, 9], r"row 1: .* position outside 0\.\.2"),
        ([0, 1, 2, -1, 9], r"row 1: .* position outside 0\.\.2"),
    ],
)
def test_a_response_that_cannot_be_is_refused_with_its_row(tmp_path: Path, row: list[int], message: str) -> None:
    file = write_rows(tmp_path / "r.csv", [HEADER, [0, 1, 2, 0, 9], row, [0, 1, 2, 0, 9]])
    with pytest.raises(ValueError, match=message):
        read_responses(file, 5)


@pytest.mark.parametrize("row", [["0", "1", "dog", "0", "9"], ["0", "1", "2.0", "0", "9"], ["0", "1"]])
def test_a_response_that_is_no_number_or_is_cut_short_is_refused_with_its_row(tmp_path: Path, row: list[str]) -> None:
    file = write_rows(tmp_path / "r.csv", [HEADER, [0, 1, 2, 0, 9], row])
    with pytest.raises(ValueError, match=r"r\.csv, row 1"):
        read_responses(file, 5)


def test_the_posterior_of_a_triplet_is_the_one_worked_by_hand() -> None:
    # Dot products ln 6, ln 3, ln 1: the three pairs are chosen in proportion 6 : 3 : 1.
    sims = np.log([[6.0, 3.0, 1.0]])
    np.testing.assert_allclose(pair_probabilities(sims), [[0.6, 0.3, 0.1]], rtol=1e-12)


@pytest.mark.realdata
def test_vice_agrees_with_63_6_percent_of_single_human_choices(realdata: Path) -> None:
    vice = read_vice(realdata / "things/vice_embedding.npy")
    responses = read_responses(realdata / "things/human_test_responses.csv", len(vice))
    sims = triplets.pair_similarities(vice[responses.concepts])
    assert triplets.accuracy(sims, responses.odd, "argmax") == pytest.approx(0.636, abs=0.001)


@pytest.mark.realdata
def test_majorities_agree_with_67_2_percent_of_their_own_responses(realdata: Path) -> None:
    responses = read_responses(realdata / "things/human_test_responses.csv", 1854)
    concept = responses.concepts[np.arange(len(responses.odd)), responses.odd]
    triplet = np.unique(np.sort(responses.concepts, axis=1), axis=0, return_inverse=True)[1].ravel()
    votes = np.unique(np.stack([triplet, concept], 1), axis=0, return_counts=True)
    majority = np.zeros(triplet.max() + 1, np.int64)
    np.maximum.at(majority, votes[0][:, 0], votes[1])
    assert majority.sum() / len(responses.odd) == pytest.approx(0.672, abs=0.001)
