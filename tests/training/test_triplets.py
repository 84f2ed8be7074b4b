"""Triplets: drawn by the rule, labelled as the contract says, turned, written once."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare

from contract.triplets import TIE, odd_one_out, pair_probabilities, pair_similarities
from training import triplet_files, triplets
from training.triplet_files import read
from training.triplet_sampling import Groups, sample
from training.triplets import TripletConfig, label, make_triplets, similarities, soft_labels, turn

BORDER = TripletConfig(sampling="cluster_border", triplets=250, shard=100)

LABELS = st.lists(st.integers(0, 6), min_size=12, max_size=40).map(np.array)
"""Groups of any size, some of one image, some numbers without any."""


def drawn(sampling: Any, labels: np.ndarray, count: int = 500, draw: Any = "uniform", seed: int = 0) -> np.ndarray:
    groups = None if sampling == "random" else Groups.of(labels, sampling)
    return sample(sampling, count, np.random.default_rng(seed), len(labels), groups, draw)


@pytest.mark.parametrize("draw", ["uniform", "size"])
@pytest.mark.parametrize(
    ("sampling", "kinds"),
    [("cluster_border", 2), ("class_border", 2), ("between_class", 3), ("within_class", 1)],
)
@settings(max_examples=30, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 9))
def test_every_triplet_obeys_its_sampling(sampling: Any, kinds: int, draw: Any, labels: np.ndarray, seed: int) -> None:
    try:
        rows = drawn(sampling, labels, 200, draw, seed)
    except ValueError as error:
        assert "needs" in str(error) or "three classes" in str(error)
        return
    of = labels[rows]
    assert all(len(set(row)) == 3 for row in rows.tolist())  # three images
    assert all(len(set(row)) == kinds for row in of.tolist())
    if kinds == 2:
        assert (of[:, 0] == of[:, 1]).all() and (of[:, 0] != of[:, 2]).all()
    needed = {1: 3, 2: 2, 3: 1}[kinds]
    assert np.bincount(labels)[of].min() >= needed  # groups with too few images never come up


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 12), st.integers(0, 99))
def test_random_triplets_are_three_images_in_range(n: int, seed: int) -> None:
    rows = drawn("random", np.zeros(n), 200, seed=seed)
    assert rows.min() >= 0 and rows.max() < n
    assert all(len(set(row)) == 3 for row in rows.tolist())


SIZES = np.repeat(np.arange(4), [2, 3, 5, 10])
"""Four groups of different sizes, 20 images."""


def test_random_draws_every_ordered_triplet_alike() -> None:
    counts = np.unique(drawn("random", np.zeros(5), 60_000), axis=0, return_counts=True)[1]
    assert len(counts) == 5 * 4 * 3
    assert chisquare(counts).pvalue > 1e-3


def test_uniform_draws_every_group_alike_and_every_image_of_a_group_alike() -> None:
    rows = drawn("cluster_border", SIZES, 40_000)
    pair, odd = SIZES[rows[:, 0]], SIZES[rows[:, 2]]
    borders = np.bincount(4 * pair + odd, minlength=16).reshape(4, 4)
    assert chisquare(borders[~np.eye(4, dtype=bool)]).pvalue > 1e-3
    for column in range(3):
        assert chisquare(np.bincount(rows[SIZES[rows[:, column]] == 3, column])[10:]).pvalue > 1e-3


def test_by_size_draws_every_image_alike() -> None:
    rows = drawn("cluster_border", SIZES, 40_000, "size")
    for column in (0, 1):
        assert chisquare(np.bincount(rows[:, column], minlength=20)).pvalue > 1e-3
    odd = rows[SIZES[rows[:, 0]] == 1, 2]  # given the pair's group, every image outside it
    assert chisquare(np.bincount(odd, minlength=20)[SIZES != 1]).pvalue > 1e-3
    three = np.sort(SIZES[drawn("between_class", SIZES, 40_000, "size")], axis=1) @ [16, 4, 1]
    sizes = np.array([2, 3, 5, 10])
    sets = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    seen = [(three == np.dot(s, [16, 4, 1])).sum() for s in sets]
    weight = np.array([sizes[list(s)].prod() for s in sets])
    assert chisquare(seen, weight / weight.sum() * 40_000).pvalue > 1e-3


def test_groups_that_are_too_small_are_counted_and_too_few_groups_refused_by_row() -> None:
    labels = np.array([4, 0, 0, 2, 2, 9])
    assert Groups.of(labels, "class_border").skipped == ((4, 0), (9, 5))
    with pytest.raises(ValueError, match=r"labels: 1 of 2 groups have at least 2 .* group 7 has too few, .* row 2"):
        Groups.of(np.array([1, 1, 7]), "cluster_border")
    with pytest.raises(ValueError, match="row 1: label -1"):
        Groups.of(np.array([1, -1, 1]), "cluster_border")
    one_giant = np.concatenate([np.zeros(100_000, int), [1, 2]])
    with pytest.raises(ValueError, match="draw groups uniformly"):
        drawn("between_class", one_giant, 10, "size")
    with pytest.raises(ValueError, match="2 images; a triplet needs three"):
        drawn("random", np.zeros(2))


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (9, 5), elements=st.integers(-9, 9).map(float)), st.integers(0, 99), st.integers(1, 200))
def test_similarities_are_the_contracts_whatever_is_gathered_at_once(x: np.ndarray, seed: int, buffer: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 9, (50, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets, "BUFFER", buffer)
        got = similarities(x, rows)
    assert np.array_equal(got, pair_similarities(x[rows]))  # whole numbers: no order of sums rounds


def test_similarities_of_real_numbers_are_the_contracts_up_to_rounding() -> None:
    x = np.random.default_rng(0).standard_normal((500, 1152), dtype=np.float32)
    rows = np.random.default_rng(1).integers(0, 500, (2000, 3))
    exact = pair_similarities(x[rows].astype(np.float64))
    np.testing.assert_allclose(similarities(x, rows), exact, atol=1e-6 * 1152)


def test_no_more_rows_are_gathered_at_once_than_the_buffer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()
    vecdot = np.vecdot
    monkeypatch.setattr(np, "vecdot", lambda a, b, out: (shapes.add(a.shape), vecdot(a, b, out=out))[1])
    x = np.ones((50, 64), np.float32)
    monkeypatch.setattr(triplets, "BUFFER", 3 * 64 * 4 * 10)
    similarities(x, np.zeros((25, 3), np.int64))
    assert shapes == {(10, 64), (5, 64)}


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (9, 4), elements=st.integers(-5, 5).map(float)), st.permutations(range(3)))
def test_turned_rows_carry_their_own_similarities_and_no_order_matters(x: np.ndarray, order: list[int]) -> None:
    rows = np.array([[i, (i + 1) % 9, (i + 4) % 9] for i in range(9)])
    turned, sims = label(x, rows, workers=1)
    assert np.array_equal(sims, pair_similarities(x[turned]))
    assert (sims[:, :1] >= sims).all()
    assert np.array_equal(np.sort(turned), np.sort(rows))
    clear = odd_one_out(sims) != TIE
    assert (odd_one_out(sims)[clear] == 2).all()
    permuted, again = label(x, rows[:, order], workers=1)
    assert np.array_equal(permuted[clear, 2], turned[clear, 2])  # the same odd one
    assert np.array_equal(np.sort(again), np.sort(sims))


def test_the_turn_is_the_one_written_down_and_ties_go_to_the_first_pair() -> None:
    sims = np.array([[3, 2, 1], [2, 3, 1], [1, 2, 3], [1, 3, 3], [2, 2, 2]], np.float32)
    rows, turned = turn(np.tile(np.array([7, 8, 9]), (5, 1)), sims)
    assert rows.tolist() == [[7, 8, 9], [7, 9, 8], [8, 9, 7], [7, 9, 8], [7, 8, 9]]
    assert turned.tolist() == [[3, 2, 1], [3, 2, 1], [3, 1, 2], [3, 1, 3], [2, 2, 2]]


def test_soft_labels_are_the_softmax_of_the_dot_products() -> None:
    sims = np.array([[3, 2, 1], [900, 0, -900]], np.float32)
    assert np.array_equal(soft_labels(sims), pair_probabilities(sims.astype(np.float64)))
    np.testing.assert_allclose(soft_labels(sims)[0], np.exp([3, 2, 1]) / np.exp([3, 2, 1]).sum())


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplets, "PIECE", 7)
    x = np.random.default_rng(0).standard_normal((40, 33), dtype=np.float32)
    rows = drawn("random", np.zeros(40), 100)
    for a, b in zip(label(x, rows, workers=1), label(x, rows, workers=3), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("bad", [-1, 5])
def test_an_image_out_of_range_is_named(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"triplet 1 is of images \[0, {bad}, 2\]; there are 5"):
        label(np.ones((5, 2), np.float32), np.array([[0, 1, 2], [0, bad, 2]]))


def test_an_overflow_is_named() -> None:
    x = np.full((4, 2), 1e38, np.float32)
    with pytest.raises(ValueError, match=r"triplet 0, images \[0, 1, 2\].* not finite"):
        label(x, np.array([[0, 1, 2]]))


def write_inputs(folder: Path) -> tuple[Path, Path, Path, Path]:
    """features, names, groups, root: 60 images of 4 clusters, three synsets, one cluster with one image."""
    rng = np.random.default_rng(0)
    groups = np.r_[np.arange(59) % 3, 3]
    np.save(folder / "features.npy", (np.eye(4, 8)[groups] + rng.normal(0, 0.2, (60, 8))).astype(np.float32))
    np.save(folder / "groups.npy", groups)
    (folder / "names.txt").write_text("".join(f"n{g:08d}_{i}.JPEG\n" for i, g in enumerate(groups)))
    return folder / "features.npy", folder / "names.txt", folder / "groups.npy", folder / "root"


def content(path: Path) -> dict[str, np.ndarray]:
    chunks = list(read(path))
    return {key: np.concatenate([getattr(chunk, key) for chunk in chunks]) for key in triplet_files.KEYS}


def test_a_set_is_one_official_file_with_what_it_was_made_of_and_what_it_is_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_inputs(tmp_path)
    report = make_triplets(*inputs, BORDER)
    assert "1 groups have too few images" in capsys.readouterr().err
    folder = tmp_path / "root/uncertainty_distillation"
    stem = "train_cluster_border_4"
    assert sorted(p.name for p in folder.iterdir()) == [f"{stem}.json", f"{stem}.npz", f"{stem}.report.json"]
    names, x = inputs[1].read_text().split(), np.load(inputs[0])
    with np.load(folder / f"{stem}.npz", allow_pickle=False) as official:
        assert [(key, official[key].shape) for key in official.files] == [(key, (250, 3)) for key in triplet_files.KEYS]
        assert official["filenames"].tolist() == [[names[i] for i in row] for row in official["indices"]]
        np.testing.assert_allclose(official["similarities"], pair_similarities(x[official["indices"]]), rtol=1e-5)
    assert (report["triplets"], report["groups"], report["skipped_groups"], report["ties"]) == (250, 3, 1, 0)
    assert 0.9 < report["images_0_and_1_of_one_group"] <= 1 and 0.5 < report["entropy"] < np.log(3)
    config = json.loads((folder / f"{stem}.json").read_text())
    assert config["config"]["seed"] == 0 and config["config"]["draw"] == "uniform" and "numpy" in config["versions"]


def test_shards_together_are_the_single_file_and_splits_and_seeds_differ(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    paths = []
    for root, change in enumerate([{}, {"single": False}, {"seed": 1}, {"split": "val"}]):
        make_triplets(*inputs[:3], tmp_path / str(root), replace(BORDER, **change))
        (path,) = [p for p in (tmp_path / str(root)).glob("*/*") if p.suffix != ".json"]
        paths.append(content(path))
    assert sorted(p.name for p in tmp_path.glob("1/*/*/*")) == [f"{i:010d}.npz" for i in (0, 100, 200)]
    for key in triplet_files.KEYS:
        assert np.array_equal(paths[0][key], paths[1][key])
        assert not np.array_equal(paths[0][key], paths[2][key])
        assert not np.array_equal(paths[0][key], paths[3][key])


@pytest.mark.parametrize("sampling", ["class_border", "between_class", "within_class", "random"])
def test_classes_come_from_imagenet_names_where_no_groups_are_given(tmp_path: Path, sampling: Any) -> None:
    features, names, _, root = write_inputs(tmp_path)
    make_triplets(features, names, None, root, replace(BORDER, sampling=sampling))
    got = content(root / f"uncertainty_distillation/train_{sampling}.npz")["filenames"]
    kinds = {len({name[:9] for name in row}) for row in got.tolist()}
    assert kinds == {"class_border": {2}, "between_class": {3}, "within_class": {1}, "random": {1, 2, 3}}[sampling]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from tests.training.test_triplets import BORDER
from training.triplets import make_triplets
save, files = np.savez, []
def dies(stream, **arrays):
    files.append(1)
    if len(files) == 2:
        stream.write(b"PK half"); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)
    save(stream, **arrays)
np.savez = dies
make_triplets(*map(Path, sys.argv[1:]), BORDER)
"""


def test_a_run_killed_in_the_middle_of_a_shard_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs(tmp_path)
    repository = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, inputs)], cwd=repository, env={**os.environ, "PYTHONPATH": "."}
    )
    assert killed.returncode == -signal.SIGKILL
    folder = inputs[3] / "uncertainty_distillation"
    assert [p.name for p in folder.rglob("*.npz")] == ["0000000000.npz"]
    labelled = []
    real = triplets.label
    monkeypatch.setattr(
        triplets, "label", lambda x, rows, workers: (labelled.append(len(rows)), real(x, rows, workers))[1]
    )
    report = make_triplets(*inputs, BORDER)
    assert labelled == [100, 50]
    assert make_triplets(*inputs, BORDER) == report and labelled == [100, 50]  # complete: nothing is done again
    assert make_triplets(*inputs[:3], tmp_path / "unharmed", BORDER) == report
    for key, value in content(folder / "train_cluster_border_4.npz").items():
        assert np.array_equal(
            value, content(tmp_path / "unharmed/uncertainty_distillation/train_cluster_border_4.npz")[key]
        )


def test_a_damaged_shard_is_named_and_made_again_once_removed(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    make_triplets(*inputs, replace(BORDER, single=False))
    folder = inputs[3] / "uncertainty_distillation/train_cluster_border_4"
    whole = content(folder)
    shard = folder / "0000000100.npz"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"0000000100\.npz is cut short or no npz .* remove it"):
        list(read(folder))
    shard.unlink()
    with pytest.raises(ValueError, match=r"0000000100\.npz is missing: the next shard is 0000000200\.npz"):
        list(read(folder))
    make_triplets(*inputs, replace(BORDER, single=False))
    assert all(np.array_equal(value, content(folder)[key]) for key, value in whole.items())


def test_a_set_of_other_constants_or_inputs_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    make_triplets(*inputs, BORDER)
    with pytest.raises(ValueError, match=r"train_cluster_border_4\.json was made with another config"):
        make_triplets(*inputs, replace(BORDER, draw="size"))
    np.save(inputs[0], 2 * np.load(inputs[0]))
    with pytest.raises(ValueError, match="another features"):
        make_triplets(*inputs, BORDER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, g: (np.where(x == x[8, 0], np.nan, x).astype(np.float32), g), r"features\.npy, row 8"),
        (lambda x, g: (x[:50], g), r"names\.txt has 60 names, .*features\.npy 50 rows"),
        (lambda x, g: (x, g[:50]), r"groups\.npy is int64 \(50,\); expected 60 whole numbers"),
        (lambda x, g: (x, g.astype(float)), r"groups\.npy is float64"),
        (lambda x, g: (x, np.where(np.arange(60) == 4, -1, g)), r"groups\.npy, row 4: label -1"),
        (lambda x, g: (x, np.arange(60)), r"groups\.npy: 0 of 60 groups .* group 0 has too few, .* row 0"),
    ],
    ids=["nan", "features", "groups", "kind", "negative", "singles"],
)
def test_bad_input_is_named(tmp_path: Path, change: Any, message: str) -> None:
    inputs = write_inputs(tmp_path)
    x, groups = change(np.load(inputs[0]), np.load(inputs[2]))
    np.save(inputs[0], x)
    np.save(inputs[2], groups)
    with pytest.raises(ValueError, match=message):
        make_triplets(*inputs, BORDER)


def test_names_of_more_images_than_rows_are_refused_with_the_list_that_fits(tmp_path: Path) -> None:
    features, names, groups, root = write_inputs(tmp_path)
    every = tmp_path / "every.txt"
    every.write_text(names.read_text() + "n00000000_harmed.JPEG\n")
    with pytest.raises(ValueError, match=r"every\.txt has 61 names, .* 60 rows; .* rows are in .*/names\.txt\."):
        make_triplets(features, every, groups, root, BORDER)


def test_bad_constants_are_named(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    for change, message in (({"sampling": "borders"}, "'borders' is none of"), ({"triplets": 0}, "at least 1")):
        with pytest.raises(ValueError, match=message):
            make_triplets(*inputs, replace(BORDER, **change))
    with pytest.raises(ValueError, match="cluster_border needs groups"):
        make_triplets(*inputs[:2], None, inputs[3], BORDER)
