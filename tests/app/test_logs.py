"""Log lines: one JSON object each, the request's id on them, and nothing of what was sent."""

import json
import logging
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app import logs
from tests.running import free_port, replica, until
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


def record(message: str, *values: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("alignet", logging.INFO, __file__, 1, message, values, None)
    made.__dict__.update(more)
    return made


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [r.__dict__["fields"] for r in caplog.records if r.name == "alignet.access"]


def test_a_json_line_is_one_object_with_utc_time_and_fields() -> None:
    line = json.loads(logs.JsonLines().format(record("a\n%s", "\udcff é", fields={"status": 200})))
    assert line["message"] == "a\n\\udcff é"
    assert (line["level"], line["logger"], line["status"]) == ("info", "alignet", 200)
    assert line["time"].endswith("+00:00")


def test_an_exception_stands_in_its_line() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        line = logs.JsonLines().format(record("x", exc_info=(type(error), error, error.__traceback__)))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: why")


@pytest.mark.parametrize("formatter", [logs.JsonLines(), logs.TextLines()])
def test_the_requests_id_is_on_what_is_logged_meanwhile(formatter: logging.Formatter) -> None:
    assert "id-1" not in formatter.format(record("x"))
    token = logs.request_id.set("id-1")
    assert "id-1" in formatter.format(record("x"))
    logs.request_id.reset(token)


def test_every_request_gives_one_access_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    client.post("/embed", content=encoded(photo(0)), headers=PNG)
    client.post("/nowhere")
    good, bad = access_lines(caplog)
    assert (good["method"], good["route"], good["status"]) == ("POST", "/embed", 200)
    assert set(good["stages_ms"]) == {"read", "decode", "queue", "inference", "serialise"}  # type: ignore[call-overload]
    assert (bad["route"], bad["status"]) == ("unknown", 404)


def test_health_and_scrapes_are_lines_of_the_debug_level(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    assert not access_lines(caplog)
    caplog.set_level("DEBUG")
    client.get("/health/live")
    assert access_lines(caplog)


def test_access_lines_can_be_left_out(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    serve(access_log=False).get("/models")
    assert not access_lines(caplog)


def test_no_path_query_key_header_or_body_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    marker = secrets.token_hex(8)
    client = serve(api_keys=f"{marker}-1")
    for key in (f"{marker}-1", f"{marker}-2"):
        auth = {"Authorization": f"Bearer {key}", "User-Agent": marker, "Referer": marker, "Cookie": marker}
        client.post(f"/embed?encoding={marker}", content=marker.encode(), headers=auth | PNG)
        client.post("/embed", json={"images": [{"image": marker}], marker: 1}, headers=auth)
        client.get(f"/{marker}?{marker}", headers=auth)
    ours = [r for r in caplog.records if r.name.startswith(("alignet", "uvicorn"))]
    assert len(ours) >= 6
    assert all(marker not in logs.JsonLines().format(r) for r in ours)


def test_a_real_process_logs_json_and_only_json(toy_bundle: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    options = ("--bundle", str(toy_bundle), "--log-format", "json", "--log-level", "debug", "--drain-delay", "0")
    with replica(port, log, *options) as process:
        until(f"http://127.0.0.1:{port}/health/ready")
        url = f"http://127.0.0.1:{port}/embed"
        request = urllib.request.Request(url, data=b"x", headers=PNG | {"X-Request-Id": "mine"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        refused.value.close()
        assert process.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    (mine,) = [line for line in lines if line.get("request_id") == "mine" and line["logger"] == "alignet.access"]
    assert (mine["status"], mine["level"]) == (415, "info")
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
