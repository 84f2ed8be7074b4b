"""Prometheus metrics of one app, in base units, with bounded labels only (never a path, name or key)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

STAGES = ("read", "decode", "queue", "inference", "serialise")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


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
        self.duration = Histogram(
            "alignet_request_duration_seconds",
            "From the first byte of the request to the last of the reply.",
            ("route",),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.stage = Histogram(
            "alignet_stage_duration_seconds",
            "Time a request spent in one stage.",
            ("stage",),
            registry=self.registry,
            buckets=_SECONDS,
        )
        for name in STAGES:  # every series exists from the start, at zero
            self.stage.labels(name)
        self.images = Counter("alignet_images", "Images decoded or refused.", ("outcome",), registry=self.registry)
        self.admitted = Gauge(
            "alignet_admitted_images", "Images being decoded, queued or inferred.", registry=self.registry
        )
        self.batch = Histogram(
            "alignet_batch_images", "Images in one inference.", registry=self.registry, buckets=_BATCHES
        )
        self.errors = Counter("alignet_errors", "Refused or failed requests.", ("kind",), registry=self.registry)
        self.abstentions = Counter(
            "alignet_abstentions", "Triplets left unjudged.", ("reason",), registry=self.registry
        )
        self.entropy = Histogram(
            "alignet_triplet_entropy_nats",
            "Entropy of the choice probabilities.",
            registry=self.registry,
            buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
        )
        self.ready = Gauge(
            "alignet_ready",
            "1 while requests are served: bundle verified, engine there and warm.",
            registry=self.registry,
        )
        self.build = Gauge(
            "alignet_build_info", "Always 1.", ("version", "model", "fingerprint", "provider"), registry=self.registry
        )

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
