"""OpenTelemetry traces, one span a request, for whoever sets `trace_endpoint`; nothing is imported otherwise.

A span says the route, the status and the milliseconds of each stage, and joins the caller's trace
(`traceparent`). It never holds a path, a query, a key, an address or anything of a body. How many
requests are traced is OpenTelemetry's own OTEL_TRACES_SAMPLER.
"""

from collections.abc import Mapping
from typing import Any

CARRIED = ("traceparent", "tracestate")
"""Request headers that name the caller's trace; no other header is read."""


class TracingUnavailable(RuntimeError):
    """Traces are asked for, but the extra `otel` is not installed."""


class Tracing:
    """Sends a span for every finished request to one collector, from a thread of its own."""

    def __init__(self, endpoint: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingUnavailable(
                f"trace_endpoint is set, but OpenTelemetry is missing ({error}); "
                "run: pip install 'alignet-serve[otel]'."
            ) from error
        resource = Resource.create({"service.name": "alignet-serve", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # A collector that is away costs two seconds at the end of the process, and no request anything.
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=2)))
        self._tracer = self._provider.get_tracer("alignet", version)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    def start(self, headers: Mapping[bytes, bytes]) -> Any:
        """The span of a request that begins now."""
        carrier = {name: headers[name.encode()].decode("latin-1") for name in CARRIED if name.encode() in headers}
        return self._tracer.start_span("request", context=self._propagator.extract(carrier), kind=self._kind)

    def finish(
        self, span: Any, method: str, route: str, status: int, request_id: str, stages: Mapping[str, float]
    ) -> None:
        """End a span with what came of its request; `stages` are seconds."""
        if span.is_recording():
            from opentelemetry.trace import StatusCode

            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "alignet.request_id": request_id,
                }
                | {f"alignet.{stage}_ms": seconds * 1000 for stage, seconds in stages.items()}
            )
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left, then end the thread."""
        self._provider.shutdown()
