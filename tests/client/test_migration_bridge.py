"""The bridge: exact where the spaces are linearly related, honest where they are not, for these two spaces only."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignet_client.migration import Bridge, Bridged, fit, map_documents
from alignet_client.migration.bridge import interval, neighbours, recall
from alignet_client.retrieval import Entry, IndexFault, Space, WrongSpace, open_index

OLD = Space("0" * 32, 6, "dot", "toy", "base")
NEW = Space("1" * 32, 4, "dot", "toy", "aligned")


def pairs(n: int, noise: float = 0.0, seed: int = 0) -> tuple[Any, Any]:
    """Vectors of the old space, and an affine image of them with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, OLD.size))
    y = x @ rng.normal(size=(OLD.size, NEW.size)) + rng.normal(size=NEW.size)
    return x.astype(np.float32), (y + noise * rng.normal(size=y.shape)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_an_affine_relation_is_found_exactly(seed: int) -> None:
    x, y = pairs(120, seed=seed)
    bridge = fit(x, y, OLD, NEW, k=5)
    np.testing.assert_allclose(bridge.apply(x, OLD.fingerprint), y, atol=2e-4)
    assert bridge.measured.documents.mean == bridge.measured.queries.mean == 1
    assert bridge.measured.explained == pytest.approx(1)


def test_noise_costs_recall_and_asks_for_a_penalty() -> None:
    costs = [fit(*pairs(300, noise), OLD, NEW) for noise in (0.1, 1.0, 100.0)]
    recalls = [bridge.measured.documents.mean for bridge in costs]
    assert 1 > recalls[0] > recalls[1] > recalls[2]
    assert recalls[2] == pytest.approx(10 / 59, abs=0.1)  # chance: 10 of the 59 others
    assert costs[2].penalty > costs[0].penalty
    assert [bridge.measured.photos for bridge in costs] == [60] * 3


def test_unrelated_photos_do_not_help_the_measure() -> None:
    x, y = pairs(100)
    shuffled = np.random.default_rng(1).permutation(y)
    bridge = fit(x, shuffled, OLD, NEW, k=5)
    assert bridge.measured.documents.mean < 0.6
    assert bridge.measured.documents.low <= bridge.measured.documents.mean <= bridge.measured.documents.high


def test_more_numbers_than_pairs() -> None:
    rng = np.random.default_rng(0)
    wide = replace(OLD, size=200)
    x = rng.normal(size=(80, 200)).astype(np.float32)
    bridge = fit(x, x[:, :4] * 2, wide, NEW)
    assert np.isfinite(bridge.weights).all()
    assert 0 < bridge.measured.explained < 1  # 64 pairs cannot tell 200 directions apart, but do not explode


def test_a_cosine_space_is_mapped_by_direction_alone() -> None:
    x, y = pairs(200)
    cosine = replace(OLD, similarity="cosine")
    bridge = fit(x, y, cosine, replace(NEW, similarity="cosine"))
    rows = bridge.apply(x, OLD.fingerprint)
    np.testing.assert_allclose(bridge.apply(7 * x, OLD.fingerprint), rows, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_other_spaces_are_refused() -> None:
    x, y = pairs(100)
    bridge = fit(x, y, OLD, NEW)
    with pytest.raises(WrongSpace, match="1111"):
        bridge.apply(y, NEW.fingerprint)
    assert bridge.space.fingerprint not in (OLD.fingerprint, NEW.fingerprint)
    for x_wrong, y_wrong in ((x[:50], y), (x[:40], y[:40]), (x, y[:, :3]), (x * np.nan, y)):
        with pytest.raises(ValueError, match=r"pair|vector"):
            fit(x_wrong, y_wrong, OLD, NEW)


def test_a_saved_bridge_is_the_same(tmp_path: Path) -> None:
    x, y = pairs(100, 0.3)
    bridge = fit(x, y, OLD, NEW)
    bridge.save(tmp_path / "bridge.npz")
    again = Bridge.load(tmp_path / "bridge.npz")
    assert (again.source, again.target, again.space, again.measured) == (OLD, NEW, bridge.space, bridge.measured)
    np.testing.assert_array_equal(again.apply(x, OLD.fingerprint), bridge.apply(x, OLD.fingerprint))
    assert [file.name for file in tmp_path.iterdir()] == ["bridge.npz"]
    content = (tmp_path / "bridge.npz").read_bytes()
    for damaged in (b"", content[:200], b"no bridge at all"):
        (tmp_path / "bridge.npz").write_bytes(damaged)
        with pytest.raises(IndexFault, match="no bridge"):
            Bridge.load(tmp_path / "bridge.npz")


def test_an_index_is_searched_across_a_bridge_both_ways(tmp_path: Path) -> None:
    x, y = pairs(150)
    bridge = fit(x, y, OLD, NEW)
    rows = [Entry(f"{i:064x}", {"i": i}) for i in range(150)]
    with (
        closing(open_index(f"faiss:{tmp_path / 'old'}", OLD)) as old,
        closing(open_index(f"faiss:{tmp_path / 'new'}", NEW)) as new,
        closing(open_index(f"faiss:{tmp_path / 'mapped'}", bridge.space)) as mapped,
    ):
        old.upsert(rows, x, OLD.fingerprint)
        new.upsert(rows, y, NEW.fingerprint)
        assert map_documents(old, bridge, mapped) == 150
        truth = [[hit.entry for hit in hits] for hits in new.search(y[:9], 5, NEW.fingerprint)]
        by_documents = Bridged(mapped, bridge).search(y[:9], 5, NEW.fingerprint)
        by_queries = Bridged(new, bridge).search(x[:9], 5, OLD.fingerprint)
        for found in (by_documents, by_queries):
            assert [[hit.entry for hit in hits] for hits in found] == truth
        with pytest.raises(WrongSpace):
            mapped.search(y[:1], 5, NEW.fingerprint)  # mapped vectors do not pass for true ones
        with pytest.raises(WrongSpace):
            Bridged(old, bridge)
        with pytest.raises(WrongSpace):
            map_documents(new, bridge, mapped)


def test_recall_counts_the_others_that_are_found() -> None:
    vectors = np.array([[1, 0], [0.9, 0], [0, 1], [0, 0.9]], np.float32)
    assert neighbours(vectors, vectors, 1).ravel().tolist() == [1, 0, 3, 2]  # never itself
    truth, found = np.array([[1, 2], [0, 3]]), np.array([[2, 1], [0, 2]])
    assert recall(found, truth).tolist() == [1.0, 0.5]
    one = interval(np.array([0.0, 1.0] * 50), np.random.default_rng(0))
    assert one.mean == 0.5
    assert one.low == pytest.approx(0.4, abs=0.03)
    assert one.high == pytest.approx(0.6, abs=0.03)
