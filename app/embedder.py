"""Encoded images to vectors: admission, decoding, engine; shared by all requests of one model."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import waiting
from app.admission import Admission
from app.cache import Row, VectorCache, pixel_key
from app.decoding import Decoded, DecodePool
from app.engine import Engine, Inferred, Submit, Vectors
from app.errors import ServiceError
from app.metrics import Metrics, Norms, format_of
from app.timings import Timings
from contract.pixels import ImageError, PixelSpec


class Embedder:
    """Encoded images in, vectors out.

    Args:
        decoders: of the whole process; whoever made them closes them.
        spec: what the engine's pixels are.
    """

    def __init__(
        self,
        engine: Engine,
        decoders: DecodePool,
        spec: PixelSpec,
        admission: Admission,
        metrics: Metrics,
        norms: Norms,
        cache: VectorCache | None = None,
    ) -> None:
        self.engine = engine
        self._decoders = decoders
        self._spec = spec
        self.admission = admission
        self._metrics = metrics
        self._norms = norms
        self._cache = cache

    @property
    def alive(self) -> bool:
        """False once the process must be restarted to embed again."""
        return self.engine.alive and self._decoders.alive

    async def close(self) -> None:
        """Finish queued work and end the engine."""
        await self.engine.close()

    async def embed(self, images: Sequence[bytes], timings: Timings) -> Vectors:
        """Vectors of encoded images, in their order; identical files are decoded and embedded once.

        Args:
            images: n encoded files.
            timings: receives decode, queue and inference; `until` is when nobody waits any more.

        Returns:
            {space: [n, size]} float32.

        Raises:
            ServiceError: too much admitted, an image (named by index) that cannot be used, or what the
                engine raises.
            TimeoutError: `timings.until` is over.
        """
        rows = await self._rows(images, timings, partial=False)
        return {space: np.stack([row[space] for row in rows if not isinstance(row, ServiceError)]) for space in rows[0]}

    async def embed_each(self, images: Sequence[bytes | ServiceError], timings: Timings) -> list[Row | ServiceError]:
        """As `embed`, but an image that cannot be used leaves its error in the place of its vectors.

        Args:
            images: n encoded files, or what was wrong before there was a file.
            timings: as for `embed`.
        """
        return await self._rows(images, timings, partial=True)

    async def embed_pixels(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """As `embed`, of images that the client has made pixels of.

        Args:
            pixels: n tensors [3, height, width] as the spec has them.
            timings: as for `embed`.

        Raises:
            ServiceError, TimeoutError: as for `embed`.
        """
        with self.admission.admit(len(pixels), timings.until):
            keyed = self._cache is not None
            keys = await asyncio.to_thread(lambda: [pixel_key(tensor) for tensor in pixels]) if keyed else None
            self._metrics.images.labels("pixels").inc(len(pixels))
            named = {str(i).encode(): Decoded(tensor, keys[i] if keys else b"") for i, tensor in enumerate(pixels)}
            rows = await self._infer(named, timings)
        ordered = [rows[name] for name in named]
        return {space: np.stack([row[space] for row in ordered]) for space in ordered[0]}

    async def decode(self, images: Sequence[bytes], timings: Timings) -> list[Decoded]:
        """Pixels of encoded images that were embedded before, which counts them no second time.

        Raises:
            ServiceError, TimeoutError: as for `embed`.
        """
        outcomes = await self._decoders.decode(images, self._spec, timings.until)
        found: list[Decoded] = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ImageError):
                raise ServiceError.of_image(outcome, index) from outcome
            found.append(outcome)
        return found

    async def embed_altered(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """Vectors of pictures that are nobody's photo: no cache, and no figure of what photos look like.

        They count as admitted while they are embedded; the caller has asked `admission.require` for all of them.

        Raises:
            ServiceError, TimeoutError: as for `embed`.
        """
        with self.admission.count(len(pixels)):
            return await self.engine.embed(pixels, timings)

    async def embed_aside(self, image: bytes, timings: Timings) -> Row:
        """Vectors of one image that no request waits for: neither admitted nor counted, and nothing is kept.

        Raises:
            ServiceError, TimeoutError: as for `embed`.
        """
        (outcome,) = await self._decoders.decode([image], self._spec, timings.until)
        if isinstance(outcome, ImageError):
            raise ServiceError.of_image(outcome, 0) from outcome
        vectors = await self.engine.embed([outcome.pixels], timings)
        return {space: matrix[0] for space, matrix in vectors.items()}

    async def _rows(self, images: Sequence[bytes | ServiceError], timings: Timings, *, partial: bool) -> list[Any]:
        first: dict[bytes, int] = {}
        for i, image in enumerate(images):
            if isinstance(image, bytes):
                first.setdefault(image, i)
        with self.admission.admit(len(first), timings.until):
            if len(first) == len(images) == 1 and self._cache is None and (submit := self.engine.submit):
                found = await self._row(next(iter(first)), submit, timings)
                if isinstance(found, Inferred):
                    return [found.vectors]
                if isinstance(found, ImageError) and partial:
                    return [ServiceError.of_image(found, 0)]
                try:
                    raise ServiceError.of_image(found, 0) if isinstance(found, ImageError) else found
                finally:
                    del found  # see `_row`
            start = time.perf_counter()
            outcomes = await self._decoders.decode(list(first), self._spec, timings.until)
            timings.add("decode", time.perf_counter() - start)
            known: dict[bytes, Row | ServiceError] = {}
            tensors: dict[bytes, Decoded] = {}
            for (image, index), outcome in zip(first.items(), outcomes, strict=True):
                self._count(image, outcome)
                if not isinstance(outcome, ImageError):
                    tensors[image] = outcome
                elif partial:
                    known[image] = ServiceError.of_image(outcome, index)
                else:
                    raise ServiceError.of_image(outcome, index) from outcome
            known |= await self._infer(tensors, timings)
        if not partial:
            return [known[image] for image in images if isinstance(image, bytes)]
        rows = [known[image] if isinstance(image, bytes) else image for image in images]
        # A file given twice is one file, but each place names its own index.
        return [row.at(i) if isinstance(row, ServiceError) else row for i, row in enumerate(rows)]

    async def _row(self, image: bytes, submit: Submit, timings: Timings) -> Inferred | BaseException:
        """The vectors of one image, which goes from its decode thread to the inference threads past the event loop.

        What is wrong is returned, not raised: an error that is raised holds the frames that it came through, and where
        a frame holds the error, itself or in a future, only the collector of garbage frees either.

        Raises:
            ServiceError: 503 where a thread hangs.
        """
        start = decoded = time.perf_counter()
        future: Future[Inferred] = Future()

        def go_on(job: "Future[Decoded]") -> None:
            nonlocal decoded
            decoded = time.perf_counter()
            if job.cancelled():
                future.cancel()
            elif (error := job.exception()) is None:
                submit(job.result().pixels, timings.until, future)
            elif future.set_running_or_notify_cancel():
                future.set_exception(error)

        job = self._decoders.submit(image, self._spec, timings.until)
        job.add_done_callback(go_on)
        try:
            (outcome,) = await waiting.results([future], lambda: self.alive, "a thread hangs", every=True)
        finally:
            job.cancel()  # nobody waits for it now; one that has started is not stopped
        timings.add("decode", decoded - start)
        if isinstance(outcome, Inferred | ImageError):
            self._count(image, outcome)
        if isinstance(outcome, Inferred):
            timings.add("queue", max(0.0, outcome.started - decoded))
            timings.add("inference", outcome.ended - outcome.started)
            self._norms.observe({space: vector[None] for space, vector in outcome.vectors.items()})
        return outcome

    async def _infer(self, tensors: Mapping[bytes, Decoded], timings: Timings) -> dict[bytes, Row]:
        """The vectors of each image, from the cache where it has them."""
        rows: dict[bytes, Row] = {}
        if self._cache is not None:
            for image, tensor in tensors.items():
                if (row := self._cache.get(tensor.key)) is not None:
                    rows[image] = row
        new = [image for image in tensors if image not in rows]
        if new:
            vectors = await self.engine.embed([tensors[image].pixels for image in new], timings)
            self._norms.observe(vectors)
            for k, image in enumerate(new):
                rows[image] = {space: matrix[k] for space, matrix in vectors.items()}
                if self._cache is not None:
                    self._cache.put(tensors[image].key, rows[image])
        return rows

    def _count(self, image: bytes, outcome: object) -> None:
        refused = isinstance(outcome, ImageError)
        self._metrics.images.labels("refused" if refused else "decoded").inc()
        if refused:
            self._metrics.undecodable.labels(format_of(image)).inc()
