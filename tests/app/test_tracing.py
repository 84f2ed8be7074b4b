"""Traces: nothing loaded unless asked for; then one span a request at a real OTLP receiver, without what was sent."""

import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.tracing import Tracing
from tests.running import Running, free_port, get, until
from tests.toy import encoded, photo

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def collector() -> Iterator[tuple[str, "queue.SimpleQueue[bytes]"]]:
    """(endpoint, bodies received) of an OTLP/HTTP receiver on loopback."""
    bodies: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    server.server_close()


def spans(body: bytes) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(body)
    return [span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans]


def traced(serve: Serve, endpoint: str, **settings: Any) -> TestClient:
    return serve(trace_endpoint=endpoint, **settings)


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    script = "import sys, app.__main__; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert create_app(Settings()).state.service.tracing is None


def test_a_request_is_one_span_within_its_callers_trace(serve: Serve, collector: Any) -> None:
    endpoint, bodies = collector
    client, trace = traced(serve, endpoint), secrets.token_hex(16)
    caller = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01", "X-Request-Id": "mine"}
    client.post("/embed", content=encoded(photo(0)), headers=PNG | caller)
    client.app.state.service.tracing.close()  # type: ignore[attr-defined]
    (span,) = [span for span in spans(bodies.get(timeout=30)) if span.trace_id.hex() == trace]
    values = {a.key: a.value for a in span.attributes}
    assert span.name == "POST /embed"
    assert values["http.response.status_code"].int_value == 200
    assert values["alignet.request_id"].string_value == "mine"
    assert values["alignet.inference_ms"].double_value > 0


def test_no_span_holds_a_path_key_header_or_body(serve: Serve, collector: Any) -> None:
    endpoint, bodies = collector
    marker = secrets.token_hex(8)
    client = traced(serve, endpoint, api_keys=marker)
    auth = {"Authorization": f"Bearer {marker}", "User-Agent": marker}
    client.get(f"/{marker}?{marker}", headers=auth)
    client.post("/embed", content=marker.encode(), headers=auth | PNG)
    client.app.state.service.tracing.close()  # type: ignore[attr-defined]
    body = bodies.get(timeout=30)
    assert {"GET unknown", "POST /embed"} <= {span.name for span in spans(body)}
    assert marker.encode() not in body


def test_the_frameworks_own_telemetry_stays_off_whatever_the_environment_says(
    toy_bundle: Path, collector: Any, tmp_path: Path
) -> None:
    endpoint, bodies = collector
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.removesuffix("/v1/traces"), "OTEL_BSP_SCHEDULE_DELAY": "100"}
    port = free_port()
    options = ("--port", str(port), "--bundle", str(toy_bundle), "--drain-delay", "0")
    command = [sys.executable, "-m", "app", *options]
    with Running(command, tmp_path / "log", FASTAPI_OTEL_AUTO_CONFIGURE="true", **variables) as process:
        until(f"http://127.0.0.1:{port}/health/ready")
        get(f"http://127.0.0.1:{port}/models")
        process.stop()
    assert bodies.empty()


def test_a_collector_that_is_away_costs_no_request_anything(serve: Serve) -> None:
    client = traced(serve, "http://127.0.0.1:9/v1/traces")
    assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 200


def test_a_missing_extra_is_said_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(RuntimeError, match=r"pip install 'alignet-serve\[otel\]'"):
        Tracing("http://127.0.0.1:9", "1")
