"""The client for asyncio: `alignet_client.client` method for method, with several requests at once."""

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client import asking, wire
from alignet_client.embedding import Progress, Run, reporting
from alignet_client.errors import AligNetError
from alignet_client.images import Batch, Image, Limits, batches
from alignet_client.results import Embeddings, Kernel, ModelCard, ModelSummary, OddOneOut, Similarities, SpaceName
from alignet_client.retrying import Attempts, Retries
from alignet_client.wire import Call, Reply


class AsyncClient:
    """As `alignet_client.Client`, for one event loop; use it in an `async with` block.

    Files are read and encoded in threads.

    Args:
        url: see `Client`.
        key: see `Client`.
        model: see `Client`.
        retries: see `Client`.
        timeout: see `Client`.
        concurrency: requests at once, over all calls of this client.
        transport: see `Client`.

    Raises:
        ValueError: the URL or key cannot be one, or `concurrency` is below 1.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        model: str | None = None,
        retries: Retries | None = None,
        timeout: float = 30.0,
        concurrency: int = 4,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; expected 1 or more")
        self._http = httpx2.AsyncClient(**asking.connection(url, key, timeout), transport=transport)
        self._model = model
        self._retries = retries or Retries()
        self._timeout = timeout
        self._concurrency = concurrency
        self._sending = asyncio.Semaphore(concurrency)
        self._limits: Limits | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def embed(
        self,
        images: Iterable[Image],
        *,
        space: SpaceName = "aligned",
        normalize: bool = False,
        batch: int = 16,
        progress: Progress = False,
        expect_fingerprint: str | None = None,
    ) -> NDArray[np.float32]:
        """Vectors [n, d]; see `Client.embed`. Batches are sent several at once."""
        run = Run(self._options(space, expect_fingerprint, normalize=normalize), each=False)
        return (await self._embed(run, images, batch, progress)).vectors

    async def embed_each(
        self,
        images: Iterable[Image],
        *,
        space: SpaceName = "aligned",
        normalize: bool = False,
        batch: int = 16,
        progress: Progress = False,
        expect_fingerprint: str | None = None,
    ) -> Embeddings:
        """See `Client.embed_each`. Batches are sent several at once."""
        run = Run(self._options(space, expect_fingerprint, normalize=normalize), each=True)
        return await self._embed(run, images, batch, progress)

    async def odd_one_out(
        self,
        images: Iterable[Image] | None = None,
        *,
        vectors: ArrayLike | None = None,
        triplets: Iterable[Sequence[int]] | None = None,
        space: SpaceName = "aligned",
        min_margin: float | None = None,
        max_entropy: float | None = None,
        explain: bool = False,
        expect_fingerprint: str | None = None,
    ) -> OddOneOut:
        """See `Client.odd_one_out`."""
        asked = {"min_margin": min_margin, "max_entropy": max_entropy, "explain": explain or None}
        options = self._options(space, expect_fingerprint, **asked)
        call = await asyncio.to_thread(asking.odd_one_out, images, vectors, triplets, options)
        return wire.odd_one_out_of(await self._send(call))

    async def similarity(
        self,
        images: Iterable[Image] | None = None,
        *,
        vectors: ArrayLike | None = None,
        queries: Iterable[Image] | NDArray[Any] | None = None,
        candidates: Iterable[Image] | NDArray[Any] | None = None,
        kernel: Kernel | None = None,
        space: SpaceName = "aligned",
        expect_fingerprint: str | None = None,
    ) -> Similarities:
        """See `Client.similarity`."""
        given = {"images": images, "vectors": vectors, "queries": queries, "candidates": candidates}
        options = self._options(space, expect_fingerprint, kernel=kernel)
        return wire.similarities_of(await self._send(await asyncio.to_thread(asking.similarity, given, options)))

    async def models(self) -> list[ModelSummary]:
        """See `Client.models`."""
        return wire.models_of(await self._send(wire.MODELS))

    async def aliases(self) -> dict[str, dict[str, float]]:
        """See `Client.aliases`."""
        return wire.aliases_of(await self._send(wire.MODELS))

    async def model(self, name: str | None = None) -> ModelCard:
        """See `Client.model`."""
        name = name or self._model or (await self.models())[0].name
        return wire.card_of(await self._send(wire.model_call(name)))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return (await self._send(wire.READY, Retries(tries=1))).status == 200
        except AligNetError:
            return False

    def _options(self, space: SpaceName, expect_fingerprint: str | None, **more: Any) -> dict[str, Any]:
        return {"model": self._model, "space": space, "expect_fingerprint": expect_fingerprint, **more}

    async def _embed(self, run: Run, images: Iterable[Image], size: int, progress: Progress) -> Embeddings:
        if self._limits is None:
            self._limits = wire.limits_of(await self.model((await self.models())[0].name))
        coming = batches(images, size, self._limits)
        ahead = asyncio.Semaphore(self._concurrency)  # batches in memory

        async def one(batch: Batch) -> None:
            try:
                if (call := run.call(batch)) is not None:
                    run.take(batch, await self._send(call))
                done(len(batch.payloads) + len(batch.faults))
            finally:
                ahead.release()

        with reporting(progress, images) as done:
            try:
                async with asyncio.TaskGroup() as group:
                    while True:
                        await ahead.acquire()
                        batch = await asyncio.to_thread(next, coming, None)
                        if batch is None:
                            break
                        group.create_task(one(batch))
            except ExceptionGroup as errors:
                first = errors.exceptions[0]  # the others were cancelled, or failed beside it
                raise first from first.__cause__
        return run.result()

    async def _send(self, call: Call, retries: Retries | None = None) -> Reply:
        """The answer, good or bad, after as many tries as it takes. Raises ConnectionFailed."""
        async with self._sending:
            attempts = Attempts(retries or self._retries)  # the time of waiting for others does not count
            while True:
                try:
                    reply = await self._once(call, attempts)
                    pause = attempts.after(reply)
                    if pause is None:
                        return reply
                except asking.HOPELESS as error:
                    raise asking.failed(error, self._http.base_url, attempts) from error
                except httpx2.TransportError as error:
                    pause = attempts.after(None)
                    if pause is None:
                        raise asking.failed(error, self._http.base_url, attempts) from error
                await asyncio.sleep(pause)

    async def _once(self, call: Call, attempts: Attempts) -> Reply:
        arguments = asking.arguments(call, min(self._timeout, attempts.left()))
        request = self._http.build_request(call.method, call.path, **arguments)
        try:
            async with asyncio.timeout(attempts.left()):
                response = await self._http.send(request)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the answer came too slowly", request=request) from error
        return Reply(response.status_code, response.headers, response.content)
