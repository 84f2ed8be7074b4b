"""The inference threads of this process and the queue of ready tensors before them.

    admission -> decode threads -> queue -> inference threads

A batch is whatever is ready when one of them is free, up to `max_batch`: nothing ever waits for a batch
to fill, because on a CPU waiting buys nothing. The queue needs no bound of its own: no more images can be
in it than were admitted. A failed image fails alone; a failed inference fails its own batch, and the
thread lives on. Where Triton is the engine, its own batcher does all that, and there is no queue here.
"""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from app import waiting
from app.engine import Graph, Inferred, Vectors
from app.metrics import Metrics
from app.timings import Timings

CLOSE_SECONDS = 5.0
"""How long closing waits for the threads. Requests are over by then: each finishes one batch, or hangs."""


class _Item(NamedTuple):
    """One image in the queue; nobody waits for it after `until`, a time of the event loop's clock."""

    pixels: NDArray[Any]
    until: float
    future: "Future[Inferred]"


class Batcher:
    """The engine of this process: the inference threads and the queue before them.

    Args:
        graph: what infers; from several threads at once where there are several slots.
        slots: batches inferred side by side, each in a thread of its own.
        stuck_seconds: longer than any batch may take; one that takes longer hangs.
    """

    away: str | None = None

    def __init__(
        self, graph: Graph, max_batch: int, metrics: Metrics, stuck_seconds: float = math.inf, *, slots: int = 1
    ) -> None:
        self._graph = graph
        self._max_batch = max_batch
        self._metrics = metrics
        self._stuck_seconds = stuck_seconds
        self._began: dict[int, float] = {}  # thread to when its batch began
        self._ended = False
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"inference-{i}", daemon=True) for i in range(max(1, slots))
        ]
        metrics.queues.append(self._queue.qsize)
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether every inference thread still runs, and no batch has been in one for too long."""
        late = time.monotonic() - self._stuck_seconds
        return not self._ended and all(began > late for began in list(self._began.values()))

    def submit(
        self, pixels: NDArray[Any], until: float = math.inf, answer: "Future[Inferred] | None" = None
    ) -> "Future[Inferred]":
        """Queue one image; cancelling its answer, or `until`, drops it before inference. See `Engine`."""
        future: Future[Inferred] = answer or Future()
        self._queue.put(_Item(pixels, until, future))
        if self._ended:  # after the put, so that an end between the two is not missed
            self._refuse_queued()
        return future

    async def embed(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """See `Engine`. Images of other requests may share the batch."""
        asked = time.perf_counter()
        futures = [self.submit(image, timings.until) for image in pixels]
        rows = cast(list[Inferred], await waiting.results(futures, lambda: self.alive, "inference hangs"))
        timings.add("queue", max(0.0, min(row.started for row in rows) - asked))
        timings.add("inference", max(row.ended for row in rows) - min(row.started for row in rows))
        return {space: np.stack([row.vectors[space] for row in rows]) for space in rows[0].vectors}

    async def close(self) -> None:
        """Finish what is queued, then end the threads; one that hangs is left behind."""
        self._queue.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, until - time.monotonic()))
        with contextlib.suppress(ValueError):  # closed before
            self._metrics.queues.remove(self._queue.qsize)

    def _run(self) -> None:
        try:
            while self._serve_one_batch():
                pass
        finally:
            self._ended = True
            self._refuse_queued()

    def _serve_one_batch(self) -> bool:
        """Wait for an image, infer it with what else is ready; False once closed."""
        batch: list[_Item] = []
        item = self._queue.get()
        while item is not None:
            if item.future.set_running_or_notify_cancel():  # False: nobody waits for it any more
                if time.monotonic() < item.until:
                    batch.append(item)
                else:
                    item.future.set_exception(TimeoutError())
            if len(batch) == self._max_batch:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        if item is None:
            self._queue.put(None)  # for the other threads
        if batch:
            self._infer(batch)
        return item is not None

    def _infer(self, batch: list[_Item]) -> None:
        self._metrics.batch.observe(len(batch))
        started, me = time.perf_counter(), threading.get_ident()
        self._began[me] = time.monotonic()
        try:
            vectors = self._graph.embed(np.stack([item.pixels for item in batch]))
        except Exception as error:  # the batch is lost, the thread is not
            for item in batch:
                item.future.set_exception(error)
            return
        except BaseException:
            self._ended = True
            for item in batch:
                item.future.set_exception(waiting.broken("an inference thread has ended"))
            raise
        finally:
            del self._began[me]
        ended = time.perf_counter()
        for i, item in enumerate(batch):
            row = {space: matrix[i] for space, matrix in vectors.items()}
            if all(np.isfinite(vector).all() for vector in row.values()):
                item.future.set_result(Inferred(row, started, ended))
            else:
                item.future.set_exception(FloatingPointError("the graph gave a vector that is not finite"))

    def _refuse_queued(self) -> None:
        closing = False
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                closing |= item is None
                if item is not None and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(waiting.broken("an inference thread has ended"))
        if closing:
            self._queue.put(None)
