"""The state of the process around the models: what all requests share, and whether it can serve."""

import asyncio
import contextlib
import logging
import time
from importlib.metadata import version

from app.admission import ByteBudget, House
from app.alias import Alias
from app.decoding import DecodePool
from app.engine import EngineUnavailable, cpu_quota
from app.errors import ServiceError
from app.fetch import Fetcher
from app.judging.collecting import Judging
from app.judging.study import Study
from app.keys import Keys
from app.metrics import Metrics
from app.models import Models, Snapshot, WrongModels
from app.occlusion import Explaining
from app.served import Process, ServedModel, bundle_folders, open_model, read_model
from app.settings import Settings
from app.shadow import Shadow
from app.tracing import Tracing
from app.triton_engine import CHECK_SECONDS
from app.watching import Watch

log = logging.getLogger("alignet")
VERSION = version("alignet-serve")
ENGINE_SECONDS = 10.0
"""How long a reload waits for Triton to serve the new version."""


class Service:
    """The state one app shares between its requests.

    `leaving` is set when the process was told to end: not ready for a load balancer, but requests are still
    served. `draining` is when the port is closed and no request is left.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.body_bytes = ByteBudget(settings.max_held_bytes, self.metrics)
        self.fetcher: Fetcher | None = None  # opened with the bundles, on the event loop
        self.leaving = False
        self.draining = False
        self.tracing: Tracing | None = None  # opened with the bundles, if asked for
        self.models = Models()
        self.shadow: Shadow | None = None
        self.explaining = Explaining(settings.explain_concurrency, self.metrics)
        self.judging: Judging | None = None  # opened with the bundles, if there is a study
        self.decoders = DecodePool(
            settings.decode_threads or min(8, max(1, cpu_quota() // 2)),
            settings.pixel_limits,
            settings.stuck_seconds,
            keys=settings.cache_images > 0,
        )
        self._reloading = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        house = House()
        self.metrics.admitted.set_function(lambda: float(house.images))
        self._process = Process(settings, self.metrics, self.decoders, house)
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.metrics.wait.set_function(
            lambda: max((model.embedder.admission.wait for model in self._current), default=0.0)
        )
        self.metrics.stuck.set_function(lambda: float(self.decoders.stuck))
        self.keys = Keys(
            [key.get_secret_value() for key in settings.api_keys],
            settings.api_keys_file,
            settings.key_images_per_second,
            max(settings.key_images_per_second, float(settings.max_images)),
            self.metrics,
        )
        self.admin_keys = Keys([key.get_secret_value() for key in settings.admin_keys], None, 0, 0, self.metrics)

    @property
    def _current(self) -> list[ServedModel]:
        return list(self.models.current.models.values())

    async def load(self) -> ServedModel:
        """Read, verify and warm the bundles; the service is ready after this, or already draining.

        Returns:
            The model of requests that name none.

        Raises:
            BundleError, EngineUnavailable: see `read_model` and `open_model`.
            WrongModels: see `Snapshot`.
        """
        log.info("%d decode threads", self.decoders.threads)
        opened: list[ServedModel] = []
        try:
            for folder in bundle_folders(self.settings.bundles):  # one by one, to see what memory each takes
                start = time.perf_counter()
                model = await open_model(await read_model(folder), folder, self._process)
                opened.append(model)
                log.info(
                    "model %s is loaded after %.2f s, fingerprint %s",
                    model.name,
                    time.perf_counter() - start,
                    model.fingerprint,
                )
            snapshot = Snapshot.of(opened, self.settings.aliases)
            self.shadow = self._open_shadow(snapshot)
            if self.settings.judging is not None:
                study = Study.read(self.settings.judging)
                self.judging = Judging(study, self.models, self.settings.pixel_limits, self.metrics)
                await self.judging.open(snapshot)
        except BaseException:
            for model in opened:
                await model.embedder.close()
            raise
        if self.settings.fetch_origins:
            settings = self.settings
            self.fetcher = Fetcher(settings.fetch_origins, settings.max_image_bytes, settings.fetch_timeout)
        self.models.install(snapshot)
        if self.judging is not None:
            self.judging.prepare()
        # Triton may come later than we do, and a reload may come before it.
        while any(model.engine.away for model in self._current) and not self.draining:
            await asyncio.sleep(0.05)
        for model in self._current:
            self.metrics.build.labels(VERSION, *model.build).set(1)
        if self.settings.watch and not self.draining:
            watch = Watch(self.models, lambda name: self.reload(name, asked=False))
            self._watching = asyncio.create_task(watch.run(self.settings.watch))
        return self.models.current.default

    async def reload(self, name: str, *, asked: bool = True) -> tuple[ServedModel, ServedModel]:
        """Serve the bundle that is in a model's folder now; the old version finishes what it has begun.

        The new one is read, verified and warmed beside the old one. Nothing changes if it is the same, or if
        it cannot be served. One reload at a time: two new versions would need the memory of both.
        Unless an operator `asked`, refusals are neither counted nor logged here: a watch meets many.

        Returns:
            The model before and the model now, which are one if the manifest is the same.

        Raises:
            ServiceError: 404 no such model, 409 the new one cannot be served, 503 starting or draining.
        """
        async with self._reloading:
            self._require_loaded()
            old = self.models.current.models.get(name)
            if old is None:
                raise ServiceError("model_not_found", "no bundle of that name is served here; see /models.")
            try:
                new = await self._open_version(old)
            except Exception as error:  # whatever is wrong with it, the old one is good
                if asked:
                    self.metrics.reloads.labels("refused").inc()
                    log.error("model %s stays as it is: %s: %s", name, type(error).__name__, error)
                detail = f"{type(error).__name__}: the log says what is wrong. The old bundle is served on."
                raise ServiceError("reload_refused", detail) from error
            if new is old:
                if asked:
                    self.metrics.reloads.labels("unchanged").inc()
                return old, old
            if self.draining:
                await new.embedder.close()
                self._require_loaded()
            self.models.install(self.models.current.with_version(new))
            with contextlib.suppress(KeyError):  # not there before Triton was
                self.metrics.build.remove(VERSION, *old.build)
            self.metrics.build.labels(VERSION, *new.build).set(1)
            self.metrics.reloads.labels("done").inc()
            log.info("model %s is switched from fingerprint %s to %s", name, old.fingerprint, new.fingerprint)
            return old, new

    def _open_shadow(self, snapshot: Snapshot) -> Shadow | None:
        name = self.settings.shadow
        if not name:
            return None
        if name not in snapshot.models or len(snapshot.models) == 1:
            raise WrongModels(f"shadow is {name!r}; expected one of several bundles: {', '.join(snapshot.models)}.")
        return Shadow(name, self.settings.shadow_share, self.models, self._process.house, self.metrics)

    def set_alias(self, alias: Alias) -> None:
        """Split the traffic of a name from now on. Raises ServiceError: a model that is not served here."""
        self._require_loaded()
        try:
            self.models.install(self.models.current.with_alias(alias))
        except WrongModels as error:
            raise ServiceError("invalid_request", str(error)) from error
        log.info("alias %s is %s", alias.name, dict(alias.weights))

    async def _open_version(self, old: ServedModel) -> ServedModel:
        """What is in the folder of `old` now, or `old` if it is that."""
        bundle = await read_model(old.folder)
        if bundle.manifest.name != old.name:
            raise WrongModels(f"{old.folder} has model {bundle.manifest.name!r} now; expected {old.name!r}.")
        if bundle.manifest == old.manifest and old.embedder.alive:
            return old
        new = await open_model(bundle, old.folder, self._process)
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                while new.engine.away:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            away = new.engine.away
            await new.embedder.close()
            raise EngineUnavailable(str(away)) from None
        return new

    async def close(self) -> None:
        """Finish the queued work and end the threads."""
        self.draining = True
        if self._watching is not None:
            async with self._reloading:  # what it was loading is closed, not left open
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
        if self.fetcher is not None:
            await self.fetcher.close()
        if self.shadow is not None:
            await self.shadow.close()
        if self.judging is not None:
            await self.judging.close()
        await self.decoders.close()
        await self.models.close()

    @property
    def alive(self) -> bool:
        """False once a thread that serving needs has died or hangs."""
        return all(model.embedder.alive for model in self._current)

    @property
    def hangs(self) -> bool:
        """Whether closing has left a decode thread behind, for which the interpreter would wait."""
        return self.decoders.busy

    @property
    def ready(self) -> bool:
        """See `require_ready`: bundles verified, engines there and warm, not about to end."""
        try:
            self.require_ready()
        except ServiceError:
            return False
        return True

    def require_ready(self) -> None:
        """Raises ServiceError 503 unless a load balancer should send requests here: every model can be served."""
        if self.leaving:
            raise ServiceError("not_ready", "the service is draining.", retry_after=2)
        self._require_running()
        for model in self._current:
            _require_engine(model)

    def require_any(self) -> None:
        """Raises ServiceError 503 if no model can be served now."""
        self._require_running()
        if all(model.engine.away for model in self._current):
            _require_engine(self.models.current.default)

    def model(self, name: str | None = None) -> ServedModel:
        """The model of that name, or the default. Raises ServiceError: not to be had now, or no such model."""
        self.require_any()
        return self.usable(self.models.current.named(name))

    def usable(self, model: ServedModel) -> ServedModel:
        """The model itself. Raises ServiceError 503 unless it can be served now."""
        self._require_running()
        return _require_engine(model)

    def _require_running(self) -> None:
        self._require_loaded()
        if not self.alive:
            raise ServiceError("not_ready", "the service is broken and must be restarted.", retry_after=2)

    def _require_loaded(self) -> None:
        if self.draining or not self.models.current.models:
            state = "draining" if self.draining else "starting"
            raise ServiceError("not_ready", f"the service is {state}.", retry_after=2)


def _require_engine(model: ServedModel) -> ServedModel:
    if away := model.engine.away:
        raise ServiceError("engine_away", away, retry_after=CHECK_SECONDS)
    return model
