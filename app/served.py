"""One bundle with the engine that embeds for it, and how it is opened: read, verified, warm."""

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from app.admission import Admission, House
from app.batching import Batcher
from app.cache import VectorCache
from app.decoding import DecodePool
from app.embedder import Embedder
from app.engine import PROVIDERS, Engine, inference_slots, open_engine
from app.errors import ServiceError
from app.metrics import Metrics, Norms
from app.schemas import Memory, ModelCard, ModelSummary, Options, SpaceCard
from app.settings import Settings
from app.triton_engine import open_triton
from contract.bundle import Bundle, check_golden_pixels, read_bundle
from contract.manifest import MANIFEST, MODEL, Manifest, space_fingerprint

log = logging.getLogger("alignet")


@dataclass(frozen=True)
class Process:
    """What all models of this process share, and why.

    The decode threads, because the processor is shared: two models with threads of their own would decode
    twice as many images at once as there are processors for. The count of images admitted, because it bounds
    memory. The bytes of bodies (`app.service`), for the same reason, and because a body is read before it
    says which model it is for.

    Of each model's own are the engine with its queue, the cache, and the wait that is predicted: images of
    different graphs never stand in one batch or one queue, and one may take a hundred times as long as
    another. So a model that is full refuses its own requests only. What the others take away from the
    processor is in the pace that each measures.
    """

    settings: Settings
    metrics: Metrics
    decoders: DecodePool
    house: House


class ServedModel:
    """One bundle with the engine that embeds for it.

    Args:
        folder: where the bundle was asked for, and will be looked for again.
        max_batch: images in one inference.
        slots: inferences side by side.
        pace: seconds an image takes in such a batch, as far as known.
        resident_bytes: by how much the process grew while the engine was opened; None if that says nothing.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        providers: list[str],
        process: Process,
        *,
        folder: Path,
        max_batch: int,
        slots: int = 1,
        pace: float,
        resident_bytes: int | None = None,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.folder = folder
        self.engine = engine
        self.providers = providers
        self._resident_bytes = resident_bytes
        settings, metrics = process.settings, process.metrics
        self._fingerprints = {  # a hash of the whole manifest each, and every request states one
            (space, normalize): space_fingerprint(self.manifest, space, normalize=normalize)
            for space in self.manifest.spaces
            for normalize in (False, True)
        }
        self.fingerprints = frozenset(self._fingerprints.values())
        admission = Admission(
            most=settings.max_admitted_images,
            max_wait=settings.max_wait or (1.0 if providers[0] in (PROVIDERS["cpu"], "triton") else 0.25),
            steady_wait=settings.max_steady_wait,
            full=process.decoders.threads + 2 * max_batch * slots,
            pace=pace,
            metrics=metrics,
            house=process.house,
        )
        cache = VectorCache(settings.cache_images, metrics) if settings.cache_images else None
        norms = Norms(metrics.norm, self.name, bundle.golden.vectors)
        self.embedder = Embedder(engine, process.decoders, self.manifest.pixels, admission, metrics, norms, cache)

    @property
    def name(self) -> str:
        """The manifest's name."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Of the aligned space."""
        return self.manifest.spaces["aligned"].fingerprint

    @property
    def build(self) -> tuple[str, str, str]:
        """Name, fingerprint and provider, as `alignet_build_info` labels them."""
        return self.name, self.fingerprint, self.providers[0]

    def space_fingerprint(self, options: Options, *, normalize: bool = False) -> str:
        """Fingerprint of the space that `options` ask for.

        Raises:
            ServiceError: the bundle lacks that space, or it is not the one the client expects.
        """
        if options.space not in self.manifest.spaces:
            raise ServiceError("invalid_request", f"model {self.name!r} has no space {options.space!r}.")
        actual = self._fingerprints[options.space, normalize]
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
        return ModelSummary(name=m.name, description=m.description, alignment=m.alignment, fingerprint=self.fingerprint)

    def card(self, limits: dict[str, int | float]) -> ModelCard:
        """The model card: what the manifest states, the memory it takes, and the limits in force."""
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
                fingerprint_normalized=self._fingerprints[name, True],
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
            memory=Memory(graph_bytes=m.files[MODEL].bytes, resident_bytes=self._resident_bytes),
        )


def bundle_folders(paths: tuple[Path, ...]) -> list[Path]:
    """The bundles at `paths`; a folder without a manifest stands for the bundles in it, in order of their names."""
    folders: dict[Path, Path] = {}
    for path in paths:
        inside = [] if (path / MANIFEST).exists() else sorted(path.glob(f"[!.]*/{MANIFEST}"))
        for folder in [manifest.parent for manifest in inside] or [path]:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


async def read_model(folder: Path) -> Bundle:
    """The bundle in a folder, or where a link leads: if that changes meanwhile, all is of the same folder.

    Raises:
        BundleError: it is not as its manifest states.
    """
    return await asyncio.to_thread(read_bundle, folder.resolve())


async def open_model(bundle: Bundle, folder: Path, process: Process) -> ServedModel:
    """Start the engine of a bundle that was found in `folder`; it is warm, or looking for its Triton.

    Raises:
        BundleError: its graph or this installation's pixels are not as the manifest states.
        EngineUnavailable: no engine as asked for.
    """
    settings, metrics = process.settings, process.metrics
    if settings.triton_url:
        await asyncio.to_thread(check_golden_pixels, bundle)
        triton = open_triton(bundle, settings.triton_url, metrics)
        return ServedModel(bundle, triton, ["triton"], process, folder=folder, max_batch=8, pace=0.02)
    slots = inference_slots(settings.device, settings.inference_slots, settings.inference_threads)
    before = _resident_bytes()
    graph = await asyncio.to_thread(
        open_engine,
        bundle,
        device=settings.device,
        slots=slots,
        max_batch=settings.max_batch,
        allow_cpu_fallback=settings.allow_cpu_fallback,
        graph_cache=settings.graph_cache,
    )
    grown = max(0, _resident_bytes() - before) if before else None
    log.info(
        "%d inferences at once on %d threads, each of at most %d images",
        slots.inferences,
        slots.threads,
        graph.max_batch,
    )
    batcher = Batcher(graph, graph.max_batch, metrics, settings.stuck_seconds, slots=slots.inferences)
    return ServedModel(
        bundle,
        batcher,
        graph.providers,
        process,
        folder=folder,
        max_batch=graph.max_batch,
        slots=slots.inferences,
        pace=graph.pace / slots.inferences,
        resident_bytes=grown,
    )


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
