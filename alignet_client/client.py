"""The client for ordinary programs; `alignet_client.aio` has the same, method for method, for asyncio."""

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client import asking, wire
from alignet_client.embedding import Progress, Run, reporting
from alignet_client.errors import AligNetError
from alignet_client.images import Image, Limits, batches
from alignet_client.results import Embeddings, Kernel, ModelCard, ModelSummary, OddOneOut, Similarities, SpaceName
from alignet_client.retrying import Attempts, Retries
from alignet_client.wire import Call, Reply


class Client:
    """A connection to AligNet Serve; close it, or use it in a `with` block. Threads may share one.

    Where the service is busy (429), not ready (503) or cannot be reached, a request waits as long as the service
    says, with some chance in it, and is sent again, within the limits of `retries`.

    Args:
        url: of the service; without one, the variable ALIGNET_URL, or http://localhost:8000.
        key: the API key; without one, the variable ALIGNET_KEY, or none.
        model: name of the model to ask; the one served if not given.
        retries: patience with one request.
        timeout: seconds to wait for a connection, or for the next bytes of an answer.
        transport: httpx2 transport instead of the network's, for tests and special needs.

    Raises:
        ValueError: the URL or key cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        model: str | None = None,
        retries: Retries | None = None,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._http = httpx2.Client(**asking.connection(url, key, timeout), transport=transport)
        self._model = model
        self._retries = retries or Retries()
        self._timeout = timeout
        self._limits: Limits | None = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def embed(
        self,
        images: Iterable[Image],
        *,
        space: SpaceName = "aligned",
        normalize: bool = False,
        batch: int = 16,
        progress: Progress = False,
        expect_fingerprint: str | None = None,
    ) -> NDArray[np.float32]:
        """Vectors [n, d] of all images, in their order. One bad image fails the call; `embed_each` goes on.

        Args:
            images: paths, URLs, bytes, PIL images, or uint8 RGB arrays; read when their turn comes.
            space: `base` is the backbone before alignment.
            normalize: scale vectors to length 1, which is a space of its own.
            batch: images of one request, at most; the service's own limit holds too.
            progress: True for a bar, or a function that is told how many more are done.
            expect_fingerprint: refuse any other space.

        Raises:
            OSError: a file cannot be read.
            TypeError: something is no image.
            ValueError: there are no images.
            SpaceMismatch: not the space expected, or another one than at the start.
            AligNetError: any other of `alignet_client.errors`; `index` and `image` name the image.
        """
        run = Run(self._options(space, expect_fingerprint, normalize=normalize), each=False)
        return self._embed(run, images, batch, progress).vectors

    def embed_each(
        self,
        images: Iterable[Image],
        *,
        space: SpaceName = "aligned",
        normalize: bool = False,
        batch: int = 16,
        progress: Progress = False,
        expect_fingerprint: str | None = None,
    ) -> Embeddings:
        """As `embed`, but bad images and unreadable files are named in the result, with the fingerprint.

        Raises:
            TypeError: something is no image.
            ValueError: there are no images.
            SpaceMismatch: not the space expected, or another one than at the start.
            AligNetError: a fault of the request, not of one image.
        """
        run = Run(self._options(space, expect_fingerprint, normalize=normalize), each=True)
        return self._embed(run, images, batch, progress)

    def odd_one_out(
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
        """Which of three is the odd one, for each triplet, in one request.

        Args:
            images: as `embed` takes them.
            vectors: [n, d] instead of images.
            triplets: positions in images or vectors; not needed for exactly three.
            space: the space to judge in, and that of `vectors`.
            min_margin: abstain where the top probability leads by less.
            max_entropy: abstain where the normalised entropy is above.
            explain: show which parts of the images made the answer; slow, and for few triplets only.
            expect_fingerprint: refuse any other space.

        Raises:
            OSError: a file cannot be read.
            ValueError: not either images or vectors.
            AligNetError: any of `alignet_client.errors`; `index` names the image, vector or triplet.
        """
        asked = {"min_margin": min_margin, "max_entropy": max_entropy, "explain": explain or None}
        options = self._options(space, expect_fingerprint, **asked)
        return wire.odd_one_out_of(self._send(asking.odd_one_out(images, vectors, triplets, options)))

    def similarity(
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
        """Similarities [n, m] of all pairs of one list, or of queries with candidates, in one request.

        Args:
            images: as `embed` takes them.
            vectors: [n, d] instead of images.
            queries: images, or vectors [n, d].
            candidates: images, or vectors [m, d].
            kernel: the space's own if not given.
            space: the space of the vectors.
            expect_fingerprint: refuse any other space.

        Raises:
            OSError: a file cannot be read.
            ValueError: neither one list, nor queries and candidates.
            AligNetError: any of `alignet_client.errors`; candidates count on from the queries in `index`.
        """
        given = {"images": images, "vectors": vectors, "queries": queries, "candidates": candidates}
        call = asking.similarity(given, self._options(space, expect_fingerprint, kernel=kernel))
        return wire.similarities_of(self._send(call))

    def models(self) -> list[ModelSummary]:
        """The models served. Raises AligNetError."""
        return wire.models_of(self._send(wire.MODELS))

    def aliases(self) -> dict[str, dict[str, float]]:
        """The names that stand for several models, each with its models and their weights. Raises AligNetError."""
        return wire.aliases_of(self._send(wire.MODELS))

    def model(self, name: str | None = None) -> ModelCard:
        """The card of a model, by default that of this client. Raises AligNetError: NotFound, for one."""
        name = name or self._model or self.models()[0].name
        return wire.card_of(self._send(wire.model_call(name)))

    def ready(self) -> bool:
        """Whether the service would take requests now; asks once."""
        try:
            return self._send(wire.READY, Retries(tries=1)).status == 200
        except AligNetError:
            return False

    def _options(self, space: SpaceName, expect_fingerprint: str | None, **more: Any) -> dict[str, Any]:
        return {"model": self._model, "space": space, "expect_fingerprint": expect_fingerprint, **more}

    def _embed(self, run: Run, images: Iterable[Image], size: int, progress: Progress) -> Embeddings:
        if self._limits is None:
            self._limits = wire.limits_of(self.model(self.models()[0].name))  # of the service, so of any model
        with reporting(progress, images) as done:
            for batch in batches(images, size, self._limits):
                if (call := run.call(batch)) is not None:
                    run.take(batch, self._send(call))
                done(len(batch.payloads) + len(batch.faults))
        return run.result()

    def _send(self, call: Call, retries: Retries | None = None) -> Reply:
        """The answer, good or bad, after as many tries as it takes. Raises ConnectionFailed."""
        attempts = Attempts(retries or self._retries)
        while True:
            try:
                reply = self._once(call, attempts)
                pause = attempts.after(reply)
                if pause is None:
                    return reply
            except asking.HOPELESS as error:
                raise asking.failed(error, self._http.base_url, attempts) from error
            except httpx2.TransportError as error:
                pause = attempts.after(None)
                if pause is None:
                    raise asking.failed(error, self._http.base_url, attempts) from error
            time.sleep(pause)

    def _once(self, call: Call, attempts: Attempts) -> Reply:
        arguments = asking.arguments(call, min(self._timeout, attempts.left()))
        request = self._http.build_request(call.method, call.path, **arguments)
        response = self._http.send(request, stream=True)
        try:
            pieces = []
            for piece in response.iter_bytes():
                pieces.append(piece)
                if attempts.late():  # the timeout is that of a piece; many small ones have none
                    raise httpx2.ReadTimeout("the answer came too slowly", request=request)
            return Reply(response.status_code, response.headers, b"".join(pieces))
        finally:
            response.close()
