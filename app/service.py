"""What serves: the bundle with its engine, and the state of the process around it."""

import asyncio
import logging
import time
from importlib.metadata import version
from pathlib import Path

from app.admission import Admission, ByteBudget
from app.batching import Batcher
from app.cache import VectorCache
from app.decoding import DecodePool
from app.embedder import Embedder
from app.engine import PROVIDERS, Engine, cpu_quota, open_engine
from app.errors import ServiceError
from app.fetch import Fetcher
from app.keys import Keys
from app.metrics import Metrics, Norms
from app.schemas import ModelCard, ModelSummary, Options, SpaceCard
from app.settings import Settings
from app.tracing import Tracing
from app.triton_engine import CHECK_SECONDS, open_triton
from contract.bundle import Bundle, Manifest, check_golden_pixels, read_bundle, space_fingerprint

log = logging.getLogger("alignet")
VERSION = version("alignet-serve")


class ServedModel:
    """One bundle with the engine that embeds for it.

    Args:
        max_batch: images the engine takes at once.
        pace: seconds an image takes in such a batch, as far as known.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        providers: list[str],
        settings: Settings,
        metrics: Metrics,
        *,
        max_batch: int,
        pace: float,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self.providers = providers
        threads = settings.decode_threads or min(8, max(1, cpu_quota() // 2))
        log.info("%d decode threads", threads)
        cache = VectorCache(settings.cache_images, metrics) if settings.cache_images else None
        decoders = DecodePool(
            threads,
            bundle.manifest.pixels,
            settings.pixel_limits,
            settings.stuck_seconds,
            keys=cache is not None,
        )
        admission = Admission(
            most=settings.max_admitted_images,
            max_wait=settings.max_wait or (1.0 if providers[0] in (PROVIDERS["cpu"], "triton") else 0.25),
            full=threads + 2 * max_batch,
            pace=pace,
            metrics=metrics,
        )
        norms = Norms(metrics.norm, bundle.manifest.name, bundle.golden.vectors)
        self.embedder = Embedder(engine, decoders, admission, metrics, norms, cache)

    @property
    def name(self) -> str:
        """The manifest's name."""
        return self.manifest.name

    def space_fingerprint(self, options: Options, *, normalize: bool = False) -> str:
        """Fingerprint of the space that `options` ask for.

        Raises:
            ServiceError: the bundle lacks that space, or it is not the one the client expects.
        """
        if options.space not in self.manifest.spaces:
            raise ServiceError("invalid_request", f"model {self.name!r} has no space {options.space!r}.")
        actual = space_fingerprint(self.manifest, options.space, normalize=normalize)
        if options.expect_fingerprint not in (None, actual):
            raise ServiceError(
                "space_mismatch",
                f"expected fingerprint {options.expect_fingerprint!r}, but this space has {actual!r}; "
                "its vectors must not be mixed with yours. Embed again, or ask the model that made them.",
            )
        return actual

    def summary(self) -> ModelSummary:
        """One line of the list of models."""
        m = self.manifest
        fingerprint = m.spaces["aligned"].fingerprint
        return ModelSummary(name=m.name, description=m.description, alignment=m.alignment, fingerprint=fingerprint)

    def card(self, limits: dict[str, int | float]) -> ModelCard:
        """The model card: what the manifest states, and the limits in force."""
        m = self.manifest
        fields = m.to_json()
        spaces = {
            name: SpaceCard(
                size=space.size,
                similarity=space.similarity,
                temperature=space.temperature,
                calibrated=space.calibrated,
                calibrated_on=space.calibrated_on,
                fingerprint=space.fingerprint,
                fingerprint_normalized=space_fingerprint(m, name, normalize=True),
            )
            for name, space in m.spaces.items()
        }
        shown = ("created", "license", "base_model", "training", "precision", "tie_rule", "pixels", "figures", "parity")
        return ModelCard(
            **self.summary().model_dump(),
            **{name: fields[name] for name in shown},
            spaces=spaces,
            limits=limits | {"max_wait": self.embedder.admission.max_wait},  # 0 in the settings takes one
            providers=self.providers,
        )


async def open_model(bundle_path: Path, settings: Settings, metrics: Metrics) -> ServedModel:
    """Read and verify a bundle and start its engine, which is warm, or looking for its Triton.

    Raises:
        BundleError: the bundle, its graph or this installation's pixels are not as the manifest states.
        EngineUnavailable: no engine as asked for.
    """
    bundle = await asyncio.to_thread(read_bundle, bundle_path)
    if settings.triton_url:
        await asyncio.to_thread(check_golden_pixels, bundle)
        triton = open_triton(bundle, settings.triton_url, metrics)
        return ServedModel(bundle, triton, ["triton"], settings, metrics, max_batch=8, pace=0.02)
    threads = settings.inference_threads or cpu_quota()
    max_batch = settings.max_batch or (4 if settings.device == "cpu" else 32)
    graph = await asyncio.to_thread(
        open_engine,
        bundle,
        device=settings.device,
        threads=threads,
        max_batch=max_batch,
        allow_cpu_fallback=settings.allow_cpu_fallback,
    )
    log.info("%d inference threads, batches of at most %d", threads, max_batch)
    batcher = Batcher(graph, max_batch, metrics, settings.stuck_seconds)
    return ServedModel(bundle, batcher, graph.providers, settings, metrics, max_batch=max_batch, pace=graph.pace)


class Service:
    """The state one app shares between its requests.

    `leaving` is set when the process was told to end: not ready for a load balancer, but requests are still
    served. `draining` is when the port is closed and no request is left.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.body_bytes = ByteBudget(settings.max_held_bytes, self.metrics)
        self.fetcher: Fetcher | None = None  # opened with the bundle, on the event loop
        self.leaving = False
        self.draining = False
        self.tracing: Tracing | None = None  # opened with the bundle, if asked for
        self._model: ServedModel | None = None
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.metrics.wait.set_function(lambda: self._model.embedder.admission.wait if self._model else 0.0)
        self.metrics.stuck.set_function(lambda: float(self._model.embedder.decoders.stuck) if self._model else 0.0)
        self.keys = Keys(
            [key.get_secret_value() for key in settings.api_keys],
            settings.api_keys_file,
            settings.key_images_per_second,
            max(settings.key_images_per_second, float(settings.max_images)),
            self.metrics,
        )

    async def load(self, bundle_path: Path) -> ServedModel:
        """Read, verify and warm the bundle; the service is ready after this, or already draining."""
        start = time.perf_counter()
        model = await open_model(bundle_path, self.settings, self.metrics)
        if self.settings.fetch_origins:
            settings = self.settings
            self.fetcher = Fetcher(settings.fetch_origins, settings.max_image_bytes, settings.fetch_timeout)
        self._model = model
        while model.engine.away and not self.draining:  # Triton may come later than we do
            await asyncio.sleep(0.05)
        fingerprint = model.manifest.spaces["aligned"].fingerprint
        self.metrics.build.labels(VERSION, model.name, fingerprint, model.providers[0]).set(1)
        log.info(
            "model %s is loaded after %.2f s, fingerprint %s", model.name, time.perf_counter() - start, fingerprint
        )
        return model

    async def close(self) -> None:
        """Finish the queued work and end the threads."""
        self.draining = True
        if self.fetcher is not None:
            await self.fetcher.close()
        if self._model is not None:
            await self._model.embedder.close()

    @property
    def alive(self) -> bool:
        """False once a thread that serving needs has died or hangs."""
        return self._model is None or self._model.embedder.alive

    @property
    def hangs(self) -> bool:
        """Whether closing has left a decode thread behind, for which the interpreter would wait."""
        return self._model is not None and self._model.embedder.decoders.busy

    @property
    def ready(self) -> bool:
        """See `require_ready`: bundle verified, engine there and warm, not about to end."""
        try:
            self.require_ready()
        except ServiceError:
            return False
        return True

    def require_ready(self) -> None:
        """Raises ServiceError 503 unless a load balancer should send requests here."""
        if self.leaving:
            raise ServiceError("not_ready", "the service is draining.", retry_after=2)
        self.model()

    def model(self, name: str | None = None) -> ServedModel:
        """The served model. Raises ServiceError: not ready, or another name."""
        if self._model is None or self.draining or not self.alive:
            state = (
                "draining" if self.draining else "starting" if self._model is None else "broken and must be restarted"
            )
            raise ServiceError("not_ready", f"the service is {state}.", retry_after=2)
        if away := self._model.engine.away:
            raise ServiceError("engine_away", away, retry_after=CHECK_SECONDS)
        if name not in (None, self._model.name):
            raise ServiceError("model_not_found", f"the model served here is {self._model.name!r}; see /models.")
        return self._model
