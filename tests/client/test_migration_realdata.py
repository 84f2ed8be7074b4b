"""From the starter's base space to its aligned one, on real photos: what a bridge costs, beside doing nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alignet_client import Client
from alignet_client.migration import Bridged, fit, map_documents, reembed
from alignet_client.retrieval import Embedder, Index, add_photos, open_index
from tests.running import free_port, replica, until

PHOTOS, K = 160, 10


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with replica(port, tmp_path / "log", "--drain-delay", "0"):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"http://127.0.0.1:{port}"


def rows(index: Index, keys: list[str]) -> list[NDArray[np.float32]]:
    """Vectors in the order of the keys."""
    found, vectors = index.fetch(keys)
    by_key = {entry.sha256: vector for entry, vector in zip(found, vectors, strict=True)}
    return [by_key[key] for key in keys]


@pytest.mark.realdata
def test_recall_before_with_the_bridge_and_after(starter: str, realdata: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted((realdata / "images" / "caltech101").rglob("*.jpg"))
    for i, file in enumerate(files[:: len(files) // PHOTOS][:PHOTOS]):
        (folder / f"{i:03}.jpg").symlink_to(file)
    with ExitStack() as stack:
        client = stack.enter_context(Client(starter))
        base, aligned = Embedder.of(client, "base"), Embedder.of(client)
        assert (base.space.similarity, aligned.space.similarity) == ("cosine", "dot")
        old, new = (
            stack.enter_context(closing(open_index(f"faiss:{tmp_path / one.space.name}", one.space)))
            for one in (base, aligned)
        )
        add_photos(old, base, folder)
        reembed(old, new, aligned, folder)
        keys = sorted(entry.sha256 for entry in old.entries())
        assert len(keys) == len(new) == PHOTOS
        bridge = fit(rows(old, keys), rows(new, keys), base.space, aligned.space, k=K)
        measured = bridge.measured
        assert measured.photos == PHOTOS // 5
        assert measured.unchanged.mean < measured.documents.low  # the bridge is better than to wait
        mapped = stack.enter_context(closing(open_index(f"faiss:{tmp_path / 'mapped'}", bridge.space)))
        map_documents(old, bridge, mapped)
        queries = aligned.embed(sorted(folder.iterdir())[:20])
        truth = new.search(queries, K, aligned.space.fingerprint)
        near = Bridged(mapped, bridge).search(queries, K, aligned.space.fingerprint)
        shared = [
            len({h.entry.sha256 for h in a} & {h.entry.sha256 for h in b}) for a, b in zip(truth, near, strict=True)
        ]
        assert sum(shared) / len(shared) / K > measured.unchanged.mean
