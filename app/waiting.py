"""Waiting for other threads: their results, unless the thread that should give them has died or hangs."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from app.errors import ServiceError

T = TypeVar("T")

LOOK_SECONDS = 0.25
"""Time between two looks at the threads that are waited for."""


def broken(what: str) -> ServiceError:
    """What a request gets whose thread has died or hangs."""
    return ServiceError("not_ready", f"{what}; the service is broken and must be restarted.", retry_after=5)


async def results(
    futures: Sequence["asyncio.Future[T]"], alive: Callable[[], bool], what: str, *, every: bool = False
) -> list[T | BaseException]:
    """Results in order; with `every`, an exception stands in the place of its result.

    Whatever ends the wait, what has not started is cancelled.

    Raises:
        ServiceError: 503 as soon as `alive` says that the rest will not come; `what` says why.
        Exception: the first of them, without `every`.
    """
    pending = set(futures)
    try:
        while pending:
            ends = asyncio.ALL_COMPLETED if every else asyncio.FIRST_EXCEPTION
            done, pending = await asyncio.wait(pending, timeout=LOOK_SECONDS, return_when=ends)
            if not every:
                for future in done:
                    future.result()
            if pending and not alive():
                raise broken(what)
        return [future.exception() or future.result() for future in futures]
    finally:
        for future in futures:
            # A cancelled job that has not started never starts; an exception nobody asks for is no news.
            if not future.cancel() and not future.cancelled():
                future.exception()
