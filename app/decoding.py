"""The decode threads: encoded images to tensors, dropped before they start where nobody waits any more."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from numpy.typing import NDArray

from app import waiting
from app.cache import pixel_key
from contract.pixels import ImageError, PixelLimits, PixelSpec, load_sized

CLOSE_SECONDS = 5.0
"""How long closing waits for a thread. Requests are over by then: it finishes one image, or hangs."""


class Decoded(NamedTuple):
    """One image [3, height, width], the key of its pixels (empty where nobody asked for it), and its photo's size.

    The size is (width, height) after the photo's orientation; zeros where the client sent pixels.
    """

    pixels: NDArray[Any]
    key: bytes
    size: tuple[int, int] = (0, 0)


class DecodePool:
    """Threads that decode for every model. Pillow releases the GIL, so they really run side by side.

    Args:
        stuck_seconds: longer than any image may take; a thread that takes longer is lost.
        keys: whether to give the keys of pixels too.
    """

    def __init__(self, threads: int, limits: PixelLimits, stuck_seconds: float, *, keys: bool = False) -> None:
        self._keys = keys
        self.threads = threads
        self._limits = limits
        self._stuck_seconds = stuck_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._running: dict[int, float] = {}  # thread to when its image began

    @property
    def stuck(self) -> int:
        """Threads that have sat on one image for too long."""
        late = time.monotonic() - self._stuck_seconds
        return sum(began < late for began in list(self._running.values()))

    @property
    def alive(self) -> bool:
        """False once every thread is stuck."""
        return self.stuck < self.threads

    @property
    def busy(self) -> bool:
        """Whether a thread is decoding."""
        return bool(self._running)

    async def decode(self, images: Sequence[bytes], spec: PixelSpec, until: float) -> list[Decoded | ImageError]:
        """Each image as a tensor of `spec`, or its fault.

        Raises:
            TimeoutError: `until` had passed before an image began.
            ServiceError: 503 where every thread hangs.
        """
        jobs = [self.submit(image, spec, until) for image in images]
        found = await waiting.results(jobs, lambda: self.alive, "image decoding hangs", every=True)
        tensors: list[Decoded | ImageError] = []
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ImageError):
                raise outcome
            tensors.append(outcome)
        return tensors

    def submit(self, image: bytes, spec: PixelSpec, until: float) -> "Future[Decoded]":
        """Queue one image; its future has what `decode` gives, and a callback of it runs in the decode thread."""
        return self._executor.submit(self._one, image, spec, until)

    async def close(self) -> None:
        """End the threads; one that hangs is left behind."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + CLOSE_SECONDS
        while self.busy and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def _one(self, image: bytes, spec: PixelSpec, until: float) -> Decoded:
        now = time.monotonic()
        if now > until:  # the event loop's clock; it may be too busy to have cancelled this
            raise TimeoutError
        me = threading.get_ident()
        self._running[me] = now
        try:
            pixels, size = load_sized(image, spec, self._limits)
            return Decoded(pixels, pixel_key(pixels) if self._keys else b"", size)
        finally:
            del self._running[me]
