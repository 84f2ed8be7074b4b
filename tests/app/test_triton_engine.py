"""Triton late, gone, wrong or replaced: each has its status, nothing hangs, and no restart is needed after."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

pytest.importorskip("tritonclient.grpc", reason="install the extra `triton`")

import grpc

from app import triton_engine
from app.engine import EngineUnavailable
from app.errors import ServiceError
from app.main import create_app
from app.settings import Settings
from app.timings import Timings
from tests.stub_triton import StubTriton, Vectors, resetting
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_engine, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(triton_engine, "PROBE_SECONDS", 1.0)


@pytest.fixture
def stub(toy_bundle: Path) -> Iterator[StubTriton]:
    stub = StubTriton(toy_bundle)
    yield stub
    stub.stop()


@pytest.fixture
def client(serve: Serve, stub: StubTriton) -> TestClient:
    return serve(triton_url=stub.address, raise_bugs=False)


def embed(client: TestClient, seed: int = 0, timeout: int = 10_000) -> Any:
    return client.post("/embed", content=encoded(photo(seed)), headers=PNG | {"X-Request-Timeout-Ms": str(timeout)})


def eventually(client: TestClient, status: int) -> Any:
    """The reply of /health/ready once it has that status."""
    until = time.monotonic() + 20
    while (reply := client.get("/health/ready")).status_code != status:
        assert time.monotonic() < until, reply.text
        time.sleep(0.02)
    return reply


def assert_away(reply: Any) -> None:
    assert (reply.status_code, reply.json()["code"]) == (503, "engine_away"), reply.text
    assert int(reply.headers["Retry-After"]) >= 1


def all_ready_again(client: TestClient) -> None:
    eventually(client, 200)
    assert embed(client).status_code == 200


def test_vectors_are_those_of_this_process_in_both_spaces(client: TestClient, serve: Serve, stub: StubTriton) -> None:
    files = [("images", ("a", encoded(photo(seed)), "image/png")) for seed in range(9)]
    stub.batches.clear()
    for space in ("aligned", "base"):
        there, here = (c.post("/embed", files=files, data={"space": space}).json() for c in (client, serve()))
        assert there["fingerprint"] == here["fingerprint"]
        vectors = [[item["embedding"] for item in reply["data"]] for reply in (there, here)]
        np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-5)
    assert sorted(stub.batches) == [1, 1, 4, 4, 4, 4]  # max_batch_size is 4


def test_the_card_names_the_engine(client: TestClient) -> None:
    assert client.get("/models/toy").json()["providers"] == ["triton"]


def test_no_onnx_runtime_is_needed_here(stub: StubTriton, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert embed(serve(triton_url=stub.address)).status_code == 200


def test_without_tritonclient_it_says_what_to_install(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.aio", None)
    app = create_app(Settings(bundle=toy_bundle, triton_url="localhost:1"))
    with pytest.raises(EngineUnavailable, match=r"alignet-serve\[triton\]"), TestClient(app):
        pass  # the lifespan ends with what the bundle's loading ended with


def wide(stub: StubTriton, pixels: Any) -> Vectors:
    return {name: np.zeros((len(pixels), SIZE + 1), np.float32) for name in stub.spaces}


def few(stub: StubTriton, pixels: Any) -> Vectors:
    return {name: rows[1:] for name, rows in stub.honest(pixels, None).items()}


def nan(stub: StubTriton, pixels: Any) -> Vectors:
    return {name: rows * np.float32(np.nan) for name, rows in stub.honest(pixels, None).items()}


def half(stub: StubTriton, pixels: Any) -> Vectors:
    return {"aligned": stub.honest(pixels, None)["aligned"]}


def double(stub: StubTriton, pixels: Any) -> Vectors:
    return {name: rows.astype(np.float64) for name, rows in stub.honest(pixels, None).items()}


def crash(stub: StubTriton, pixels: Any) -> Vectors:
    raise RuntimeError("inference failed")


@pytest.mark.parametrize("answer", [wide, few, nan, half, double, crash])
def test_an_unusable_answer_is_502_then_not_ready_until_triton_is_right(
    client: TestClient, stub: StubTriton, answer: Callable[[StubTriton, Any], Vectors]
) -> None:
    stub.batches.clear()
    stub.answer = lambda pixels, _: answer(stub, pixels)
    reply = embed(client)
    assert (reply.status_code, reply.json()["code"]) == (502, "engine_failed")
    assert_away(eventually(client, 503))
    stub.answer = stub.honest
    all_ready_again(client)


def test_a_photo_that_gives_nan_is_refused_alone(client: TestClient, stub: StubTriton) -> None:
    bad = embed(client, 7).json()["data"][0]["embedding"]

    def poisoned(pixels: Any, context: Any) -> Vectors:
        vectors = stub.honest(pixels, context)
        vectors["aligned"] = np.where(np.isclose(vectors["aligned"], bad).all(1)[:, None], np.nan, vectors["aligned"])
        return {name: rows.astype(np.float32) for name, rows in vectors.items()}

    stub.answer = poisoned
    assert embed(client, 7).status_code == 502
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert (embed(client, 1).status_code, client.get("/health/ready").status_code) == (200, 200)


def test_a_late_answer_is_504_within_the_deadline_that_triton_is_told(client: TestClient, stub: StubTriton) -> None:
    told, release = [], threading.Event()

    def slow(pixels: Any, context: Any) -> Vectors:
        told.append(context.time_remaining())
        release.wait(20)
        return stub.honest(pixels, context)

    stub.answer, start = slow, time.monotonic()
    assert embed(client, timeout=200).status_code == 504
    assert time.monotonic() - start < 1
    stub.answer = stub.honest
    release.set()
    assert 0 < told[0] <= 0.2
    all_ready_again(client)


def test_triton_that_hangs_is_found_out_and_comes_back(client: TestClient, stub: StubTriton) -> None:
    release = threading.Event()
    stub.answer = lambda pixels, context: stub.honest(pixels, context) if release.wait(20) else {}
    assert embed(client, timeout=200).status_code == 504
    assert_away(eventually(client, 503))
    release.set()
    all_ready_again(client)


def test_a_triton_that_is_busy_but_answers_stays_in_service(client: TestClient, stub: StubTriton) -> None:
    looks = []

    def answer(pixels: Any, context: Any) -> Vectors:
        if len(pixels) == 3:  # the watch, which waits in the queue for longer than a look may take
            looks.append(time.sleep(1.5))
        return stub.honest(pixels, context)

    stub.answer = lambda pixels, context: time.sleep(0.3) or stub.honest(pixels, context)  # type: ignore[func-returns-value]
    assert embed(client, timeout=100).status_code == 504
    stub.answer, until = answer, time.monotonic() + 2.5
    while time.monotonic() < until:
        assert embed(client).status_code == 200
    assert looks
    assert client.get("/health/ready").status_code == 200


def test_impatient_clients_do_not_shut_the_others_out(client: TestClient, stub: StubTriton) -> None:
    stub.answer = lambda pixels, context: time.sleep(0.02) or stub.honest(pixels, context)  # type: ignore[func-returns-value]
    for _ in range(30):
        assert embed(client, timeout=5).status_code == 504
        assert embed(client).status_code == 200
        assert client.get("/health/ready").status_code == 200


def test_triton_that_dies_in_a_call_is_503_at_once_and_back_without_a_restart(
    client: TestClient, stub: StubTriton
) -> None:
    entered, release = threading.Event(), threading.Event()
    stub.answer = lambda pixels, context: entered.set() or release.wait(20) or {}  # type: ignore[func-returns-value]
    with ThreadPoolExecutor() as pool:
        job = pool.submit(embed, client)
        assert entered.wait(20)
        killer, start = threading.Thread(target=stub.stop), time.monotonic()
        killer.start()
        assert_away(job.result(20))
        assert time.monotonic() - start < 2
        release.set()
        killer.join()
    assert_away(eventually(client, 503))
    start = time.monotonic()
    assert_away(embed(client))  # the circuit is open: refused without asking
    assert time.monotonic() - start < 0.2
    assert "alignet_ready 0.0" in client.get("/metrics").text.splitlines()
    stub.answer = stub.honest
    stub.start()
    all_ready_again(client)
    assert {"alignet_ready 1.0", "alignet_admitted_images 0.0"} <= set(client.get("/metrics").text.splitlines())


def test_one_lost_call_refuses_all_others_until_triton_has_been_looked_at(
    client: TestClient, stub: StubTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_engine, "CHECK_SECONDS", 60)
    time.sleep(0.5)  # from here on the watch sleeps
    stub.stop()
    assert client.get("/health/ready").status_code == 200
    assert_away(embed(client))
    assert_away(client.get("/health/ready"))
    stub.start()
    stub.batches.clear()
    engine = client.app.state.service.models.current.default.engine  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="does not answer"):  # a request that was admitted before, say
        client.portal.call(engine.embed, [np.zeros((3, 8, 8), np.uint8)], Timings())  # type: ignore[union-attr]
    assert not stub.batches


def test_a_connection_that_is_reset_is_503(client: TestClient, stub: StubTriton) -> None:
    stub.stop()
    with resetting(stub.port):
        assert_away(embed(client))
        assert_away(eventually(client, 503))
    stub.start()
    all_ready_again(client)


def refusing(stub: StubTriton, code: Any, words: str, times: int) -> list[int]:
    """`stub` refuses the first `times` calls; the list counts those that came."""
    calls: list[int] = []

    def answer(pixels: Any, context: Any) -> Vectors:
        calls.append(len(pixels))
        if len(calls) <= times:
            context.abort(code, words)
        return stub.honest(pixels, context)

    stub.answer = answer
    return calls


def test_a_lost_connection_is_tried_again_twice(client: TestClient, stub: StubTriton) -> None:
    calls = refusing(stub, grpc.StatusCode.UNAVAILABLE, "Socket closed", times=2)
    assert (embed(client).status_code, len(calls)) == (200, 3)
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("code", "words", "status", "kind"),
    [
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", 429, "overloaded"),
        ("UNAVAILABLE", "[request id: 1] Request timeout expired", 504, "deadline_exceeded"),
        ("NOT_FOUND", "Request for unknown model: 'toy' has no available versions", 503, "engine_away"),
        ("INTERNAL", "onnx runtime error 6", 502, "engine_failed"),
        ("INVALID_ARGUMENT", "unexpected shape for input 'pixels'", 502, "engine_failed"),
    ],
)
def test_a_refusal_of_triton_itself_is_not_tried_again(
    client: TestClient, stub: StubTriton, code: str, words: str, status: int, kind: str
) -> None:
    calls = refusing(stub, getattr(grpc.StatusCode, code), words, times=1)
    reply = embed(client)
    assert (reply.status_code, reply.json()["code"], calls[0]) == (status, kind, 1)
    assert ("Retry-After" in reply.headers) == (status in (429, 503))
    assert all(size > 1 for size in calls[1:])  # only the watch's own look at the three golden images
    all_ready_again(client)


def test_triton_may_come_later_than_the_app(toy_bundle: Path, stub: StubTriton) -> None:
    stub.stop()
    ready: list[str] = []
    app = create_app(
        Settings(bundle=toy_bundle, triton_url=stub.address), on_ready=lambda model: ready.append(model.name)
    )
    with TestClient(app) as client:
        until = time.monotonic() + 20
        while client.get("/health/ready").json()["detail"] != "Triton does not answer.":
            assert time.monotonic() < until
        assert client.get("/health/live").status_code == 200
        assert_away(embed(client))
        assert not ready
        stub.start()
        all_ready_again(client)
        while not ready:
            assert time.monotonic() < until
        assert ready == ["toy"]


def test_an_app_whose_triton_never_came_ends_at_once(toy_bundle: Path, stub: StubTriton) -> None:
    stub.stop()
    ready: list[str] = []
    app = create_app(Settings(bundle=toy_bundle, triton_url=stub.address), on_ready=lambda _: ready.append("ready"))
    with TestClient(app) as client:
        assert client.get("/health/ready").status_code == 503
        start = time.monotonic()
    assert time.monotonic() - start < 2
    assert not ready


def other_fingerprint(stub: StubTriton) -> str:
    stub.config.parameters["fingerprint.base"].string_value = "0" * 32
    return "another model 'toy'.*'base' has fingerprint '0{32}' there"


def no_fingerprint(stub: StubTriton) -> str:
    del stub.config.parameters["fingerprint.aligned"]
    return "'none' there"


def other_dims(stub: StubTriton) -> str:
    stub.config.input[0].dims[:] = [3, 16, 16]
    return "not this bundle's"


def no_batches(stub: StubTriton) -> str:
    stub.config.max_batch_size = 0
    return "takes no batches"


def other_name(stub: StubTriton) -> str:
    stub.config.name = "tiger"
    return "does not serve the model.*unknown model: 'toy'"


def unloading(stub: StubTriton) -> str:
    stub.ready = False
    return "not ready"


@pytest.mark.parametrize("swap", [other_fingerprint, no_fingerprint, other_dims, no_batches, other_name, unloading])
def test_another_model_behind_the_url_is_refused_with_what_differs(
    client: TestClient, stub: StubTriton, swap: Callable[[StubTriton], str], toy_bundle: Path
) -> None:
    right = type(stub.config).FromString(stub.config.SerializeToString())
    words = swap(stub)
    reply = eventually(client, 503)
    assert_away(reply)
    assert re.search(words, reply.json()["detail"]), reply.text
    assert str(toy_bundle) not in reply.text
    assert_away(embed(client))
    stub.config, stub.ready = right, True
    all_ready_again(client)


def test_a_model_with_our_fingerprint_and_other_vectors_never_becomes_ready(toy_bundle: Path, stub: StubTriton) -> None:
    stub.answer = lambda pixels, _: {name: -rows for name, rows in stub.honest(pixels, None).items()}
    with TestClient(create_app(Settings(bundle=toy_bundle, triton_url=stub.address))) as client:
        until = time.monotonic() + 20
        while "not this bundle's" not in client.get("/health/ready").json()["detail"]:
            assert time.monotonic() < until
        stub.answer = stub.honest
        all_ready_again(client)


def test_a_look_that_asks_for_no_vectors_does_not_bring_a_failed_triton_back(
    client: TestClient, stub: StubTriton
) -> None:
    stub.answer = lambda pixels, _: wide(stub, pixels)
    engine = client.app.state.service.model().engine  # type: ignore[attr-defined]
    assert embed(client).status_code == 502
    eventually(client, 503)
    client.portal.call(partial(engine._look, golden=False))  # type: ignore[union-attr]
    assert engine.away


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", "localhost:", ":8001", "localhost:0", "h:99999"])
def test_a_url_that_is_no_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="host:port"):
        Settings(triton_url=url)


def test_settings_of_the_other_engine_are_refused() -> None:
    with pytest.raises(ValidationError, match="device and max_batch"):
        Settings(triton_url="localhost:8001", device="cuda", max_batch=4)
