"""The inference thread: batches of what is ready, failures that stay where they belong."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app.admission import Admission
from app.batching import Batcher
from app.decoding import DecodePool
from app.embedder import Embedder
from app.engine import OnnxEngine
from app.errors import ServiceError
from app.metrics import Metrics, Norms
from app.timings import Timings
from contract.pixels import PixelLimits, PixelSpec
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


class Echo:
    """An engine that gives each image back as its own vector, once it is allowed to."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def embed(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        self.batches.append(pixels[:, 0].tolist())
        self.entered.set()
        assert self.open.wait(30)
        if (pixels == -1).any():
            raise RuntimeError("a batch with -1 in it")
        return {"aligned": pixels}


@pytest.fixture
def echo() -> Iterator[Echo]:
    engine = Echo()
    yield engine
    engine.open.set()


def image(value: float) -> NDArray[np.float32]:
    return np.array([value], np.float32)


def value(future: "Future[Any]") -> float:
    return float(future.result(30).vectors["aligned"][0])


def busy(echo: Echo, max_batch: int) -> tuple[Batcher, "Future[Any]"]:
    """A batcher whose thread is inside an inference of one image."""
    echo.open.clear()
    batcher = Batcher(echo, max_batch, Metrics())
    first = batcher.submit(image(0))
    assert echo.entered.wait(30)
    return batcher, first


def test_each_image_gets_its_own_row_back(echo: Echo) -> None:
    batcher = Batcher(echo, 4, Metrics())
    futures = [batcher.submit(image(i)) for i in range(20)]
    assert [value(future) for future in futures] == list(range(20))
    asyncio.run(batcher.close())


def test_a_batch_is_whatever_became_ready_meanwhile_up_to_the_largest(echo: Echo) -> None:
    batcher, _ = busy(echo, max_batch=3)
    for i in range(1, 6):
        batcher.submit(image(i))
    echo.open.set()
    asyncio.run(batcher.close())
    assert echo.batches == [[0], [1, 2, 3], [4, 5]]


def test_an_image_that_nobody_waits_for_is_not_inferred(echo: Echo) -> None:
    batcher, _ = busy(echo, max_batch=8)
    futures = [batcher.submit(image(i)) for i in (1, 2, 3)]
    assert futures[1].cancel()
    echo.open.set()
    asyncio.run(batcher.close())
    assert echo.batches == [[0], [1, 3]]


def test_a_vector_that_is_not_finite_fails_its_own_image_only(echo: Echo) -> None:
    batcher, _ = busy(echo, max_batch=8)
    futures = [batcher.submit(image(x)) for x in (1, np.nan, np.inf, 4)]
    echo.open.set()
    assert (value(futures[0]), value(futures[3])) == (1, 4)
    for future in futures[1:3]:
        with pytest.raises(FloatingPointError):
            future.result(30)
    asyncio.run(batcher.close())


def test_a_failed_inference_fails_its_batch_and_the_thread_lives_on(echo: Echo) -> None:
    batcher, first = busy(echo, max_batch=2)
    futures = [batcher.submit(image(x)) for x in (-1, 2, 3, 4)]
    echo.open.set()
    for future in futures[:2]:
        with pytest.raises(RuntimeError, match="-1"):
            future.result(30)
    assert [value(future) for future in (first, *futures[2:])] == [0, 3, 4]
    assert batcher.alive
    asyncio.run(batcher.close())
    assert not batcher.alive


def test_two_slots_infer_side_by_side_and_either_may_hang_the_service() -> None:
    both, stay = threading.Barrier(3), threading.Event()

    class Meeting:
        def embed(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            both.wait(30)  # passes only if two are in here at once
            if pixels[0, 0] == 1:
                stay.wait(30)
            return {"aligned": pixels}

    batcher = Batcher(Meeting(), 1, Metrics(), stuck_seconds=0.05, slots=2)
    first, second = batcher.submit(image(0)), batcher.submit(image(1))
    both.wait(30)
    assert value(first) == 0
    time.sleep(0.1)
    assert not batcher.alive
    stay.set()
    assert value(second) == 1
    assert batcher.alive
    asyncio.run(batcher.close())
    assert not batcher.alive


def test_many_slots_give_each_image_its_own_row_and_end_together(echo: Echo) -> None:
    batcher = Batcher(echo, 3, Metrics(), slots=4)
    futures = [batcher.submit(image(i)) for i in range(200)]
    asyncio.run(batcher.close())
    assert [value(future) for future in futures] == list(range(200))
    with pytest.raises(ServiceError):
        batcher.submit(image(0)).result(30)


def test_closing_finishes_what_is_queued(echo: Echo) -> None:
    batcher, first = busy(echo, max_batch=2)
    futures = [first, *(batcher.submit(image(i)) for i in range(1, 6))]
    echo.open.set()
    asyncio.run(batcher.close())
    assert [value(future) for future in futures] == list(range(6))


def test_one_bad_photo_leaves_nothing_admitted_and_names_the_first_bad_one() -> None:
    class Ones:
        def embed(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            return {"aligned": np.ones((len(pixels), 2), np.float32)}

    metrics = Metrics()
    decoders, spec = DecodePool(1, PixelLimits(), stuck_seconds=30), PixelSpec(height=4, width=4, resize="squash")
    admission = Admission(most=4, max_wait=1, full=4, pace=0.01, metrics=metrics)
    norms = Norms(metrics.norm, "toy", {})
    embedder = Embedder(Batcher(Ones(), 2, metrics), decoders, spec, admission, metrics, norms)
    good = encoded(photo(0))
    with pytest.raises(ServiceError, match="image 1") as caught:
        asyncio.run(embedder.embed([good, b"bad", good, b"worse"], Timings()))
    assert caught.value.index == 1
    assert asyncio.run(embedder.embed([good] * 9, Timings()))["aligned"].shape == (9, 2)
    asyncio.run(embedder.close())


def test_timings_of_the_same_stage_add_up() -> None:
    timings = Timings()
    timings.add("read", 1.0)
    timings.add("read", 2.0)
    with timings.measure("decode"):
        pass
    assert timings.stages["read"] == 3.0
    assert timings.stages["decode"] >= 0


@pytest.mark.parametrize("answer", ["raises", "nan"])
def test_a_failed_inference_is_a_500_and_the_next_request_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def broken(self: Any, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if answer == "raises":
            raise RuntimeError("a secret of the machine")
        return {name: np.full((len(pixels), 5), np.nan, np.float32) for name in ("aligned", "base")}

    client = serve(raise_bugs=False)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "embed", broken)
        reply = client.post("/embed", content=encoded(photo(0)), headers=PNG)
    assert (reply.status_code, reply.json()["title"], reply.json()["code"]) == (500, "This is a bug", "internal")
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert "secret" not in reply.text
    assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 200
    assert client.get("/health/live").status_code == 200


def test_a_failed_inference_leaves_no_image_admitted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(raise_bugs=False)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "embed", lambda *_: {})
        client.post("/embed", content=encoded(photo(0)), headers=PNG)
    lines = client.get("/metrics").text.splitlines()
    assert "alignet_admitted_images 0.0" in lines
    assert 'alignet_errors_total{kind="internal"} 1.0' in lines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_live_fails_once_the_inference_thread_has_died(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(self: Any, pixels: NDArray[Any]) -> Any:
        raise SystemExit

    client = serve(raise_bugs=False)
    monkeypatch.setattr(OnnxEngine, "embed", deadly)
    reply = client.post("/embed", content=encoded(photo(0)), headers=PNG)
    assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
    assert (client.get("/health/live").status_code, client.get("/health/ready").status_code) == (500, 503)
    assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 503


def test_more_threads_than_images_lose_none(serve: Serve) -> None:
    client = serve(max_batch=2, decode_threads=4)
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(client.post, "/embed", content=encoded(photo(i)), headers=PNG) for i in range(30)]
        assert [job.result().status_code for job in jobs] == [200] * 30
    assert "alignet_admitted_images 0.0" in client.get("/metrics").text.splitlines()
