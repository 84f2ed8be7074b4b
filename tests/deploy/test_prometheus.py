"""A real Prometheus scrapes a real replica by the configuration of deploy/, and answers the dashboard's queries."""

import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.test_files import PANELS
from tests.running import ROOT, Running, free_port, get, need, replica, until

PHOTOS = [(ROOT / f"docs/photos/{name}.jpg").read_bytes() for name in ("cat", "raccoon", "rocket")]
EVENTS_ONLY = {"Triplets left unjudged", "Comparisons with the shadow model"}
"""Panels of what need not happen: their query may be empty."""


def configuration(folder: Path, target: int) -> Path:
    """deploy/prometheus, with this one target and no patience."""
    written = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    written["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    written["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in written["rule_files"]]
    (job,) = written["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(written))
    return folder / "prometheus.yaml"


def multipart(files: list[bytes]) -> tuple[bytes, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n", "multipart/form-data; boundary=b"


def ask(url: str, query: str) -> list[dict[str, Any]]:
    status, body = get(f"{url}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    assert status == 200, f"{query}: {body}"
    return json.loads(body)["data"]["result"]  # type: ignore[no-any-return]


def test_prometheus_scrapes_a_replica_and_every_panel_has_data(toy_bundle: Path, tmp_path: Path) -> None:
    served, port = free_port(), free_port()
    url, prometheus = f"http://127.0.0.1:{port}", need("prometheus")
    command = [prometheus, f"--config.file={configuration(tmp_path, served)}", f"--storage.tsdb.path={tmp_path}/data"]
    with (
        replica(served, tmp_path / "replica.log", "--bundle", str(toy_bundle), "--drain-delay", "0"),
        Running([*command, f"--web.listen-address=127.0.0.1:{port}"], tmp_path / "prometheus.log"),
    ):
        until(f"http://127.0.0.1:{served}/health/ready")
        until(f"{url}/-/ready")
        body, kind = multipart(PHOTOS)
        for path in ("embed", "odd-one-out"):
            request = urllib.request.Request(f"http://127.0.0.1:{served}/{path}", body, {"Content-Type": kind})
            urllib.request.urlopen(request, timeout=60).close()
        end = time.monotonic() + 60
        while not (ready := ask(url, 'alignet_http_requests_total{route="/odd-one-out"}')):
            assert time.monotonic() < end, (tmp_path / "prometheus.log").read_text()[-2000:]
            time.sleep(0.2)
        assert ready[0]["metric"]["job"] == "alignet"
        time.sleep(3)  # a rate needs two scrapes
        empty = {p["title"] for p in PANELS for t in p["targets"] if not ask(url, loopback(t["expr"]))}
        assert empty <= EVENTS_ONLY
        rules = json.loads(get(f"{url}/api/v1/rules")[1])["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
        assert ask(url, 'ALERTS{alertstate="firing"}') == []


def loopback(expr: str) -> str:
    """A panel's query without its variables, and without the filter that hides zeros."""
    return re.sub(r" > 0$", "", expr.replace("$__rate_interval", "1m").replace("$job", "alignet"))
