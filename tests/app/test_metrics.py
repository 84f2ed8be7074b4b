"""Metrics with bounded labels, timings and request ids on every reply."""

import re
import secrets
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import STAGES
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_exposition_parses_and_names_the_product(client: TestClient) -> None:
    reply = client.get("/metrics")
    names = {name for name, _ in samples(client)}
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert all(name.startswith(("alignet_", "process_", "python_")) for name in names)


def test_unknown_paths_and_methods_are_one_label_each(client: TestClient) -> None:
    for path in ("/a", "/b/c", "/embed/x"):
        client.get(path)
    client.request("BREW", "/a")
    found = {
        dict(labels)["route"]: value for (name, labels), value in samples(client).items() if "requests_total" in name
    }
    assert set(found) <= {"unknown", "/health/ready", "/metrics"}
    methods = {dict(labels)["method"] for (name, labels) in samples(client) if "requests_total" in name}
    assert methods == {"GET", "other"}


def test_the_number_of_series_stays_the_same_after_fifty_random_paths(client: TestClient) -> None:
    def visit() -> None:
        for path in ("/", "/models/", "/embed/", "/health/", "/docs/"):
            client.request(secrets.choice(["GET", "PURGE"]), path + secrets.token_hex(8), follow_redirects=False)

    for method in ("GET", "PURGE"):
        client.request(method, "/x")
        client.request(method, "/models/x")
    client.get("/metrics")
    before = set(samples(client))
    for _ in range(10):
        visit()
    assert set(samples(client)) == before


def test_known_paths_are_counted_by_route_method_and_status(client: TestClient) -> None:
    client.post("/embed", content=encoded(photo(0)), headers=PNG)
    client.get("/models/toy")
    client.get("/models/other")
    found = samples(client)
    for route, method, code in (
        ("/embed", "POST", "200"),
        ("/models/{name}", "GET", "200"),
        ("/models/{name}", "GET", "404"),
    ):
        labels = frozenset({"route": route, "method": method, "code": code}.items())
        assert found["alignet_http_requests_total", labels] == 1


def test_every_stage_is_there_from_the_start_and_counts_a_request_once(client: TestClient) -> None:
    def counts() -> dict[str, float]:
        found = samples(client)
        name = "alignet_stage_duration_seconds_count"
        return {stage: found[name, frozenset({("stage", stage)})] for stage in STAGES}

    assert counts() == dict.fromkeys(("read", "decode", "queue", "inference", "serialise"), 0.0)
    client.post("/embed", content=encoded(photo(0)), headers=PNG)
    assert counts() == dict.fromkeys(STAGES, 1.0)
    client.post("/similarity", json={"vectors": [[1.0] * SIZE]})
    assert counts() == {"read": 2, "decode": 1, "queue": 1, "inference": 1, "serialise": 2}


def test_images_are_counted_as_decoded_or_refused(client: TestClient) -> None:
    client.post("/embed", content=encoded(photo(0)), headers=PNG)
    client.post("/embed", content=b"no image", headers=PNG)
    found = samples(client)
    for outcome in ("decoded", "refused"):
        assert found["alignet_images_total", frozenset({("outcome", outcome)})] == 1


def test_nothing_is_in_flight_or_admitted_between_requests(client: TestClient) -> None:
    client.post("/embed", content=encoded(photo(0)), headers=PNG)
    client.post("/embed", content=b"", headers=PNG)
    found = samples(client)
    assert found["alignet_inflight_requests", frozenset()] == 1  # the scrape itself
    assert found["alignet_admitted_images", frozenset()] == 0


def test_the_build_is_named_with_its_model_and_fingerprint(client: TestClient) -> None:
    (labels,) = [dict(labels) for name, labels in samples(client) if name == "alignet_build_info"]
    card = client.get("/models/toy").json()
    assert (labels["model"], labels["fingerprint"], labels["provider"]) == (
        "toy",
        card["fingerprint"],
        card["providers"][0],
    )


def test_no_path_id_or_key_becomes_a_label(serve: Serve) -> None:
    marker = secrets.token_hex(8)
    client = serve(api_keys=marker)
    auth = {"Authorization": f"Bearer {marker}"}
    client.get(f"/models/{marker}", headers=auth | {"X-Request-Id": marker})
    client.get(f"/{marker}")
    assert marker not in client.get("/metrics", headers=auth).text


def test_server_timing_names_the_stages_of_the_request(client: TestClient) -> None:
    timing = client.post("/embed", content=encoded(photo(0)), headers=PNG).headers["Server-Timing"]
    parts = re.findall(r"(\w+);dur=(\d+\.\d+)(?:, |$)", timing)
    assert sorted(name for name, _ in parts) == sorted(STAGES)
    assert "Server-Timing" not in client.get("/models").headers


@pytest.mark.parametrize("id_", ["a", "0123-ABC_def.9", "x" * 64])
def test_a_sane_request_id_is_echoed(client: TestClient, id_: str) -> None:
    assert client.get("/nope", headers={"X-Request-Id": id_}).headers["X-Request-Id"] == id_


@pytest.mark.parametrize("id_", [b"", b"x" * 65, b"a b", b"a\tb", b"<script>", b"\xff", b"a,b", b"a\n"])
def test_any_other_request_id_is_replaced(client: TestClient, id_: bytes) -> None:
    given = client.get("/models", headers={b"X-Request-Id": id_}).headers["X-Request-Id"]
    assert re.fullmatch(r"[0-9a-f]{32}", given)


def test_two_requests_get_two_ids(client: TestClient) -> None:
    assert client.get("/models").headers["X-Request-Id"] != client.get("/models").headers["X-Request-Id"]
