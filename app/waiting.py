"""Waiting for other threads: their results, unless the thread that should give them has died or hangs."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from app.errors import ServiceError

T = TypeVar("T")

LOOK_SECONDS = 0.25
"""Time between two looks at the threads that are waited for."""


def broken(what: str) -> ServiceError:
    """What a request gets whose thread has died or hangs."""
    return ServiceError("not_ready", f"{what}; the service is broken and must be restarted.", retry_after=5)


async def results(
    futures: Sequence["Future[T]"], alive: Callable[[], bool], what: str, *, every: bool = False
) -> list[T | BaseException]:
    """Results in order; with `every`, an exception stands in the place of its result.

    Whatever ends the wait, what has not started is cancelled. The event loop is woken once, by the last of them:
    asyncio would wrap each future in one of its own, and go round three times for it.

    Raises:
        ServiceError: 503 as soon as `alive` says that the rest will not come; `what` says why.
        Exception: the first of them, without `every`.
    """
    loop = asyncio.get_running_loop()
    look: asyncio.Future[None] = loop.create_future()
    n, count, enough = len(futures), itertools.count(1), not futures

    def wake() -> None:
        if not look.done():
            look.set_result(None)

    def end() -> None:
        nonlocal enough
        enough = True
        wake()

    def tell(future: "Future[T]") -> None:  # in the thread that ended it
        last = next(count) == n
        failed = not every and (future.cancelled() or future.exception() is not None)
        if (last or failed) and not loop.is_closed():
            loop.call_soon_threadsafe(end)

    try:
        for future in futures:
            future.add_done_callback(tell)
        while not enough:
            timer = loop.call_later(LOOK_SECONDS, wake)
            try:
                await look
            finally:
                timer.cancel()
            if not enough and not alive():
                raise broken(what)
            look = loop.create_future()
        if any(future.cancelled() for future in futures):
            raise broken(f"{what}: it was given up")
        if not every:
            for future in futures:
                if future.done():
                    future.result()
        return [future.exception() or future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()  # a job that has not started never starts
