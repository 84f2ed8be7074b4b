"""Work that threads do ahead of who needs its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int, name: str) -> Iterator[Iterator[R]]:
    """The results of `work` in the order of `items`, by threads that are at most `depth` items ahead.

    What `work` raises is raised at its item. Leaving the block drops what has not begun and waits for nothing.

    A context and not a bare generator: after an error a traceback keeps a generator open until the collector of
    garbage ends it, in whatever thread that runs. If that thread is only just starting, it holds the lock that every
    thread needs to end (`threading._shutdown_locks_lock`), so that waiting for threads there stops the process.

    Args:
        work: called in the threads, once for each item.
        items: drawn in the thread that asks for results.
        threads: how many at most.
        depth: items begun beyond the one that is asked for.
        name: with which the names of the threads begin.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield _in_order(pool, work, items, depth)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
