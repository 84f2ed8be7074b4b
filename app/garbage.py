"""Python's cyclic garbage collector, kept away from where it only costs."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collection within the block, which makes many lists that live as long as it does.

    A body or a reply of 100,000 triplets is half a million lists and dicts. Each time some thousand more have been
    made, the collector would walk them again, which took half of such a request's time, and finds nothing. Two
    blocks may overlap: the first that ends collects early for the other, and nothing worse.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_apart() -> None:
    """What is there now stays: modules, models, settings. Collections need not walk it, and come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
