"""Prometheus metrics of one app, in base units, with bounded labels only (never a path, name or key)."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

STAGES = ("read", "decode", "queue", "inference", "serialise")
REASONS = ("bytes", "count", "wait", "deadline", "key", "explain")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_NATS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_RATIOS = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 5.0)

NOTED = 1024
"""Values of one histogram that wait to be counted."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "other")


def format_of(image: bytes) -> str:
    """Which of `FORMATS` the first bytes of a file claim, whatever the rest is."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((name for signature, name in _SIGNATURES if image.startswith(signature)), "other")


class Spread(Collector):
    """A histogram that takes many values at once, and counts single ones when somebody looks.

    prometheus_client's takes one at a time, under a lock, and a request has a dozen. Here a single value is noted,
    which costs a tenth of that, and what was noted is counted together: at a scrape, or when there is much of it.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._labelnames = name, documentation, tuple(labelnames)
        self._bounds = np.array(bounds, np.float64)
        self._lock = threading.Lock()
        self._noted: deque[tuple[tuple[str, ...], float]] = deque()
        self._counts: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labelnames:
            self.observe(())  # at zero from the start
        registry.register(self)

    def observe(self, values: ArrayLike, *labels: str) -> None:
        """Count finite values under one set of labels, from any thread."""
        if isinstance(values, int | float):
            self._noted.append((labels, values))
            if len(self._noted) < NOTED:
                return
            values = ()
        with self._lock:
            self._count_noted()
            self._count(values, labels)

    def _count_noted(self) -> None:
        found = defaultdict(list)
        while self._noted:
            labels, value = self._noted.popleft()
            found[labels].append(value)
        for labels, values in found.items():
            self._count(values, labels)

    def _count(self, values: ArrayLike, labels: tuple[str, ...]) -> None:
        array = np.asarray(values, np.float64).ravel()
        counts = np.bincount(np.searchsorted(self._bounds, array), minlength=len(self._bounds) + 1)
        self._counts[labels] = self._counts.get(labels, 0) + counts
        self._sums[labels] = self._sums.get(labels, 0.0) + float(array.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram as it is now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        edges = [*map(floatToGoString, self._bounds), "+Inf"]
        with self._lock:
            self._count_noted()
            for labels, counts in self._counts.items():
                cumulative = np.cumsum(counts).tolist()
                family.add_metric(labels, list(zip(edges, cumulative, strict=True)), self._sums[labels])
        yield family


class Norms:
    """Lengths of one model's vectors over those of its golden ones: drift shows without keeping a photo.

    Args:
        golden: {space: [k, size]}, the bundle's own.
    """

    def __init__(self, spread: Spread, model: str, golden: Mapping[str, NDArray[np.float32]]) -> None:
        self._spread, self._model = spread, model
        self._typical = {space: float(np.linalg.norm(rows, axis=1).mean()) for space, rows in golden.items()}

    def observe(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Count the vectors [n, size] of each space; a space whose golden vectors are zero has no ratio."""
        for space, rows in vectors.items():
            if typical := self._typical.get(space):
                ratios = np.sqrt(np.einsum("nd,nd->n", rows, rows)) / typical
                self._spread.observe(float(ratios[0]) if len(ratios) == 1 else ratios, self._model, space)


class StudyCounts:
    """What people do in a study; exported only where there is one.

    Args:
        kinds: of trials.
    """

    def __init__(self, registry: CollectorRegistry, kinds: Sequence[str]) -> None:
        self.sessions = Counter(
            "alignet_judge_sessions", "Sessions of the study, by what became of them.", ("event",), registry=registry
        )
        self.trials = Counter("alignet_judge_trials", "Trials handed out, each once.", ("kind",), registry=registry)
        self.choices = Counter("alignet_judge_choices", "Choices stored, each once.", ("kind",), registry=registry)
        for event in ("begun", "withdrawn"):
            self.sessions.labels(event)
        for kind in kinds:
            self.trials.labels(kind)
            self.choices.labels(kind)


class Metrics:
    """The registry of one app; a new app starts from zero, so tests and reloads do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "alignet_http_requests", "Finished requests.", ("route", "method", "code"), registry=self.registry
        )
        self.in_flight = Gauge("alignet_inflight_requests", "Requests being served.", registry=self.registry)
        self.duration = Spread(
            "alignet_request_duration_seconds",
            "From the first byte of the request to the last of the reply.",
            _SECONDS,
            ("route",),
            registry=self.registry,
        )
        self.stage = Spread(
            "alignet_stage_duration_seconds",
            "Time a request spent in one stage.",
            _SECONDS,
            ("stage",),
            registry=self.registry,
        )
        for name in STAGES:
            self.stage.observe((), name)  # at zero from the start
        self.images = Counter(
            "alignet_images", "Images decoded, come as pixels, or refused.", ("outcome",), registry=self.registry
        )
        self._add_flow()
        self.batch = Spread("alignet_batch_images", "Images in one inference.", _BATCHES, registry=self.registry)
        self.undecodable = Counter(
            "alignet_decode_failures",
            "Images refused by the decoder, by the format their first bytes claim.",
            ("format",),
            registry=self.registry,
        )
        for name in FORMATS:
            self.undecodable.labels(name)
        self.errors = Counter("alignet_errors", "Refused or failed requests.", ("kind",), registry=self.registry)
        self.abstentions = Counter(
            "alignet_abstentions", "Triplets left unjudged.", ("reason",), registry=self.registry
        )
        self.explanations = Counter("alignet_explanations", "Triplets explained by occlusion.", registry=self.registry)
        self.entropy = Spread(
            "alignet_triplet_entropy_nats", "Entropy of the choice probabilities.", _NATS, registry=self.registry
        )
        self.norm = Spread(
            "alignet_vector_norm_ratio",
            "Length of a vector over the mean length of the bundle's golden ones.",
            _RATIOS,
            ("model", "space"),
            registry=self.registry,
        )
        self.ready = Gauge(
            "alignet_ready",
            "1 while requests are served: bundle verified, engine there and warm.",
            registry=self.registry,
        )
        self.build = Gauge(
            "alignet_build_info", "Always 1.", ("version", "model", "fingerprint", "provider"), registry=self.registry
        )

    def _add_flow(self) -> None:
        """What is in the house, what waits, and what was kept out."""
        self.admitted = Gauge(
            "alignet_admitted_images", "Images being decoded, queued or inferred.", registry=self.registry
        )
        self.queued = Gauge(
            "alignet_queue_images", "Decoded images waiting for an inference thread.", registry=self.registry
        )
        self.queues: list[Callable[[], int]] = []  # one of each engine of this process
        self.queued.set_function(lambda: float(sum(length() for length in self.queues)))
        self.wait = Gauge(
            "alignet_predicted_wait_seconds",
            "Time until the images admitted now are predicted to be done.",
            registry=self.registry,
        )
        self.held_bytes = Gauge(
            "alignet_body_bytes",
            "Bytes of request bodies and unread replies in memory.",
            registry=self.registry,
        )
        self.stuck = Gauge(
            "alignet_stuck_decode_threads", "Decode threads lost to an image that never ends.", registry=self.registry
        )
        self.rejected = Counter(
            "alignet_rejected", "Requests refused with 429, by what was full.", ("reason",), registry=self.registry
        )
        for reason in REASONS:
            self.rejected.labels(reason)
        self.served = Counter(
            "alignet_model_requests", "Requests by the model that answered.", ("model",), registry=self.registry
        )
        self.reloads = Counter(
            "alignet_reloads",
            "New versions of a bundle asked for, by what came of it.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in ("done", "unchanged", "refused"):
            self.reloads.labels(outcome)
        self.shadow_requests = Counter(
            "alignet_shadow_requests", "Requests sampled for the shadow model.", ("outcome",), registry=self.registry
        )
        self.shadow_triplets = Counter(
            "alignet_shadow_triplets",
            "Decisions of a model, compared with the shadow model's.",
            ("model", "shadow", "outcome"),
            registry=self.registry,
        )
        self.cache = Counter(
            "alignet_cache_lookups", "Images looked up in the cache of vectors.", ("outcome",), registry=self.registry
        )
        for outcome in ("hit", "miss"):
            self.cache.labels(outcome)

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
