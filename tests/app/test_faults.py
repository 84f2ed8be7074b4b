"""Threads that die or hang, clients that leave: nobody waits in vain, and nothing is done for nobody."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app import decoding
from app.batching import Batcher
from app.decoding import DecodePool
from app.engine import OnnxEngine
from app.errors import ServiceError
from app.metrics import Metrics
from app.timings import Timings
from contract.pixels import ImageError, PixelLimits, PixelSpec
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
SPEC = PixelSpec(height=4, width=4, resize="squash")


class Valve:
    """Holds whoever passes while it is shut; `seen` counts who came."""

    def __init__(self) -> None:
        self.entered, self.open, self.seen = threading.Event(), threading.Event(), 0
        self.open.set()

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()
        self.seen = 0

    def passed(self, count: int = 1) -> None:
        self.seen += count
        self.entered.set()
        assert self.open.wait(30)


@pytest.fixture
def valve() -> Iterator[Valve]:
    valve = Valve()
    yield valve
    valve.open.set()


@pytest.fixture
def inference(valve: Valve, monkeypatch: pytest.MonkeyPatch) -> Valve:
    """The valve before every inference."""
    real = OnnxEngine.embed

    def slow(self: Any, pixels: Any) -> Any:
        valve.passed(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", slow)
    return valve


@pytest.fixture
def decoder(valve: Valve, monkeypatch: pytest.MonkeyPatch) -> Valve:
    """The valve before every decoding."""
    real = decoding.load_sized

    def slow(*arguments: Any) -> Any:
        valve.passed()
        return real(*arguments)

    monkeypatch.setattr(decoding, "load_sized", slow)
    return valve


def embed(client: TestClient, seed: int) -> Any:
    return client.post("/embed", content=encoded(photo(seed)), headers=PNG)


class Call:
    """One request to the app itself, whose client can hang up."""

    def __init__(self, client: TestClient, image: bytes) -> None:
        self.sent: list[Any] = []
        self._client = client
        self._messages: list[Any] = [{"type": "http.request", "body": image, "more_body": False}]
        self._gone = asyncio.Event()
        headers = [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": headers}
        portal: Any = client.portal
        self.done = portal.start_task_soon(client.app, scope | {"http_version": "1.1"}, self._receive, self._send)

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        portal: Any = self._client.portal
        portal.call(self._gone.set)
        self.done.result(30)


@pytest.mark.parametrize("kind", ["inference", "decoder"])
def test_a_client_that_leaves_while_queued_is_not_served(
    serve: Serve, kind: str, request: pytest.FixtureRequest
) -> None:
    valve: Valve = request.getfixturevalue(kind)
    client = serve(decode_threads=1)
    valve.shut()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, client, 0)
        assert valve.entered.wait(30)
        call = Call(client, encoded(photo(1)))
        until = time.monotonic() + 30
        while "alignet_admitted_images 2.0" not in client.get("/metrics").text.splitlines():
            assert time.monotonic() < until
        call.hang_up()
        assert call.sent == []
        assert "alignet_admitted_images 1.0" in client.get("/metrics").text.splitlines()
        valve.open.set()
        assert first.result(30).status_code == 200
    assert embed(client, 2).status_code == 200
    assert valve.seen == 2  # the first and the last
    assert 'alignet_http_requests_total{code="499",method="POST",route="/embed"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("more", [[], [encoded(photo(1))]])
def test_a_refused_photo_leaves_nothing_for_the_collector_of_garbage(serve: Serve, more: list[bytes]) -> None:
    client = serve()
    files = [("images", ("photo", image)) for image in (encoded(photo(0))[:-60], *more)]
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert client.post("/embed", files=files).status_code == 422
        until = time.monotonic() + 5  # a decode thread may still be leaving the frames that hold the last one
        while (left := [o for o in gc.get_objects() if isinstance(o, ImageError)]) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        gc.enable()
    assert left == []


def test_a_client_that_stays_is_answered_and_its_watch_ends(serve: Serve) -> None:
    client = serve()
    call = Call(client, encoded(photo(1)))
    call.done.result(30)
    assert call.sent[0]["status"] == 200


def test_an_image_whose_time_is_over_is_neither_decoded_nor_inferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "load_sized", lambda *_: pytest.fail("decoded"))
    pool = DecodePool(1, PixelLimits(), stuck_seconds=30)
    past = time.monotonic() - 1
    with pytest.raises(TimeoutError):
        asyncio.run(pool.decode([b"x"], SPEC, past))

    class Never:
        def embed(self, pixels: NDArray[Any]) -> Any:
            raise AssertionError("inferred")

    batcher = Batcher(Never(), 2, Metrics())
    with pytest.raises(TimeoutError):
        batcher.submit(np.zeros(1, np.float32), past).result(30)
    asyncio.run(batcher.close())
    asyncio.run(pool.close())


def test_a_hanging_batch_fails_live_and_refuses_those_who_wait_until_it_ends(serve: Serve, inference: Valve) -> None:
    client = serve(stuck_seconds=0.05)
    inference.shut()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(embed, client, seed) for seed in range(2)]
        replies = [job.result(30) for job in waiting]
    assert {(reply.status_code, reply.json()["code"]) for reply in replies} == {(503, "not_ready")}
    assert (client.get("/health/live").status_code, client.get("/health/ready").status_code) == (500, 503)
    inference.open.set()
    until = time.monotonic() + 30
    while client.get("/health/live").status_code != 200:
        assert time.monotonic() < until
    assert embed(client, 3).status_code == 200


def test_one_hanging_decoder_is_counted_and_all_of_them_fail_live(serve: Serve, decoder: Valve) -> None:
    client = serve(stuck_seconds=0.05, decode_threads=2)
    decoder.shut()
    with ThreadPoolExecutor() as pool:
        calls = [Call(client, encoded(photo(0)))]
        until = time.monotonic() + 30
        while "alignet_stuck_decode_threads 1.0" not in client.get("/metrics").text.splitlines():
            assert time.monotonic() < until
        assert client.get("/health/live").status_code == 200
        refused = pool.submit(embed, client, 1).result(30)
        calls[0].done.result(30)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert "hangs" in refused.json()["detail"]
    assert client.get("/health/live").status_code == 500
    decoder.open.set()
    while client.get("/health/live").status_code != 200:
        assert time.monotonic() < until


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_refuses_everyone_in_its_queue_and_who_comes_later(valve: Valve) -> None:
    class Deadly:
        def embed(self, pixels: NDArray[Any]) -> Any:
            valve.passed()
            raise SystemExit

    valve.shut()
    batcher = Batcher(Deadly(), 1, Metrics())
    waiting = [batcher.submit(np.zeros(1, np.float32))]
    assert valve.entered.wait(30)
    waiting += [batcher.submit(np.zeros(1, np.float32)) for _ in range(3)]
    valve.open.set()
    for future in waiting:
        with pytest.raises(ServiceError, match="has ended"):
            future.result(30)
    with pytest.raises(ServiceError, match="has ended"):
        asyncio.run(batcher.embed([np.zeros(1, np.float32)], Timings()))
    assert not batcher.alive
    batcher._threads[0].join(30)  # its end is a warning, which must not fall into the next test


def test_closing_does_not_wait_for_a_thread_that_hangs(valve: Valve, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def embed(self, pixels: NDArray[Any]) -> Any:
            valve.passed()
            return {"aligned": np.zeros((len(pixels), 2), np.float32)}

    monkeypatch.setattr("app.batching.CLOSE_SECONDS", 0.05)
    valve.shut()
    batcher = Batcher(Slow(), 1, Metrics())
    waiting = batcher.submit(np.zeros(1, np.float32))
    assert valve.entered.wait(30)
    asyncio.run(batcher.close())
    assert batcher.alive
    valve.open.set()
    waiting.result(30)
