"""The cache of vectors: the same answers, less inference, bounded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.cache import VectorCache, pixel_key
from app.engine import OnnxEngine
from app.metrics import Metrics
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each inference had."""
    seen: list[int] = []
    real = OnnxEngine.embed

    def counted(self: Any, pixels: Any) -> Any:
        seen.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", counted)
    return seen


def embed(client: TestClient, *seeds: int, **options: Any) -> Any:
    files = [("images", ("a", encoded(photo(seed), **options), "image/png")) for seed in seeds]
    return [item["embedding"] for item in client.post("/embed", files=files).json()["data"]]


def test_the_same_pixels_are_inferred_once_whatever_the_file(serve: Serve, inferred: list[int]) -> None:
    client = serve(cache_images=10)
    fresh = embed(client, 0, 1)
    del inferred[:]
    assert embed(client, 1, 0) == fresh[::-1]
    assert embed(client, 0, format_="BMP") == fresh[:1]
    assert inferred == []
    assert embed(client, 0, 7)[0] == fresh[0]
    assert inferred == [1]
    lines = client.get("/metrics").text
    assert 'alignet_cache_lookups_total{outcome="hit"} 4.0' in lines
    assert 'alignet_cache_lookups_total{outcome="miss"} 3.0' in lines


def test_it_is_off_by_default(serve: Serve, inferred: list[int]) -> None:
    client = serve()
    del inferred[:]
    assert embed(client, 0) == embed(client, 0)
    assert inferred == [1, 1]
    assert 'alignet_cache_lookups_total{outcome="hit"} 0.0' in client.get("/metrics").text


def test_the_one_not_asked_for_longest_goes_first() -> None:
    cache = VectorCache(2, Metrics())
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for k in (0, 1):
        cache.put(bytes([k]), {"aligned": rows[k]})
    assert cache.get(b"\0") is not None
    cache.put(b"\2", {"aligned": rows[2]})
    assert (len(cache), cache.get(b"\1")) == (2, None)
    kept = cache.get(b"\0")
    assert kept is not None
    assert kept["aligned"].base is None  # not a view that keeps its whole batch


def test_a_key_depends_on_every_pixel() -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    other = pixels.copy()
    other[2, 7, 7] = 1
    assert pixel_key(pixels) == pixel_key(pixels.copy())
    assert pixel_key(pixels) != pixel_key(other)
