"""Choices: counted, ceilings as worked by hand, models that see as people do reach VICE, noise is at chance."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.triplets import odd_one_out, pair_similarities
from tests.training.evaluation.worlds import tiny_setting
from tests.training.tiny import write_tiny_data
from training.evaluation.odd_one_out import (
    count_choices,
    human_choices,
    noise_ceiling,
    read_choices,
    vice_agreement,
)
from training.run import read_data


def leave_one_out(counts: list[int]) -> float:
    """The ceiling by its definition, response by response."""
    responses = [k for k in range(3) for _ in range(counts[k])]
    score = 0.0
    for i, own in enumerate(responses):
        rest = responses[:i] + responses[i + 1 :]
        votes = [rest.count(k) for k in range(3)]
        winners = [k for k in range(3) if votes[k] == max(votes)]
        score += (1.0 if len(winners) == 1 else 0.5) if own in winners else 0.0
    return score / len(responses)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(lambda c: sum(c) >= 2))
def test_the_ceiling_is_its_definition(counts: list[int]) -> None:
    assert noise_ceiling(np.array([counts]))[0] == pytest.approx(leave_one_out(counts))


def test_a_single_response_has_no_ceiling() -> None:
    assert np.isnan(noise_ceiling(np.array([[1, 0, 0]]))[0])


def test_choices_on_one_triplet_in_any_order_are_counted_together() -> None:
    found = count_choices(np.array([[5, 2, 9], [9, 5, 2], [2, 5, 9]]), np.array([0, 1, 2]), "here")
    assert found.objects.tolist() == [[2, 5, 9]]
    assert found.counts.tolist() == [[0, 2, 1]]  # 5 twice, 9 once


def test_accuracy_on_human_choices_is_as_worked_by_hand(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path, constant=0.0, seeing=0.001)
    np.save(tmp_path / "models/constant.npy", np.ones((68, 3), np.float32))
    rows = human_choices(setting).rows
    value = {(r.figure, r.model, r.setting): r.estimate.value for r in rows}
    # Of {0, 1, 2} two of three people chose the vehicle 1, of {4, 5, 7} both the animal 4: the mean of 2/3 and 1.
    assert value["odd-one-out accuracy", "seeing", "dot, strict"] == pytest.approx(5 / 6)
    assert value["odd-one-out accuracy", "constant", "cosine, rounded"] == 0
    assert value["odd-one-out accuracy", "seeing - constant", "dot, strict"] == pytest.approx(5 / 6)
    assert [value["tie rate", "constant", f"dot, {rule}"] for rule in ("strict", "argmax")] == [1, 0]
    # Two votes against one: each of the two is with a tie of the others, the third is alone against two.
    assert value["noise ceiling", "people", "leave-one-out"] == pytest.approx((1 / 3 + 1) / 2)


def test_official_files_are_read_and_one_with_the_odd_one_first_is_refused(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path)
    rows = np.array([[0, 2, 1], [4, 6, 3], [1, 3, 8], [5, 7, 10], [0, 4, 5]])
    (tmp_path / "things/triplets").mkdir()
    np.save(tmp_path / "things/triplets/test_10.npy", rows)
    found = read_choices(data, read_data(data))[1]
    assert (found.source, int(found.counts.sum())) == ("test_10.npy", 5)
    np.save(tmp_path / "things/triplets/test_10.npy", rows[:, ::-1])
    with pytest.raises(ValueError, match="first column as the odd one"):
        read_choices(data, read_data(data))


def test_a_model_that_sees_vice_agrees_with_it_and_noise_is_at_chance(tmp_path: Path) -> None:
    result = vice_agreement(tiny_setting(tmp_path, noise=1e6, vice=0.0))
    value = {(r.figure, r.model): r.estimate for r in result.rows if r.setting == "dot, strict" and not r.group}
    assert value["agreement with VICE", "vice"].value > 0.999
    assert value["agreement with VICE", "noise"].value == pytest.approx(1 / 3, abs=0.15)
    ceiling = next(r.estimate.value for r in result.rows if r.model == "people")
    assert value["expected human agreement", "vice"].value == pytest.approx(ceiling, abs=1e-3)
    difference = value["agreement with VICE", "vice - noise"]
    assert 0 < difference.low <= difference.value <= difference.high


def test_categories_say_whose_outsiders_are_found(tmp_path: Path) -> None:
    rows = [r for r in vice_agreement(tiny_setting(tmp_path, noise=1e6, vice=0.0)).rows if r.figure == "outsider found"]
    found = {(r.group, r.model): r.estimate.value for r in rows}
    assert found["animal", "vice"] == found["vehicle", "vice"] == pytest.approx(1)
    assert found["animal", "noise"] < 0.7


def test_only_held_out_concepts_are_judged(tmp_path: Path) -> None:
    from dataclasses import replace

    from training.evaluation.concepts import vice_triplets

    setting = replace(tiny_setting(tmp_path, vice=0.0), held_out=np.array([0, 1, 2, 3, 7]))
    assert set(np.unique(vice_triplets(setting).concepts)) == {0, 1, 2, 3, 7}


@pytest.mark.realdata
def test_vice_and_the_majority_agree_with_real_people_as_stated(realdata: Path) -> None:
    data = read_data(realdata)
    counts = read_choices(realdata, data)[0].counts
    objects = read_choices(realdata, data)[0].objects
    odd = odd_one_out(pair_similarities(data.vice[objects]))
    assert counts.sum() == 20_000 and len(counts) == 1_000
    assert counts.max(1).sum() / 20_000 == pytest.approx(0.672, abs=5e-4)
    assert np.take_along_axis(counts, odd[:, None], 1).sum() / 20_000 == pytest.approx(0.636, abs=5e-4)
    assert noise_ceiling(counts).mean() == pytest.approx(0.644, abs=1e-3)
