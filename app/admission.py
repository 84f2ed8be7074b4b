"""What may come in: bytes of bodies beside unread replies, and images by their count and the wait that is predicted.

Everything here runs on the event loop, so nothing is locked. The pace (seconds an image takes while the
service has always a next one) is measured end to end, so it holds for any engine and any mixture of
decoding and inference: busy time divided by images finished. Time counts as busy only while there is
enough work to fill every stage, or while the limit itself keeps work out; a quiet service learns nothing
from the latency of a lonely image, which is longer than an image's share of a full pipeline.

A burst may queue for long, a crowd that does not end may not: every image would wait as long as the first burst
made it, and nothing would be gained, since the pipeline is full anyway. So the wait that is let in falls once
the service has had no pause for a while (as CoDel bounds a standing queue, RFC 8289).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.errors import ServiceError
from app.metrics import Metrics

WINDOW = 256
"""Finished images after which older ones count half."""
PRIOR = 4
"""How many images the pace measured at the start counts for."""
BURST_SECONDS = 0.4
"""Time without a pause after which a queue is no burst any more."""


class ByteBudget:
    """Bytes in memory: of bodies as they arrive, and of replies that their clients have not taken yet.

    A client that sends nothing holds nothing. A reply cannot be refused any more; its bytes keep new bodies out.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most = most
        self.held = 0
        self._metrics = metrics
        metrics.held_bytes.set_function(lambda: float(self.held))

    def require(self, n: int) -> None:
        """Raises ServiceError 429 unless n more bytes fit; holds nothing."""
        if self.held and self.held + n > self.most:
            self._metrics.rejected.labels("bytes").inc()
            raise ServiceError(
                "overloaded",
                f"{self.held} bytes of requests and unread replies are in memory; at most {self.most}. Try again.",
                limit=self.most,
                retry_after=1.0,
            )

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes n more bytes, or raises ServiceError 429; all are given back at the end."""
        mine = 0

        def take(n: int) -> None:
            nonlocal mine
            if self.held > mine:  # alone, a request may fill the memory: its own limit is smaller
                self.require(n)
            mine += n
            self.held += n

        try:
            yield take
        finally:
            self.held -= mine


@dataclass
class House:
    """Images of all models in this process: together they take its memory."""

    images: int = 0


class Admission:
    """Images of one model being decoded, queued and inferred.

    Args:
        most: images of all models at once; one that has none yet may go beyond it by a request.
        max_wait: seconds that a new image may be predicted to wait for those before it.
        steady_wait: the same once there was no pause for `BURST_SECONDS`; never below what half fills the pipeline.
        full: images that keep every decode thread and the engine busy.
        pace: seconds an image takes, as the warm-up suggests.
        house: where the images of all models are counted.
        clock: seconds, the event loop's.
    """

    def __init__(
        self,
        *,
        most: int,
        max_wait: float,
        steady_wait: float = math.inf,
        full: int,
        pace: float,
        metrics: Metrics,
        house: House | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.images = 0
        self._most = most
        self.max_wait = max_wait
        self._steady_wait = steady_wait
        self._full = full
        self._prior = pace
        self._metrics = metrics
        self._house = house or House()
        self._clock = clock
        self._since = self._paused = clock()
        self._enough = full
        self._busy = 0.0
        self._done = 0.0

    @property
    def pace(self) -> float:
        """Seconds between two finished images while there is always a next one."""
        return (PRIOR * self._prior + self._busy) / (PRIOR + self._done)

    @property
    def wait(self) -> float:
        """Seconds until what is admitted now is predicted to be done."""
        return self.images * self.pace

    @property
    def _allowed(self) -> float:
        """Seconds of wait that are let in now."""
        if self._since - self._paused < BURST_SECONDS:
            return self.max_wait
        return min(self.max_wait, max(self._steady_wait, self._full / 2 * self.pace))

    @property
    def _saturated(self) -> bool:
        return self.images >= self._enough

    def require(self, n: int, until: float = math.inf) -> None:
        """Raises ServiceError 429 unless n images may come in and be done by `until`, a time of the clock.

        A request that comes alone is always let in: its prediction may be wrong, and nobody else would
        ever correct it.
        """
        self._settle()
        if not self.images:
            return
        wait, allowed = self.wait, self._allowed
        if self._house.images + n > self._most:
            detail = f"{self._house.images} images are being served; at most {self._most}."
            self._refuse("count", detail, self._most)
        if wait > allowed:
            detail = f"the images before yours take {wait:.2f} s more; at most {allowed:.2g} s are let in now."
            self._refuse("wait", detail, allowed)
        if wait + n * self.pace > until - self._clock():
            detail = f"your answer would take about {wait + n * self.pace:.2f} s, longer than its deadline."
            self._refuse("deadline", detail, None)

    @contextlib.contextmanager
    def admit(self, n: int, until: float = math.inf) -> Iterator[None]:
        """Count n images in for the length of the block, or raise as `require` does."""
        self.require(n, until)
        with self.count(n):
            yield

    @contextlib.contextmanager
    def count(self, n: int) -> Iterator[None]:
        """Count n images in for the length of the block, whatever is there; who calls it has asked `require`."""
        self._change(n)
        try:
            yield
        except BaseException:
            self._change(-n)
            raise
        else:
            if self._saturated:
                self._done += n
            self._change(-n)
            if self._done > WINDOW:
                self._busy, self._done = self._busy / 2, self._done / 2

    def _change(self, n: int) -> None:
        self._settle()
        self.images += n
        self._house.images += n
        if not self.images:
            self._enough = self._full

    def _settle(self) -> None:
        now = self._clock()
        if self._saturated:
            self._busy += now - self._since
        if not self.images:  # fewer is no pause: when a batch ends, most of a crowd is done at once
            self._paused = now
        self._since = now

    def _refuse(self, reason: str, detail: str, limit: float | None) -> None:
        self._metrics.rejected.labels(reason).inc()
        self._enough = min(self._enough, self.images)  # it is the limit that keeps work out
        raise ServiceError("overloaded", f"{detail} Try again.", limit=limit, retry_after=self.wait)
