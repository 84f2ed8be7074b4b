"""What is let in: bytes, images, and the wait that is predicted for them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission import BURST_SECONDS, Admission, ByteBudget
from app.errors import ServiceError, problem
from app.metrics import Metrics
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock, **options: Any) -> Admission:
    known = {"most": 100, "max_wait": 1.0, "full": 4, "pace": 0.1, "metrics": Metrics(), "clock": clock}
    return Admission(**known | options)


def work(door: Admission, clock: Clock, images: int, seconds: float) -> None:
    """Admit and finish `images` at once, after `seconds`."""
    with door.admit(images):
        clock.now += seconds


def test_the_wait_is_the_images_before_times_the_pace() -> None:
    door = admission(Clock(), pace=0.1)
    with door.admit(3), door.admit(4):
        assert door.wait == pytest.approx(0.7)
    assert door.wait == 0


def test_a_wait_longer_than_allowed_is_refused_with_that_wait() -> None:
    metrics = Metrics()
    door = admission(Clock(), pace=0.1, max_wait=1.0, metrics=metrics)
    with door.admit(11), pytest.raises(ServiceError, match=r"1\.10 s") as caught:
        door.require(1)
    assert (caught.value.kind, caught.value.limit) == ("overloaded", 1.0)
    assert caught.value.retry_after == pytest.approx(1.1)
    assert b'alignet_rejected_total{reason="wait"} 1.0' in metrics.exposition()
    door.require(1)


def test_a_burst_may_wait_longer_than_a_crowd_that_does_not_end() -> None:
    clock = Clock()
    door = admission(clock, pace=0.01, max_wait=1.0, steady_wait=0.2)
    with door.admit(50):
        door.require(1)
        clock.now += BURST_SECONDS * 1.01
        with pytest.raises(ServiceError, match=r"at most 0\.2"):
            door.require(1)


def test_a_pause_makes_the_next_queue_a_burst_again() -> None:
    clock = Clock()
    door = admission(clock, pace=0.01, max_wait=1.0, steady_wait=0.2, full=40)  # the pace is learned at 40 only
    for _ in range(5):
        with door.admit(30):
            clock.now += BURST_SECONDS * 0.9
            door.require(1)
        clock.now += 0.01


def test_a_batch_that_ends_is_no_pause_while_one_image_is_left() -> None:
    clock = Clock()
    door = admission(clock, pace=0.01, max_wait=1.0, steady_wait=0.2, full=40)
    with door.admit(1):
        for _ in range(5):
            with door.admit(20):
                clock.now += 0.1
        with door.admit(30), pytest.raises(ServiceError, match=r"at most 0\.2"):
            door.require(1)


def test_a_crowd_is_let_in_as_far_as_the_pipeline_needs_to_stay_busy() -> None:
    clock = Clock()
    door = admission(clock, pace=1.0, max_wait=10.0, steady_wait=0.2, full=8)
    with door.admit(4):
        clock.now += 1
        door.require(1)
    with door.admit(6):
        clock.now += 1
        with pytest.raises(ServiceError):
            door.require(1)


def test_a_deadline_that_cannot_be_met_is_refused_at_once_but_not_if_nobody_is_before() -> None:
    clock = Clock()
    door = admission(clock, pace=0.1)
    door.require(50, until=clock.now + 0.01)  # a wrong prediction would otherwise shut the door for good
    with door.admit(5):
        door.require(1, until=clock.now + 0.65)
        with pytest.raises(ServiceError, match="deadline"):
            door.require(1, until=clock.now + 0.55)


def test_the_pace_follows_what_a_full_pipeline_does() -> None:
    clock = Clock()
    door = admission(clock, pace=0.1)
    for _ in range(200):
        work(door, clock, 8, 0.4)  # 0.05 s an image
    assert door.pace == pytest.approx(0.05, rel=0.05)
    for _ in range(200):
        work(door, clock, 8, 1.6)
    assert door.pace == pytest.approx(0.2, rel=0.05)


def test_lonely_images_do_not_count_as_the_pace() -> None:
    clock = Clock()
    door = admission(clock, pace=0.01)
    for _ in range(100):
        work(door, clock, 1, 0.5)
        clock.now += 3
    assert door.pace == 0.01


def test_a_pace_that_was_far_too_slow_is_corrected_although_it_lets_almost_nobody_in() -> None:
    clock = Clock()
    door = admission(clock, pace=0.1)
    for _ in range(5):
        work(door, clock, 4, 40.0)
    assert door.pace > 5
    for _ in range(1000):
        with door.admit(1):
            with pytest.raises(ServiceError):
                door.require(1, until=clock.now + 0.02)
            clock.now += 0.01
        if door.pace < 0.2:
            break
    assert door.pace < 0.2


def test_a_service_that_finishes_nothing_grows_ever_more_careful() -> None:
    clock = Clock()
    door = admission(clock, pace=0.01)
    before = door.pace
    with pytest.raises(TimeoutError), door.admit(8):
        clock.now += 10
        raise TimeoutError
    assert door.pace > 10 * before


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 5)), max_size=40))
def test_whatever_happens_the_count_is_bounded_and_comes_back_to_zero(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    door = admission(clock, most=50, max_wait=1e9)
    with ExitStack() as inside:
        for n, seconds in steps:
            clock.now += seconds
            try:
                inside.enter_context(door.admit(n))
            except ServiceError:
                assert door.images + n > 50
            assert 0 <= door.images <= 50
            assert door.pace > 0
    assert door.images == 0


def test_bytes_are_given_back_and_only_a_lonely_body_may_pass_the_bound() -> None:
    budget = ByteBudget(100, Metrics())
    with budget.hold() as take:
        take(60)
        with pytest.raises(ServiceError, match="at most 100"), budget.hold() as other:
            other(30)
            other(30)
        assert budget.held == 60
        take(60)  # alone again
        with pytest.raises(ServiceError):
            budget.require(1)
    assert budget.held == 0
    budget.require(1000)


def test_retry_after_is_the_wait_with_jitter_within_bounds() -> None:
    def after(seconds: float) -> set[int]:
        error = ServiceError("overloaded", "full", retry_after=seconds)
        return {int(problem(error).headers["Retry-After"]) for _ in range(300)}

    assert after(0.01) == {1, 2}
    assert after(10) == {9, 10, 11, 12}
    assert max(after(1000)) <= 36


Events = tuple[threading.Event, threading.Event]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Events]]:
    """From its call on, an inference says when it began, and ends when it may."""
    from app.engine import OnnxEngine

    entered, opened, real = threading.Event(), threading.Event(), OnnxEngine.embed

    def slow(self: Any, pixels: Any) -> Any:
        entered.set()
        assert opened.wait(30)
        return real(self, pixels)

    def shut() -> Events:
        monkeypatch.setattr(OnnxEngine, "embed", slow)
        return entered, opened

    yield shut
    opened.set()


def test_a_busy_service_refuses_by_wait_and_says_so_in_its_metrics(serve: Serve, shut: Callable[[], Events]) -> None:
    client = serve(max_wait=1e-9)
    entered, opened = shut()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/embed", content=encoded(photo(0)), headers=PNG)
        assert entered.wait(30)
        refused = client.post("/embed", content=encoded(photo(1)), headers=PNG)
        lines = client.get("/metrics").text
        opened.set()
        assert first.result(30).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert 'alignet_rejected_total{reason="wait"} 1.0' in lines
    assert "alignet_predicted_wait_seconds 0.0\n" not in lines
    assert "alignet_predicted_wait_seconds 0.0\n" in client.get("/metrics").text


def test_bodies_beyond_the_memory_are_refused_before_they_are_read(serve: Serve, shut: Callable[[], Events]) -> None:
    client = serve(max_body_bytes=4096, max_held_bytes=4096)
    entered, opened = shut()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/embed", content=encoded(photo(0)), headers=PNG)
        assert entered.wait(30)
        assert "alignet_body_bytes 0.0\n" not in client.get("/metrics").text
        refused = client.post("/embed", content=b"x" * 4096, headers=PNG)
        opened.set()
        assert first.result(30).status_code == 200
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (429, "overloaded", 4096)
    assert int(refused.headers["Retry-After"]) >= 1
    assert "alignet_body_bytes 0.0\n" in client.get("/metrics").text


def test_one_body_must_fit_the_memory() -> None:
    from pydantic import ValidationError

    from app.settings import Settings

    with pytest.raises(ValidationError, match="max_held_bytes"):
        Settings(max_body_bytes=4096, max_held_bytes=2048)
