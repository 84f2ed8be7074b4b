"""The engine that asks a Triton server over gRPC, and never serves vectors of another model.

One client lives as long as the app. Batching is Triton's: a request's images go out at once, in calls
of at most the served `max_batch_size`, and Triton's dynamic batcher merges calls of different requests.

A watch asks Triton every `CHECK_SECONDS`, and at once when a call has failed. Triton must have the
model, with the bundle's fingerprints in its configuration and the manifest's input and outputs; after
any failure it must also give the golden vectors. Until it does, `away` says why, and requests are
refused without asking Triton: that is the circuit breaker, and the watch is what closes it again.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.engine import EngineUnavailable, Vectors
from app.errors import ServiceError
from app.metrics import Metrics
from app.timings import Timings
from contract.bundle import Bundle, BundleError, check_golden
from contract.graph import check_graph
from contract.manifest import GRAPH_INPUT

if TYPE_CHECKING:
    from tritonclient.grpc.aio import InferenceServerClient

log = logging.getLogger("alignet")

CHECK_SECONDS = 2.0
"""Time between two looks at the served model: for at most this long can another one go unnoticed."""
PROBE_SECONDS = 5.0
"""Time one look may take, before Triton counts as away."""
ATTEMPTS = 3
PAUSE_SECONDS = 0.05
"""Before the second attempt; twice as long before the third, each up to half as much more or less."""

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
_ELEMENTS = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}

_CHANNEL: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # gRPC's own are up to 2 minutes: too long to notice that Triton is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A host that vanished without a word is noticed while a call waits.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Triton stands in the same network; a proxy for the internet is not meant for it.
    ("grpc.enable_http_proxy", 0),
]


class _Lost(Exception):
    """The connection could not be made, or broke before the answer was there."""


class _Unfit(Exception):
    """Triton answered, but not with what this bundle needs."""


class _Gone(_Unfit):
    """Triton answered that it has no such model; it may be loading or ending."""


def open_triton(bundle: Bundle, url: str, metrics: Metrics) -> "TritonEngine":
    """The engine of a bundle on a Triton server, which need not be there yet. Call it on the event loop.

    Raises:
        EngineUnavailable: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc.aio import InferenceServerClient
    except ImportError as error:
        raise EngineUnavailable(
            f"triton_url is set, but tritonclient is missing ({error}); run: pip install 'alignet-serve[triton]'."
        ) from error
    return TritonEngine(bundle, InferenceServerClient(url, channel_args=_CHANNEL), url, metrics)


class TritonEngine:
    """See `app.engine.Engine`. Made on the event loop that it then serves."""

    submit = None
    """Its client belongs to the event loop."""

    def __init__(self, bundle: Bundle, client: "InferenceServerClient", url: str, metrics: Metrics) -> None:
        self.away: str | None = "Triton has not been reached yet."
        self._bundle = bundle
        self._client = client
        self._url = url
        self._metrics = metrics
        self._max_batch = 1
        self._answered = -PROBE_SECONDS  # when Triton last gave vectors
        self._wake = asyncio.Event()
        self._watch = asyncio.create_task(self._keep_watch(), name="triton watch")

    @property
    def alive(self) -> bool:
        """Whether the watch still runs."""
        return not self._watch.done()

    async def close(self) -> None:
        """Stop watching and close the connection."""
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        await self._client.close()

    async def embed(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """See `Engine`."""
        if self.away:
            raise ServiceError("engine_away", self.away, retry_after=CHECK_SECONDS)
        start = time.perf_counter()
        try:
            vectors = await self._embed_all(pixels, timings.until)
        except _Lost as error:
            self._open_circuit("Triton does not answer.", error)
            raise ServiceError("engine_away", "Triton does not answer.", retry_after=CHECK_SECONDS) from error
        except _Gone as error:
            self._open_circuit(str(error), error)
            raise ServiceError("engine_away", str(error), retry_after=CHECK_SECONDS) from error
        except _Unfit as error:
            self._wake.set()  # one bad answer may be the photo's fault: the watch finds out
            log.warning("Triton at %s: %s", self._url, error)
            raise ServiceError("engine_failed", "Triton gave no usable answer; the log says which.") from error
        except (TimeoutError, asyncio.CancelledError):
            self._wake.set()  # slow, or hanging: the watch finds out
            raise
        timings.add("inference", time.perf_counter() - start)
        return vectors

    async def _embed_all(self, pixels: Sequence[NDArray[Any]], until: float) -> Vectors:
        step = self._max_batch
        calls = [
            asyncio.ensure_future(self._call(np.stack(pixels[i : i + step]), until))
            for i in range(0, len(pixels), step)
        ]
        try:
            parts = await asyncio.gather(*calls)
        finally:
            for call in calls:  # if one failed or nobody waits, the others need not be answered
                call.cancel()
        return {space: np.concatenate([part[space] for part in parts]) for space in self._bundle.manifest.spaces}

    async def _call(self, batch: NDArray[Any], until: float) -> Vectors:
        """One batch; tried again only if the connection failed, which embeds nothing twice for anyone."""
        self._metrics.batch.observe(len(batch))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._infer(batch, until)
            except _Lost as error:
                pause = PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
                if attempt == ATTEMPTS or asyncio.get_running_loop().time() + pause >= until:
                    raise
                log.info("Triton at %s: %s; trying again", self._url, error)
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _infer(self, batch: NDArray[Any], until: float) -> Vectors:
        """One call. Raises _Lost, _Unfit, TimeoutError, or ServiceError where Triton's queue is full."""
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        remaining = until - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise TimeoutError
        bounded = remaining < float("inf")
        given = InferInput(GRAPH_INPUT, list(batch.shape), DATATYPES[str(batch.dtype)])
        given.set_data_from_numpy(batch)
        spaces = self._bundle.manifest.spaces
        try:
            result = await self._client.infer(
                self._bundle.manifest.name,
                [given],
                outputs=[InferRequestedOutput(space) for space in spaces],
                timeout=int(remaining * 1e6) if bounded else None,  # microseconds in Triton's queue
                client_timeout=remaining if bounded else None,  # the deadline of the call
            )
        except InferenceServerException as error:
            raise _fault(error) from error
        self._answered = time.monotonic()
        vectors: Vectors = {}
        for space, stated in spaces.items():
            try:
                matrix = result.as_numpy(space)
            except ValueError as error:  # fewer bytes than its shape needs
                raise _Unfit(f"output {space!r} is malformed: {error}") from error
            if matrix is None or matrix.shape != (len(batch), stated.size) or matrix.dtype != np.float32:
                found = None if matrix is None else f"{matrix.dtype} {matrix.shape}"
                raise _Unfit(f"output {space!r} is {found}; expected float32 {(len(batch), stated.size)}")
            if not np.isfinite(matrix).all():
                raise _Unfit(f"output {space!r} is not finite")
            vectors[space] = matrix
        return vectors

    # --- the watch ----------------------------------------------------------------------------

    def _open_circuit(self, reason: str, error: Exception) -> None:
        if self.away != reason:
            log.error(
                "Triton at %s cannot serve model %s: %s", self._url, self._bundle.manifest.name, str(error) or reason
            )
        self.away = reason

    async def _keep_watch(self) -> None:
        while True:
            golden = self._wake.is_set() or self.away is not None
            self._wake.clear()
            await self._look(golden=golden)
            await asyncio.sleep(CHECK_SECONDS / 4)  # however many calls fail, no more looks than this
            if self.away is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS * 3 / 4):
                        await self._wake.wait()

    async def _look(self, *, golden: bool) -> None:
        """Check Triton once, and open or close the circuit."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._check(golden=golden)
        except (_Lost, TimeoutError) as error:
            if isinstance(error, TimeoutError) and time.monotonic() - self._answered < PROBE_SECONDS:
                log.info("Triton at %s is busy", self._url)  # it answers others: the queue is long
                self._wake.set()
            else:
                self._open_circuit("Triton does not answer.", error)
        except ServiceError as error:  # its queue is full: busy is not broken
            log.info("Triton at %s: %s", self._url, error.detail)
            self._wake.set()
        except _Unfit as error:
            self._open_circuit(str(error), error)
        except BundleError as error:  # its message names our folders, which are no client's business
            self._open_circuit("Triton's model is not this bundle's: other inputs, outputs or vectors.", error)
        except Exception as error:
            log.exception("looking at Triton failed")
            self._open_circuit("Triton's model cannot be checked; the log says why.", error)
        else:
            if self.away is not None and golden:
                log.info("Triton at %s serves model %s, verified", self._url, self._bundle.manifest.name)
                self.away = None

    async def _check(self, *, golden: bool) -> None:
        """Raises a BundleError, or what `_infer` raises, unless the served model is this bundle's."""
        from tritonclient.utils import InferenceServerException

        name = self._bundle.manifest.name
        try:
            config = (await self._client.get_model_config(name)).config
            ready = await self._client.is_model_ready(name)
        except InferenceServerException as error:
            raise _fault(error) from error
        if not ready:
            raise _Unfit(f"Triton has model {name!r}, but it is not ready.")
        for space, stated in self._bundle.manifest.spaces.items():
            served = config.parameters[f"fingerprint.{space}"].string_value
            if served != stated.fingerprint:
                raise _Unfit(
                    f"Triton serves another model {name!r} than this bundle: space {space!r} has fingerprint "
                    f"{served or 'none'!r} there and {stated.fingerprint!r} here. Give both the same bundle."
                )
        if config.max_batch_size < 1:
            raise _Unfit(f"Triton's model {name!r} takes no batches; make it with `python -m export triton`.")
        check_graph(self._bundle, _nodes(config.input), _nodes(config.output))
        self._max_batch = config.max_batch_size
        if golden:
            until = asyncio.get_running_loop().time() + PROBE_SECONDS
            pixels = list(self._bundle.golden.pixels)
            check_golden(self._bundle, await self._embed_all(pixels, until))


def _nodes(tensors: Any) -> list[Any]:
    """Tensors of a Triton configuration, whose dims leave the batch out, as `check_graph` takes them."""
    from tritonclient.grpc.model_config_pb2 import DataType

    names = {number: name for name, number in DataType.items()}
    nodes = []
    for tensor in tensors:
        element = names.get(tensor.data_type, "of an unknown type")
        shape = [None, *tensor.dims]
        nodes.append(SimpleNamespace(name=tensor.name, type=_ELEMENTS.get(element, element), shape=shape))
    return nodes


def _fault(error: Any) -> Exception:
    """What an InferenceServerException means here: _Lost, _Unfit, TimeoutError or ServiceError.

    Triton says UNAVAILABLE of its own queue too; only its words tell that from a lost connection.
    """
    status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
    if status == "DEADLINE_EXCEEDED" or (status == "UNAVAILABLE" and "timeout expired" in message.lower()):
        return TimeoutError(message)
    if status == "UNAVAILABLE" and "maximum queue size" in message.lower():
        return ServiceError("overloaded", "Triton's queue is full. Try again.", retry_after=1)
    if status in ("UNAVAILABLE", "CANCELLED"):
        return _Lost(message)
    if status == "NOT_FOUND":
        return _Gone(f"Triton does not serve the model: {message[:300]}.")
    return _Unfit(f"Triton says {status}: {message[:300]}")
