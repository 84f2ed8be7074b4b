"""Waiting for other threads: order, what fails, what is given up, and threads that never answer."""

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from app import waiting
from app.errors import ServiceError


def wait_for(futures: list[Future[Any]], *, alive: bool = True, every: bool = False) -> list[Any]:
    return asyncio.run(waiting.results(futures, lambda: alive, "it hangs", every=every))


def test_results_come_in_order_whichever_thread_ends_first() -> None:
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(lambda k=k: time.sleep(0.03 * (3 - k)) or k) for k in range(3)]
        assert wait_for(jobs) == [0, 1, 2]
    assert wait_for(jobs) == [0, 1, 2]  # over before anyone waits
    assert wait_for([]) == []


def test_the_first_failure_ends_the_wait_and_what_has_not_started_never_does() -> None:
    gate = threading.Event()
    failed: Future[Any] = Future()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait, 10)
        waiting_one = pool.submit(lambda: "never")
        failed.set_exception(KeyError("x"))
        with pytest.raises(KeyError):
            wait_for([waiting_one, failed])
        assert waiting_one.cancelled()
        gate.set()


def test_with_every_a_failure_stands_in_its_place() -> None:
    good, bad = Future[Any](), Future[Any]()
    threading.Timer(0.02, good.set_result, ["good"]).start()
    bad.set_exception(KeyError("x"))
    first, second = wait_for([bad, good], every=True)
    assert isinstance(first, KeyError) and second == "good"


def test_threads_that_hang_or_give_up_are_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.01)
    for dead in (Future[Any](), Future[Any]()):
        with pytest.raises(ServiceError, match="it hangs"):
            wait_for([dead], alive=False)
        assert dead.cancelled()
        with pytest.raises(ServiceError, match="given up"):
            wait_for([dead], every=True)
