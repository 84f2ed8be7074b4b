"""What serves: the bundle with its engine and threads, and the state of the process around it."""

import asyncio
import hashlib
import hmac
import logging
import time
from importlib.metadata import version
from pathlib import Path

from app.batching import Embedder
from app.engine import cpu_quota, open_engine
from app.errors import ServiceError
from app.metrics import Metrics
from app.schemas import ModelCard, ModelSummary, Options, SpaceCard
from app.settings import Settings
from contract.bundle import Bundle, Manifest, read_bundle, space_fingerprint

log = logging.getLogger("alignet")
VERSION = version("alignet-serve")


class ServedModel:
    """One bundle, verified and warm, with its own inference thread."""

    def __init__(self, bundle: Bundle, settings: Settings, metrics: Metrics) -> None:
        """Opens the engine, which takes seconds. Raises BundleError or EngineUnavailable."""
        cpus = cpu_quota()
        threads = settings.inference_threads or cpus
        decode_threads = settings.decode_threads or min(8, max(1, cpus // 2))
        max_batch = settings.max_batch or (4 if settings.device == "cpu" else 32)
        engine = open_engine(
            bundle,
            device=settings.device,
            threads=threads,
            max_batch=max_batch,
            allow_cpu_fallback=settings.allow_cpu_fallback,
        )
        log.info("%d CPUs: %d inference threads, %d decode threads", cpus, threads, decode_threads)
        self.manifest: Manifest = bundle.manifest
        self.providers = engine.providers
        self.embedder = Embedder(
            engine,
            bundle.manifest.pixels,
            settings.pixel_limits,
            max_batch=max_batch,
            decode_threads=decode_threads,
            max_admitted=settings.max_admitted_images,
            metrics=metrics,
        )

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
            limits=limits,
            providers=self.providers,
        )


class Service:
    """The state one app shares between its requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        self._model: ServedModel | None = None
        self._keys = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.api_keys]

    async def load(self, bundle_path: Path) -> ServedModel:
        """Read, verify and warm the bundle in a thread; the service is ready after this."""
        start = time.perf_counter()

        def open_model() -> ServedModel:
            return ServedModel(read_bundle(bundle_path), self.settings, self.metrics)

        model = await asyncio.to_thread(open_model)
        self._model = model
        fingerprint = model.manifest.spaces["aligned"].fingerprint
        self.metrics.build.labels(VERSION, model.name, fingerprint, model.providers[0]).set(1)
        self.metrics.ready.set(1)
        log.info("model %s is ready after %.2f s, fingerprint %s", model.name, time.perf_counter() - start, fingerprint)
        return model

    async def close(self) -> None:
        """Finish the queued work and end the threads."""
        self.draining = True
        self.metrics.ready.set(0)
        if self._model is not None:
            await asyncio.to_thread(self._model.embedder.close)

    @property
    def alive(self) -> bool:
        """False once a thread that serving needs has died."""
        return self._model is None or self._model.embedder.alive

    @property
    def ready(self) -> bool:
        """Whether requests are served: bundle verified and warm, threads alive, not draining."""
        return self._model is not None and not self.draining and self.alive

    def model(self, name: str | None = None) -> ServedModel:
        """The served model. Raises ServiceError: not ready, or another name."""
        if self._model is None or not self.ready:
            state = (
                "draining" if self.draining else "starting" if self._model is None else "broken and must be restarted"
            )
            raise ServiceError("not_ready", f"the service is {state}.", retry_after=2)
        if name not in (None, self._model.name):
            raise ServiceError("model_not_found", f"the model served here is {self._model.name!r}; see /models.")
        return self._model

    def authorize(self, authorization: str | None) -> None:
        """Raises ServiceError unless the header carries one of the keys. Compares every key, in constant time."""
        if not self._keys:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.encode()).digest()
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServiceError("unauthorized", "send `Authorization: Bearer KEY` with a key of this service.")
