"""Metrics with bounded labels, timings and request ids on every reply."""

import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import FORMATS, STAGES, Metrics, Norms, Spread, format_of
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


def test_images_that_do_not_decode_are_counted_by_the_format_they_claim(client: TestClient) -> None:
    for broken in (encoded(photo(0))[:60], encoded(photo(0), "WEBP")[:40], encoded(photo(0), "WEBP")[:40], b"none"):
        client.post("/embed", content=broken, headers=PNG)
    found = samples(client)
    counts = {name: found["alignet_decode_failures_total", frozenset({("format", name)})] for name in FORMATS}
    assert counts == dict.fromkeys(FORMATS, 0.0) | {"png": 1, "webp": 2, "other": 1}


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_known_by_its_first_bytes(name: str) -> None:
    assert format_of(encoded(photo(0), name)) == name.lower()


@given(st.lists(st.floats(-2, 4)), st.lists(st.floats(-2, 4)))
def test_many_values_at_once_count_as_prometheus_counts_one(first: list[float], second: list[float]) -> None:
    ours, theirs, bounds = CollectorRegistry(), CollectorRegistry(), (0.0, 0.5, 1.0, 2.0)
    spread = Spread("x", "x", bounds, registry=ours)
    histogram = Histogram("x", "x", registry=theirs, buckets=bounds)
    spread.observe(first), spread.observe(second)
    for value in first + second:
        histogram.observe(value)
    lines = [[line for line in generate_latest(r).decode().splitlines() if "_sum" not in line] for r in (ours, theirs)]
    assert lines[0] == [line for line in lines[1] if "_created" not in line]
    assert ours.get_sample_value("x_sum") == pytest.approx(theirs.get_sample_value("x_sum"))


def test_values_of_many_threads_are_counted_once_each_whether_one_by_one_or_together() -> None:
    values = [0.0, 0.5, 1.0, 7.0] * 750
    spreads = [Spread("x", "x", (0.5, 1.0), registry=CollectorRegistry()) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(lambda: [spreads[0].observe(value) for value in values])
            pool.submit(spreads[1].observe, values)
        for _ in range(5):  # scrapes that come between
            pool.submit(lambda: list(spreads[0].collect()))
    found = [{s.labels.get("le", s.name): s.value for s in next(iter(spread.collect())).samples} for spread in spreads]
    assert found[0] == found[1] and found[0]["+Inf"] == 12_000 and found[0]["0.5"] == 6_000


def test_the_length_of_a_vector_is_counted_against_the_golden_ones() -> None:
    metrics = Metrics()
    norms = Norms(
        metrics.norm, "m", {"aligned": np.full((2, 4), 3.0, np.float32), "base": np.zeros((2, 4), np.float32)}
    )
    norms.observe({"aligned": np.full((5, 4), 4.5, np.float32), "base": np.ones((5, 4), np.float32)})
    value = metrics.registry.get_sample_value
    labels = {"model": "m", "space": "aligned"}
    assert value("alignet_vector_norm_ratio_sum", labels) == pytest.approx(5 * 1.5)
    assert value("alignet_vector_norm_ratio_bucket", labels | {"le": "1.35"}) == 0
    assert value("alignet_vector_norm_ratio_bucket", labels | {"le": "1.75"}) == 5
    assert value("alignet_vector_norm_ratio_count", {"model": "m", "space": "base"}) is None


def test_vectors_and_choices_of_requests_are_counted(client: TestClient) -> None:
    files = [("images", encoded(photo(seed))) for seed in range(3)]
    client.post("/odd-one-out", files=files)
    found = samples(client)
    labels = frozenset({"model": "toy", "space": "aligned"}.items())
    assert found["alignet_vector_norm_ratio_count", labels] == 3
    assert found["alignet_triplet_entropy_nats_count", frozenset()] == 1


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
