"""From encoded images to vectors: admission, decoding threads, and the inference thread of this process.

    admission (a count of images) -> decode pool -> engine

The engine of this process is the batcher: a queue of ready tensors and one inference thread. A batch
is whatever is ready when that thread is free, up to `max_batch`: nothing ever waits for a batch to
fill, because on a CPU waiting buys nothing. The queue needs no bound of its own: no more images can be
in it than were admitted. A failed image fails alone; a failed inference fails its own batch, and the
thread lives on. Where Triton is the engine, its own batcher does all that, and there is no queue here.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine import Engine, Graph, Vectors
from app.errors import ServiceError
from app.metrics import Metrics
from app.timings import Timings
from contract.pixels import ImageError, PixelLimits, PixelSpec, load_pixels


@dataclass(frozen=True)
class _Row:
    """One image's answer: its vector in each space, and when its batch started and ended."""

    vectors: Mapping[str, NDArray[np.float32]]
    started: float
    ended: float


class Batcher:
    """The engine of this process: the inference thread and the queue before it."""

    away: str | None = None

    def __init__(self, graph: Graph, max_batch: int, metrics: Metrics) -> None:
        self._graph = graph
        self._max_batch = max_batch
        self._metrics = metrics
        self._queue: queue.SimpleQueue[tuple[NDArray[Any], Future[_Row]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread still runs."""
        return self._thread.is_alive()

    def submit(self, pixels: NDArray[Any]) -> Future[_Row]:
        """Queue one image [3, height, width]. Cancelling the future drops it before inference."""
        future: Future[_Row] = Future()
        self._queue.put((pixels, future))
        return future

    async def embed(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """See `Engine`. Images of other requests may share the batch."""
        asked = time.perf_counter()
        rows = await _all([asyncio.wrap_future(self.submit(image)) for image in pixels])
        timings.add("queue", max(0.0, min(row.started for row in rows) - asked))
        timings.add("inference", max(row.ended for row in rows) - min(row.started for row in rows))
        return {space: np.stack([row.vectors[space] for row in rows]) for space in rows[0].vectors}

    async def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        open_ = True
        while open_:
            batch: list[tuple[NDArray[Any], Future[_Row]]] = []
            item = self._queue.get()
            while item is not None:
                if item[1].set_running_or_notify_cancel():  # False: nobody waits for it any more
                    batch.append(item)
                if len(batch) == self._max_batch:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = item is not None
            if batch:
                self._infer(batch)

    def _infer(self, batch: list[tuple[NDArray[Any], Future[_Row]]]) -> None:
        self._metrics.batch.observe(len(batch))
        started = time.perf_counter()
        try:
            vectors = self._graph.embed(np.stack([pixels for pixels, _ in batch]))
        except Exception as error:  # the batch is lost, the thread is not
            for _, future in batch:
                future.set_exception(error)
            return
        ended = time.perf_counter()
        for i, (_, future) in enumerate(batch):
            row = {space: matrix[i] for space, matrix in vectors.items()}
            if all(np.isfinite(vector).all() for vector in row.values()):
                future.set_result(_Row(row, started, ended))
            else:
                future.set_exception(FloatingPointError("the graph gave a vector that is not finite"))


class Embedder:
    """Encoded images in, vectors out; shared by all requests."""

    def __init__(
        self,
        engine: Engine,
        spec: PixelSpec,
        limits: PixelLimits,
        *,
        decode_threads: int,
        max_admitted: int,
        metrics: Metrics,
    ) -> None:
        self._spec = spec
        self._limits = limits
        self.engine = engine
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._max_admitted = max_admitted
        self._metrics = metrics
        self._admitted = 0
        self._seconds_per_image = 0.05  # moving average, for Retry-After

    async def close(self) -> None:
        """Finish queued work and end every thread."""
        await asyncio.to_thread(self._decoders.shutdown, wait=True, cancel_futures=True)
        await self.engine.close()

    @contextlib.contextmanager
    def _admission(self, n: int) -> Iterator[None]:
        """Count n images in, or refuse with 429. A request alone is always admitted."""
        if self._admitted and self._admitted + n > self._max_admitted:
            wait = self._admitted * self._seconds_per_image
            raise ServiceError(
                "overloaded",
                f"{self._admitted} images are being served; at most {self._max_admitted}. Try again in {wait:.1f} s.",
                limit=self._max_admitted,
                retry_after=wait,
            )
        self._admitted += n
        self._metrics.admitted.set(self._admitted)
        try:
            yield
        finally:
            self._admitted -= n
            self._metrics.admitted.set(self._admitted)

    async def embed(self, images: Sequence[bytes], timings: Timings) -> Vectors:
        """Vectors of encoded images, in their order; identical files are decoded and embedded once.

        Args:
            images: n encoded files.
            timings: receives decode, queue and inference.

        Returns:
            {space: [n, size]} float32.

        Raises:
            ServiceError: too much admitted, an image (named by index) that cannot be used, or what the
                engine raises.
        """
        first: dict[bytes, int] = {}
        for i, image in enumerate(images):
            first.setdefault(image, i)
        unique = list(first.values())
        with self._admission(len(unique)):
            start = time.perf_counter()
            tensors = await self._decode([images[i] for i in unique], unique)
            decoded = time.perf_counter()
            vectors = await self.engine.embed(tensors, timings)
        self._learn_cost((time.perf_counter() - start) / len(unique))
        timings.add("decode", decoded - start)
        position = {i: k for k, i in enumerate(unique)}
        order = [position[first[image]] for image in images]
        return {space: matrix[order] for space, matrix in vectors.items()}

    async def _decode(self, images: Sequence[bytes], indices: Sequence[int]) -> list[NDArray[Any]]:
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, load_pixels, image, self._spec, self._limits) for image in images]
        try:
            outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        finally:
            for job in jobs:  # past the deadline, what has not started never starts
                job.cancel()
        tensors: list[NDArray[Any]] = []
        for outcome in outcomes:
            self._metrics.images.labels("refused" if isinstance(outcome, BaseException) else "decoded").inc()
        for index, outcome in zip(indices, outcomes, strict=True):
            if isinstance(outcome, ImageError):
                raise ServiceError.of_image(outcome, index) from outcome
            if isinstance(outcome, BaseException):
                raise outcome
            tensors.append(outcome)
        return tensors

    def _learn_cost(self, seconds: float) -> None:
        self._seconds_per_image += 0.1 * (seconds - self._seconds_per_image)


async def _all(futures: list[asyncio.Future[_Row]]) -> list[_Row]:
    """Results of all; if one fails or the caller is cancelled, the others are cancelled too."""
    try:
        return await asyncio.gather(*futures)
    finally:
        for future in futures:
            future.cancel()
