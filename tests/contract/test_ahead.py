"""Work that threads do ahead: in order, not too far, and what is left of it keeps nobody waiting."""

import threading
from itertools import count, islice

import pytest

from contract.ahead import ahead


def test_results_come_in_order_and_a_fault_at_its_item() -> None:
    with ahead(lambda n: 12 // n, [3, 2, 1, 0, 4], threads=3, depth=2, name="t") as results:
        assert list(islice(results, 3)) == [4, 6, 12]
        with pytest.raises(ZeroDivisionError):
            next(results)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_no_more_is_begun_than_was_asked_for(depth: int) -> None:
    begun: list[int] = []
    with ahead(begun.append, count(), threads=2, depth=depth, name="t") as results:
        next(results)
        assert len(begun) <= depth + 1


def test_of_nothing_there_is_nothing() -> None:
    with ahead(print, [], threads=1, depth=1, name="t") as results:
        assert list(results) == []


def ended(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            thread.join(10)
            assert not thread.is_alive()


def test_leaving_drops_what_has_not_begun_and_waits_for_nothing() -> None:
    """A collector of garbage may be who leaves, in a thread that holds the lock that every thread needs to end."""
    begun, release = threading.Semaphore(0), threading.Event()
    done: list[int] = []

    def work(n: int) -> None:
        begun.release()
        release.wait(20)
        done.append(n)

    opened = ahead(work, range(9), threads=1, depth=3, name="slow")
    results = opened.__enter__()
    asker = threading.Thread(target=lambda: next(results, None))
    asker.start()
    begun.acquire(timeout=10)
    leaver = threading.Thread(target=opened.__exit__, args=(None, None, None))
    leaver.start()
    leaver.join(10)
    assert not leaver.is_alive() and not done
    release.set()
    asker.join(10)
    ended("slow")
    assert done == [0]


def test_a_fault_outside_ends_the_threads_while_its_traceback_is_kept() -> None:
    with pytest.raises(KeyError) as kept, ahead(str, range(99), threads=4, depth=8, name="kept") as results:
        raise KeyError(next(results))
    ended("kept")
    assert kept.tb
