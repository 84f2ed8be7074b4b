"""Busy, late, starting, draining: each refuses by its own status, and the next request is served."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import served
from app.engine import OnnxEngine
from app.main import create_app
from app.settings import Settings
from contract.bundle import read_bundle
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
VECTORS = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}


class Gate:
    """What an engine waits for; `seen` counts the images that went in."""

    def __init__(self) -> None:
        self.entered, self.open, self.seen = threading.Event(), threading.Event(), 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Once `gate.entered` is cleared, every inference waits until `gate.open` is set."""
    gate, real = Gate(), OnnxEngine.embed
    gate.open.set()

    def gated(self: Any, pixels: Any) -> Any:
        gate.seen += len(pixels)
        gate.entered.set()
        assert gate.open.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", gated)
    yield gate
    gate.open.set()


def close(gate: Gate) -> None:
    gate.open.clear()
    gate.entered.clear()
    gate.seen = 0


def embed(client: TestClient, seed: int, **headers: str) -> Any:
    return client.post("/embed", content=encoded(photo(seed)), headers=PNG | headers)


def test_more_images_than_admitted_are_429_until_there_is_room(serve: Serve, gate: Gate) -> None:
    client = serve(max_admitted_images=1)
    close(gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, client, 0)
        assert gate.entered.wait(30)
        refused = embed(client, 1)
        gate.open.set()
        assert first.result(30).status_code == 200
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (429, "overloaded", 1)
    assert int(refused.headers["Retry-After"]) >= 1
    assert embed(client, 1).status_code == 200


def test_vectors_are_judged_while_images_are_refused(serve: Serve, gate: Gate) -> None:
    client = serve(max_admitted_images=1)
    close(gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, client, 0)
        assert gate.entered.wait(30)
        assert client.post("/odd-one-out", json=VECTORS).status_code == 200
        assert client.get("/health/live").status_code == 200
        gate.open.set()
        assert first.result(30).status_code == 200


def test_a_request_alone_is_admitted_whatever_its_size(serve: Serve) -> None:
    client = serve(max_admitted_images=1)
    files = [("images", ("a", encoded(photo(seed)), "image/png")) for seed in range(5)]
    assert client.post("/embed", files=files).status_code == 200


@pytest.mark.parametrize("default", [True, False])
def test_a_late_answer_is_504_and_the_next_one_is_served(serve: Serve, gate: Gate, default: bool) -> None:
    client = serve(request_timeout=0.05) if default else serve()
    close(gate)
    late = embed(client, 0) if default else embed(client, 0, **{"X-Request-Timeout-Ms": "50"})
    gate.open.set()
    assert (late.status_code, late.json()["code"], late.json()["limit"]) == (504, "deadline_exceeded", 0.05)
    assert embed(client, 0, **{"X-Request-Timeout-Ms": "30000"}).status_code == 200
    assert "alignet_admitted_images 0.0" in client.get("/metrics").text.splitlines()


def test_an_image_whose_request_is_over_is_never_inferred(serve: Serve, gate: Gate) -> None:
    client = serve()
    close(gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, client, 0)
        assert gate.entered.wait(30)
        assert embed(client, 1, **{"X-Request-Timeout-Ms": "50"}).status_code == 504
        gate.open.set()
        assert first.result(30).status_code == 200
    assert embed(client, 2).status_code == 200
    assert gate.seen == 2


def test_a_body_that_never_ends_is_408_and_the_next_request_is_served(serve: Serve) -> None:
    client, sent = serve(body_timeout=0.05), []
    started = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict[str, Any]:
        return next(started, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 408
    assert b"body_timeout" in sent[1]["body"]
    assert embed(client, 0).status_code == 200


def test_the_time_a_body_takes_is_not_the_services_lateness(serve: Serve) -> None:
    client, sent = serve(body_timeout=0.2, request_timeout=0.05), []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": []}
    client.portal.call(client.app, scope | {"http_version": "1.1"}, receive, send)
    assert sent[0]["status"] == 408


def test_a_client_that_hangs_up_while_sending_is_no_bug(serve: Serve) -> None:
    client, sent = serve(raise_bugs=False), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    client.portal.call(client.app, scope, receive, send)
    assert 'alignet_errors_total{kind="internal"}' not in client.get("/metrics").text


def test_until_the_bundle_is_open_only_live_answers(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()

    def slow(path: Path) -> Any:
        assert opened.wait(30)
        return read_bundle(path)

    monkeypatch.setattr(served, "read_bundle", slow)
    with TestClient(create_app(Settings(bundle=toy_bundle))) as client:
        assert client.get("/health/live").status_code == 200
        early = [client.get("/health/ready"), client.get("/models"), client.get("/models/toy"), embed(client, 0)]
        early += [client.post(path, json=VECTORS) for path in ("/odd-one-out", "/similarity")]
        opened.set()
        until = time.monotonic() + 30
        while embed(client, 0).status_code != 200:
            assert time.monotonic() < until
    for reply in early:
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        assert int(reply.headers["Retry-After"]) >= 1
        assert "starting" in reply.json()["detail"]


def test_a_draining_service_refuses_new_work(client: TestClient) -> None:
    client.app.state.service.draining = True
    drained = [client.get("/health/ready"), embed(client, 0), client.post("/similarity", json=VECTORS)]
    client.app.state.service.draining = False
    for reply in drained:
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        assert "Retry-After" in reply.headers
        assert "draining" in reply.json()["detail"]
    assert embed(client, 0).status_code == 200


def test_the_metrics_say_whether_it_is_ready(toy_bundle: Path) -> None:
    app = create_app(Settings(bundle=toy_bundle))
    gauge = app.state.service.metrics
    assert b"alignet_ready 0.0" in gauge.exposition()
    with TestClient(app) as client:
        until = time.monotonic() + 30
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < until
        assert b"alignet_ready 1.0" in gauge.exposition()
    assert b"alignet_ready 0.0" in gauge.exposition()


def test_on_ready_is_called_once_with_the_model(toy_bundle: Path) -> None:
    ready: list[str] = []
    app = create_app(Settings(bundle=toy_bundle), on_ready=lambda model: ready.append(model.name))
    with TestClient(app) as client:
        until = time.monotonic() + 30
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < until
    assert ready == ["toy"]


def test_a_closed_app_leaves_no_thread_behind(toy_bundle: Path) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "inference"}
    with TestClient(create_app(Settings(bundle=toy_bundle))) as client:
        until = time.monotonic() + 30
        while embed(client, 0).status_code != 200:
            assert time.monotonic() < until
    assert {thread for thread in threading.enumerate() if thread.name == "inference"} == before
