"""When the client asks again, and when it gives up; over a stub transport, without a wait."""

import asyncio
import inspect
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignet_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    Overloaded,
    Retries,
    SpaceMismatch,
    Unavailable,
)
from alignet_client.retrying import Attempts, retry_after
from alignet_client.wire import Reply

MODELS = {"models": [{"name": "toy", "description": "", "alignment": "none", "fingerprint": "f"}]}
LIMITS = {"max_images": 2, "max_body_bytes": 10**6, "max_image_bytes": 10**5}


def refused(status: int, code: str = "overloaded", **headers: str) -> httpx2.Response:
    body = {"code": code, "detail": "later", "status": status}
    return httpx2.Response(status, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have slept."""
    out: list[float] = []

    async def sleep(seconds: float) -> None:
        out.append(seconds)

    monkeypatch.setattr(time, "sleep", out.append)
    monkeypatch.setattr("alignet_client.aio.asyncio.sleep", sleep)
    return out


Answer = Callable[[httpx2.Request], httpx2.Response]


def sync_models(answer: Answer, **options: Any) -> Any:
    with Client("http://stub", transport=httpx2.MockTransport(answer), **options) as client:
        return client.models()


def async_models(answer: Answer, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://stub", transport=httpx2.MockTransport(answer), **options) as client:
            return await client.models()

    return asyncio.run(run())


def script(*outcomes: httpx2.Response | type[httpx2.TransportError]) -> tuple[Answer, list[int]]:
    """An answer a request, the last again and again; and a list that grows with each."""
    seen: list[int] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        outcome = outcomes[min(len(seen), len(outcomes) - 1)]
        seen.append(1)
        if isinstance(outcome, httpx2.Response):
            return httpx2.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)
        raise outcome("broken", request=request)

    return answer, seen


both = pytest.mark.parametrize("models", [sync_models, async_models])
GOOD = httpx2.Response(200, json=MODELS)


@both
@pytest.mark.parametrize(
    "first",
    [
        refused(429, Retry_After="3"),
        refused(503, "not_ready", Retry_After="3"),
        httpx2.Response(502, text="bad gateway"),
        httpx2.Response(504, text="gateway timeout"),
        httpx2.ConnectError,
        httpx2.ReadError,
        httpx2.RemoteProtocolError,
        httpx2.ReadTimeout,
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(models: Any, first: Any, pauses: list[float]) -> None:
    answer, seen = script(first, first, GOOD)
    assert models(answer)[0].name == "toy"
    assert len(seen) == 3
    assert len(pauses) == 2
    if isinstance(first, httpx2.Response) and "retry-after" in first.headers:
        assert all(3 <= pause <= 3.3 for pause in pauses)
    else:
        assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1


@both
@pytest.mark.parametrize(
    ("reply", "error"),
    [(refused(504, "deadline_exceeded"), DeadlineExceeded), (refused(502, "engine_failed"), Unavailable)],
)
def test_what_would_fail_again_is_asked_once(models: Any, reply: Any, error: Any, pauses: list[float]) -> None:
    answer, seen = script(reply)
    with pytest.raises(error):
        models(answer)
    assert (len(seen), pauses) == (1, [])


@both
def test_the_tries_are_counted_and_the_last_refusal_is_raised(models: Any, pauses: list[float]) -> None:
    answer, seen = script(refused(429, Retry_After="1"))
    with pytest.raises(Overloaded, match="later") as caught:
        models(answer, retries=Retries(tries=4))
    assert (len(seen), caught.value.retry_after) == (4, 1)
    answer, seen = script(httpx2.ConnectError)
    with pytest.raises(ConnectionFailed, match=r"http://stub.* after 4 tries: ConnectError: broken"):
        models(answer, retries=Retries(tries=4))
    assert len(seen) == 4


@both
def test_a_wait_beyond_the_deadline_is_not_begun(models: Any, pauses: list[float]) -> None:
    answer, seen = script(refused(503, "not_ready", Retry_After="30"))
    with pytest.raises(Unavailable):
        models(answer, retries=Retries(deadline=20))
    assert (len(seen), pauses) == (1, [])


@both
def test_an_answer_that_trickles_ends_with_the_deadline(models: Any) -> None:
    class Slow(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self) -> Any:
            for _ in range(100):
                time.sleep(0.02)
                yield b" "

        async def __aiter__(self) -> Any:
            for _ in range(100):
                await asyncio.sleep(0.02)
                yield b" "

    start = time.monotonic()
    with pytest.raises(ConnectionFailed, match="too slowly"):
        models(lambda request: httpx2.Response(200, stream=Slow()), retries=Retries(deadline=0.1, tries=2))
    assert time.monotonic() - start < 1


@given(
    tries=st.integers(1, 20), deadline=st.floats(0.1, 100), asked=st.none() | st.integers(0, 60), chance=st.floats(0, 1)
)
def test_pauses_keep_to_retry_after_and_together_within_the_deadline(
    tries: int, deadline: float, asked: int | None, chance: float
) -> None:
    now = 0.0
    attempts = Attempts(Retries(tries=tries, deadline=deadline), clock=lambda: now, uniform=lambda: chance)
    headers = {} if asked is None else {"retry-after": str(asked)}
    count = 1
    while (pause := attempts.after(Reply(429, headers, b""))) is not None:
        assert (pause >= asked) if asked is not None else (0 < pause <= 10)
        now += pause
        count += 1
    assert count <= tries
    assert now < deadline


def test_retry_after_as_a_date_of_a_proxy() -> None:
    def seconds(text: str) -> float | None:
        return retry_after(Reply(503, {"retry-after": text}, b""))

    soon = seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True))
    assert soon is not None
    assert 17 < soon <= 20
    assert seconds(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
    assert [seconds(text) for text in ("7", " 7 ", "soon", "", "-1")] == [7, 7, None, None, None]


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"deadline": 0}, {"deadline": float("nan")}, {"first": -1}])
def test_retries_that_make_no_sense(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Retries(**wrong)


def changing(fingerprints: list[str], *, honest: bool) -> Answer:
    """A service whose model changes; an honest one refuses another space than expected."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/models":
            return httpx2.Response(200, json=MODELS)
        if request.url.path == "/models/toy":
            return httpx2.Response(200, json=MODELS["models"][0] | {"spaces": {}, "limits": LIMITS})
        body = request.read()
        now = fingerprints.pop(0)
        if honest and b"expect_fingerprint" in body and now.encode() not in body:
            return refused(409, "space_mismatch")
        rows = body.count(b"filename=")
        headers = {"X-Embedding-Shape": f"{rows}x3", "X-Space-Fingerprint": now}
        return httpx2.Response(200, headers=headers, content=np.ones((rows, 3), "<f4").tobytes())

    return answer


@pytest.mark.parametrize("honest", [True, False])
def test_a_model_that_changes_in_the_middle_ends_the_run(honest: bool) -> None:
    for fingerprints, good in ((["aaaa"] * 3, True), (["aaaa", "aaaa", "bbbb"], False)):
        with Client("http://stub", transport=httpx2.MockTransport(changing(fingerprints, honest=honest))) as client:
            if good:
                assert client.embed([b"x"] * 5).shape == (5, 3)
                continue
            with pytest.raises(SpaceMismatch):
                client.embed([b"x"] * 5)


def test_the_asynchronous_client_notices_it_too() -> None:
    async def run() -> None:
        answer = changing(["aaaa", "aaaa", "bbbb", "aaaa"], honest=False)
        async with AsyncClient("http://stub", transport=httpx2.MockTransport(answer)) as client:
            await client.embed([b"x"] * 8)

    with pytest.raises(SpaceMismatch, match="'bbbb', but 'aaaa'"):
        asyncio.run(run())


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def public(kind: type) -> dict[str, list[tuple[str, Any]]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)
