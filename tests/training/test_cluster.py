"""Clusters: those of faiss, bit for bit; the right knee; nothing done twice; bad input named."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import cluster as module
from training import stage
from training.__main__ import main
from training.cluster import ClusterConfig, assign, cluster, knee, lloyd

ROOT = Path(__file__).parents[2]
TINY = ClusterConfig(clusters=6, elbow=(2, 4, 6, 8, 12), iterations=8, points_per_cluster=None)


def blobs(n: int = 300, seed: int = 0) -> np.ndarray:
    """Rows of six kinds, far apart; row i is of kind i % 6."""
    rng = np.random.default_rng(seed)
    kinds = 10 * np.eye(6, 7)[np.arange(n) % 6]
    return (kinds + rng.normal(0, 0.1, (n, 7))).astype(np.float32)


def saved(folder: Path, x: np.ndarray) -> Path:
    np.save(folder / "features.npy", x)
    return folder / "features.npy"


def counted(monkeypatch: pytest.MonkeyPatch, dies_at: int = 10**6) -> list[int]:
    """The c of every iteration done from now on; the process is killed at the `dies_at`-th."""
    done: list[int] = []

    def steps(rows: Any, clusters: int, *args: Any) -> Iterator[Any]:
        for step in lloyd(rows, clusters, *args):
            if len(done) + 1 == dies_at:
                raise KeyboardInterrupt
            done.append(clusters)
            yield step

    monkeypatch.setattr(module, "lloyd", steps)
    return done


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.integers(0, 5))
def test_centroids_are_those_of_faiss_in_one_call_and_of_a_fit_that_goes_on(k: int, seed: int, half: int) -> None:
    x = np.random.default_rng(seed).standard_normal((80, 5), dtype=np.float32)
    x[:20] = x[0]  # clusters run empty
    bare = faiss.Kmeans(5, k, niter=6, seed=seed, min_points_per_centroid=1, max_points_per_centroid=80)
    bare.train(x)
    steps = list(lloyd(x, k, half, seed))
    steps += lloyd(x, k, 6 - half, seed, *(steps[-1] if steps else ()))
    assert np.array_equal(steps[-1][0], bare.centroids)


def test_kinds_far_apart_become_clusters_and_the_figures_are_exact(tmp_path: Path) -> None:
    x = blobs()
    summary = cluster(saved(tmp_path, x), tmp_path / "out", replace(TINY, restarts=8))
    assignments, centroids = (np.load(tmp_path / f"out/{name}.npy") for name in ("assignments", "centroids"))
    assert len({(a, i % 6) for i, a in enumerate(assignments)}) == 6  # one cluster for one kind
    distances = ((x[:, None].astype(np.float64) - centroids) ** 2).sum(-1)
    assert np.array_equal(assignments, distances.argmin(1))
    assert summary["inertia"] == pytest.approx(distances.min(1).sum(), rel=1e-5)
    assert (summary["size"], summary["empty"], summary["single"]) == ({"min": 50, "median": 50.0, "max": 50}, [], [])


def test_inertia_keeps_its_digits_far_from_the_origin() -> None:
    x = blobs() + np.float32(1000)  # ||x||^2 - 2 x c + ||c||^2 in single precision would lose it
    centroids = x[:6]
    exact = ((x[:, None].astype(np.float64) - centroids) ** 2).sum(-1).min(1).sum()
    assert assign(x, centroids, "assign")[1] == pytest.approx(exact, rel=1e-3)


def test_blocks_are_bounded_and_change_no_assignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs()
    want, inertia = assign(x, x[:6], "assign")
    monkeypatch.setattr(stage, "BLOCK", 7 * 4 * 11)
    assert {len(block) for _, block in stage.blocks(x)} == {11, 300 % 11}
    got, again = assign(x, x[:6], "assign")
    assert np.array_equal(got, want) and again == pytest.approx(inertia, rel=1e-6)


def test_the_knee_is_where_the_curve_bends() -> None:
    assert knee([(1, 100.0), (2, 60.0), (3, 20.0), (4, 15.0), (9, 1.0)]) == (3, pytest.approx(0.3938, abs=1e-3))
    assert knee([(1, 3.0), (2, 2.0), (3, 1.0)]) is None  # a straight line bends nowhere
    assert knee([(1, 3.0), (2, 2.9), (3, 1.0)]) is None  # above the chord
    assert knee([(1, 3.0), (2, 1.0)]) is None
    assert knee([(1, 1.0), (2, 1.0), (3, 1.0)]) is None


def test_the_elbow_is_reported_plotted_and_taken_where_no_number_is_given(tmp_path: Path) -> None:
    summary = cluster(saved(tmp_path, blobs()), tmp_path / "out", replace(TINY, clusters=None))
    elbow = json.loads((tmp_path / "out/elbow.json").read_text())
    inertia = [value for _, value in elbow["points"]]
    assert [c for c, _ in elbow["points"]] == [2, 4, 6, 8, 12] and inertia == sorted(inertia, reverse=True)
    assert summary["clusters"] == elbow["knee"] and elbow["knee"] in (6, 8)
    assert "</svg>" in (tmp_path / "out/elbow.svg").read_text()


@pytest.mark.parametrize("dies_at", [1, 9, 20, -3, -1])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    features = saved(tmp_path, np.random.default_rng(0).standard_normal((300, 7), dtype=np.float32))
    done = counted(monkeypatch)
    whole = cluster(features, tmp_path / "whole", TINY)
    dies_at %= len(done) + 1
    counted(monkeypatch, dies_at)
    with pytest.raises(KeyboardInterrupt):
        cluster(features, tmp_path / "out", TINY)
    assert not (tmp_path / "out/summary.json").exists()
    again = counted(monkeypatch)
    assert cluster(features, tmp_path / "out", TINY) == whole
    # A point of the elbow starts anew; the fit, the only one after c = 12, goes on at its iteration.
    kept = dies_at - 1
    assert again == done[kept if 12 in done[:kept] and done[kept] == 6 else done.index(done[kept]) :]
    for name in ("assignments", "centroids"):
        assert np.array_equal(np.load(tmp_path / f"out/{name}.npy"), np.load(tmp_path / f"whole/{name}.npy"))


KILLED = """
import os, signal, sys
import numpy as np
from training import cluster
from training.__main__ import main
save, saved = np.savez, []
def deadly(stream, **arrays):
    saved.append(1)
    if len(saved) == 3:  # in the middle of keeping the third iteration
        stream.write(b"PK half"); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)
    save(stream, **arrays)
np.savez, cluster.CHECKPOINT_SECONDS = deadly, 0.0
main(sys.argv[1:])
"""


def test_a_command_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    features = saved(tmp_path, np.random.default_rng(0).standard_normal((300, 7), dtype=np.float32))
    argv = ["cluster", "--features", str(features), "--clusters", "6", "--elbow", "--out"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *argv, str(tmp_path / "out")], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with np.load(tmp_path / "out/fit/restart-0.npz") as kept:
        assert kept["done"] == 2
    for folder in ("out", "whole"):
        main([*argv, str(tmp_path / folder)])
    for name in ("assignments.npy", "centroids.npy", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_complete_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = saved(tmp_path, blobs())
    first = cluster(features, tmp_path / "out", TINY)
    again = counted(monkeypatch)
    assert cluster(features, tmp_path / "out", TINY) == first and again == []


def test_a_folder_of_other_features_or_constants_is_refused(tmp_path: Path) -> None:
    cluster(saved(tmp_path, blobs()), tmp_path / "out", TINY)
    with pytest.raises(ValueError, match=r"config\.json was made with another config"):
        cluster(tmp_path / "features.npy", tmp_path / "out", replace(TINY, seed=1))
    with pytest.raises(ValueError, match="another features"):
        cluster(saved(tmp_path, blobs(seed=1)), tmp_path / "out", TINY)


def test_centroids_are_learned_on_a_seeded_sample_but_every_row_is_assigned(tmp_path: Path) -> None:
    config = replace(TINY, elbow=(), points_per_cluster=10)
    outs = [tmp_path / name for name in ("one", "same", "other")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        assert cluster(saved(tmp_path, blobs()), out, replace(config, seed=seed))["images"] == 300
    one, same, other = (np.load(out / "centroids.npy") for out in outs)
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def nan_in_row_7() -> np.ndarray:
    x = blobs()
    x[7, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "config", "message"),
    [
        (nan_in_row_7(), TINY, r"features\.npy, row 7: a feature is not finite"),
        (blobs(5), TINY, r"features\.npy has 5 images; 6 clusters"),
        (blobs(9), TINY, r"features\.npy: the elbow has 9 rows; 12 clusters"),
        (blobs().astype(np.float64), TINY, r"features\.npy is float64 \(300, 7\)"),
        (blobs()[0], TINY, r"features\.npy is float32 \(7,\)"),
        (np.asfortranarray(blobs()), TINY, "C-ordered"),
        (blobs(), replace(TINY, elbow=(), clusters=None), "empty elbow"),
        (blobs(), replace(TINY, elbow=(4, 2)), "ascending"),
        (blobs(), replace(TINY, iterations=0), "at least 1"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path: Path, x: np.ndarray, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster(saved(tmp_path, x), tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_rows_and_centroids_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="features are 7 wide, centroids 3"):
        assign(blobs(), np.zeros((2, 3), np.float32), "assign")


def test_an_elbow_without_a_knee_asks_for_a_number(tmp_path: Path) -> None:
    config = replace(TINY, clusters=None, elbow=(2, 4))
    with pytest.raises(ValueError, match="no knee"):
        cluster(saved(tmp_path, blobs()), tmp_path / "out", config)


def test_duplicate_images_leave_clusters_of_none_or_one_and_they_are_reported(tmp_path: Path) -> None:
    x = np.zeros((10, 7), np.float32)
    x[9] = 100
    summary = cluster(saved(tmp_path, x), tmp_path / "out", replace(TINY, elbow=(), clusters=3))
    sizes = np.bincount(np.load(tmp_path / "out/assignments.npy"), minlength=3)
    assert summary["empty"] == np.flatnonzero(sizes == 0).tolist() and len(summary["empty"]) == 1
    assert summary["single"] == np.flatnonzero(sizes == 1).tolist() and len(summary["single"]) == 1
