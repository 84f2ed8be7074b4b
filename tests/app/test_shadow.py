"""The shadow model: its decisions are counted beside those given, and no answer is other or later for it."""

import base64
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.embedder import Embedder
from app.engine import OnnxEngine
from app.main import create_app
from app.settings import Settings
from tests.toy import SIZE, encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
TRIPLETS = [list(t) for t in itertools.combinations(range(8), 3)]
BODY = {
    "images": [{"image": base64.b64encode(encoded(photo(seed))).decode()} for seed in range(8)],
    "triplets": TRIPLETS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two bundles, `a` and `b`."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate("ab"):
        write_toy_bundle(folder / name, seed, name)
    return folder


def judge(client: TestClient, **options: Any) -> Any:
    return client.post("/odd-one-out", json=BODY | options)


def eventually(client: TestClient, line: str) -> str:
    until = time.monotonic() + 30
    while line not in (text := client.get("/metrics").text):
        assert time.monotonic() < until, [found for found in text.splitlines() if "shadow" in found]
        time.sleep(0.01)
    return text


def test_the_counts_are_those_of_asking_both_models(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, shadow="b", shadow_share=1)
    options = {"min_margin": 0.999, "triplets": [[7, 2, 5], *TRIPLETS[36:]]}  # of fewer images than are sent
    shadow, given = (
        [result["odd_one_out"] for result in judge(client, model=name, **options).json()["results"]] for name in "ba"
    )
    text = eventually(client, 'alignet_shadow_requests_total{outcome="compared"} 1.0')
    pairs = list(zip(given, shadow, strict=True))
    expected = {
        "same": sum(one == two for one, two in pairs),
        "one_abstained": sum((one is None) != (two is None) for one, two in pairs),
        "different": sum(None not in pair and pair[0] != pair[1] for pair in pairs),
    }
    assert all(expected.values()) and sum(expected.values()) == len(pairs)
    for outcome, n in expected.items():
        assert f'alignet_shadow_triplets_total{{model="a",outcome="{outcome}",shadow="b"}} {n}.0' in text
    assert 'alignet_images_total{outcome="decoded"} 16.0' in text  # not the shadow's


def test_answers_are_the_same_with_a_shadow_and_none_is_compared_for_vectors(serve: Serve, folder: Path) -> None:
    plain, client = serve(bundle=folder), serve(bundle=folder, shadow="b", shadow_share=1)
    vectors = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}
    assert client.post("/odd-one-out", json=vectors).status_code == 200
    assert judge(client).json() == judge(plain).json()
    eventually(client, 'alignet_shadow_requests_total{outcome="compared"} 1.0')


def test_a_broken_shadow_fails_alone(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the photo")

    client = serve(bundle=folder, shadow="b", shadow_share=1)
    monkeypatch.setattr(Embedder, "embed_aside", broken)
    assert judge(client).status_code == 200
    text = eventually(client, 'alignet_shadow_requests_total{outcome="failed"} 1.0')
    assert "alignet_shadow_triplets_total{" not in text
    assert judge(client).status_code == 200


def test_under_load_the_comparison_is_dropped_and_its_request_is_not(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(bundle=folder, shadow="b", shadow_share=1, max_admitted_images=1)
    shadow = client.app.state.service.models.current.models["b"].engine._graph  # type: ignore[attr-defined]
    entered, opened, real, seen = threading.Event(), threading.Event(), OnnxEngine.embed, []

    def gated(self: Any, pixels: Any) -> Any:
        if self is shadow:
            seen.append(len(pixels))
            entered.set()
            assert opened.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", gated)
    assert judge(client).status_code == 200
    assert entered.wait(30)
    assert judge(client).status_code == 200  # while the shadow holds its one image
    eventually(client, 'alignet_shadow_requests_total{outcome="dropped"} 1.0')
    client.app.state.service._process.house.images += 1  # type: ignore[attr-defined]  # a request comes
    opened.set()
    eventually(client, 'alignet_shadow_requests_total{outcome="dropped"} 2.0')
    assert seen == [1]


def test_only_a_share_is_compared(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, shadow="b", shadow_share=0.25)
    service = client.app.state.service  # type: ignore[attr-defined]
    models = service.models.current.models
    assert 800 < sum(service.shadow.wants(models["a"]) for _ in range(4000)) < 1200
    assert not any(service.shadow.wants(models["b"]) for _ in range(100))


@pytest.mark.parametrize("name", ["c", "a"])
def test_a_shadow_of_nothing_does_not_start(folder: Path, name: str) -> None:
    failures: list[Exception] = []
    settings = Settings(bundle=folder / "a", shadow=name)
    with TestClient(create_app(settings, on_failure=failures.append)) as client:
        while not failures:
            assert client.get("/health/ready").status_code == 503
    assert f"'{name}'" in str(failures[0])
