"""Which images a step embeds, and which triplets it forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.feeds import Sampling, border_triplets, in_batch, random_triplets, triplet_feed


@given(st.lists(st.integers(0, 4), min_size=3, max_size=40), st.integers(0, 99))
def test_a_border_triplet_is_two_of_a_kind_and_one_other(labels: list[int], seed: int) -> None:
    label = np.array(labels)
    for i, j, k in border_triplets(label, 200, np.random.default_rng(seed)):
        assert i != j
        assert label[i] == label[j] != label[k]


@given(st.integers(3, 30), st.integers(0, 99))
def test_a_random_triplet_is_of_three_different_images(n: int, seed: int) -> None:
    index = random_triplets(n, 200, np.random.default_rng(seed))
    assert all(len(set(row)) == 3 and max(row) < n for row in index.tolist())


def test_a_step_is_a_function_of_its_number_and_embeds_no_image_twice() -> None:
    rows, label = np.arange(100, 160), np.arange(160) % 6
    feed = in_batch(rows, label, batch=12, per_group=3, triplets=50, sampling="border", seed=1)
    step, again, other = feed(5), feed(5), feed(6)
    assert np.array_equal(step.rows, again.rows) and np.array_equal(step.index, again.index)
    assert not np.array_equal(step.rows, other.rows)
    assert len(set(step.rows)) == len(step.rows) == 12
    assert set(step.rows) <= set(rows)
    assert step.index.max() < 12


def test_every_image_of_a_group_comes_up_equally_often() -> None:
    label = np.repeat([0, 1, 2, 3], [30, 20, 10, 40])
    feed = in_batch(np.arange(100), label, batch=4, per_group=2, triplets=9, sampling="random", seed=0)
    counts = np.bincount(np.concatenate([feed(step).rows for step in range(4000)]), minlength=100)
    for group in range(4):
        mine = counts[label == group]
        assert abs(mine - mine.mean()).max() < 5 * np.sqrt(mine.mean())


def test_the_triplet_feed_takes_three_images_a_triplet_from_the_rows_given() -> None:
    rows, label = np.arange(50, 90), np.arange(90) % 5
    step = triplet_feed(rows, label, batch=7, sampling="border", seed=0)(3)
    assert step.index.tolist() == np.arange(21).reshape(7, 3).tolist()
    assert set(step.rows) <= set(rows)
    i, j, k = label[step.rows.reshape(7, 3)].T
    assert (i == j).all() and (k != i).all()


@pytest.mark.parametrize(("label", "batch"), [([0, 0, 0, 0], 4), ([0, 1, 2, 3], 4), ([0, 0, 1, 1], 2)])
def test_what_cannot_give_a_border_triplet_is_refused(label: list[int], batch: int) -> None:
    with pytest.raises(ValueError, match="groups"):
        in_batch(np.arange(4), np.array(label), batch=batch, per_group=2, triplets=5, sampling="border", seed=0)


def test_a_batch_that_needs_more_groups_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="a step takes 4 groups of 2 images, and 3 groups have"):
        in_batch(np.arange(9), np.repeat([0, 1, 2], 3), batch=8, per_group=2, triplets=5, sampling="random", seed=0)


def test_images_alone_in_their_group_are_told_of() -> None:
    label = np.array([0, 0, 1, 1, 2])
    with pytest.warns(UserWarning, match="1 of 5 images are alone"):
        in_batch(np.arange(5), label, batch=4, per_group=2, triplets=5, sampling="border", seed=0)


@pytest.mark.parametrize(("label", "sampling"), [([0] * 5, "border"), ([0, 1, 2, 3], "border"), ([0, 1], "random")])
def test_the_triplet_feed_refuses_a_set_without_such_a_triplet(label: list[int], sampling: Sampling) -> None:
    with pytest.raises(ValueError, match="a triplet needs three images"):
        triplet_feed(np.arange(len(label)), np.array(label), batch=4, sampling=sampling, seed=0)


def test_a_step_has_as_many_triplets_as_were_asked_for_however_unequal_its_groups() -> None:
    label = np.repeat([0, 1], [60, 2])
    feed = in_batch(np.arange(62), label, batch=120, per_group=60, triplets=700, sampling="border", seed=0)
    assert len(feed(0).index) == 700


def test_without_groups_every_image_is_drawn_alike() -> None:
    label = np.repeat([0, 1], [90, 10])
    feed = in_batch(np.arange(100), label, batch=10, per_group=None, triplets=9, sampling="random", seed=0)
    counts = np.bincount(np.concatenate([feed(step).rows for step in range(2000)]), minlength=100)
    assert abs(counts - 200).max() < 5 * np.sqrt(200)
