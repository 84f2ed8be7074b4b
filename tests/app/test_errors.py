"""Every error leaves through the table: its status, its body, its headers, and nothing of the request in it."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import errors
from app.engine import OnnxEngine
from app.errors import TABLE, Kind, Problem, ServiceError
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
SECRET = "c2VjcmV0" * 40
VECTOR = [123456.789] * SIZE


@pytest.mark.parametrize("kind", list(TABLE))
def test_every_kind_is_a_problem_body_of_its_status(kind: Kind) -> None:
    response = errors.problem(ServiceError(kind, "what was wrong", index=3, limit=7, retry_after=0.2))
    body = Problem.model_validate_json(response.body)
    assert (response.status_code, body.status) == (TABLE[kind].status, TABLE[kind].status)
    assert (body.code, body.title, body.detail, body.index, body.limit) == (
        kind,
        TABLE[kind].title,
        "what was wrong",
        3,
        7,
    )
    assert body.type == f"urn:alignet:problem:{kind}"
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] in ("1", "2")  # with jitter


def test_index_and_limit_stand_in_a_body_only_where_there_are_any() -> None:
    body = json.loads(bytes(errors.problem(ServiceError("not_ready", "starting")).body))
    assert set(body) == {"type", "title", "status", "code", "detail"}


def test_the_kinds_of_images_are_the_faults_of_the_contract() -> None:
    from typing import get_args

    from contract.pixels import ImageFault

    assert set(get_args(ImageFault)) <= set(TABLE)
    assert set(get_args(Kind)) == set(TABLE)


@pytest.mark.parametrize(
    "path", ["/nope.html", "/no", "/embed/x", "/health", "/models/toy/x", "/%00", "/../etc/passwd"]
)
def test_an_unknown_path_is_a_404_problem(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.json()["code"]) == (404, "route_not_found")
    assert reply.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/embed", "POST"),
        ("PUT", "/odd-one-out", "POST"),
        ("DELETE", "/similarity", "POST"),
        ("POST", "/models", "GET"),
        ("PATCH", "/health/live", "GET"),
        ("BREW", "/embed", "POST"),
    ],
)
def test_another_method_is_a_405_problem_that_says_what_is_allowed(
    client: TestClient, method: str, path: str, allow: str
) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()["code"]) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == allow
    assert reply.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
@pytest.mark.parametrize("body", ["", "{", "[1,", "nul", '{"a":1}}', '{"a":NaN}', "[" * 100_000, '{"a":"\ud800"}'])
def test_what_is_no_json_is_invalid_json(client: TestClient, path: str, body: str) -> None:
    content = body.encode("utf-8", "surrogatepass")
    reply = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
@pytest.mark.parametrize("body", ["[]", "1", '"text"', "null", "true", '[{"images":[]}]'])
def test_json_that_is_no_object_is_an_invalid_request(client: TestClient, path: str, body: str) -> None:
    reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"images": [{"image": SECRET + "!"}]}),
        ("/embed", {"images": [{"image": SECRET}]}),
        ("/embed", {"images": [{"image": f"data:image/png,{SECRET}"}]}),
        ("/embed", {"images": [{"image": f"https://example.org/{SECRET}"}]}),
        ("/embed", {"images": [{"picture": SECRET}]}),
        ("/embed", {"images": SECRET}),
        ("/embed", {"images": [SECRET]}),
        ("/embed", {"model": SECRET, "images": [{"image": "AAAA"}]}),
        ("/embed", {"space": SECRET}),
        ("/embed", {"normalize": SECRET}),
        ("/odd-one-out", {"vectors": [[*VECTOR, 1], VECTOR, VECTOR]}),
        ("/odd-one-out", {"vectors": [[str(VECTOR[0])] * SIZE] * 3}),
        ("/odd-one-out", {"vectors": [SECRET, SECRET, SECRET]}),
        ("/odd-one-out", {"vectors": [VECTOR] * 3, "triplets": [[0, 1, VECTOR[0]]]}),
        ("/odd-one-out", {"vectors": [VECTOR] * 3, "triplets": SECRET}),
        ("/odd-one-out", {"vectors": [VECTOR] * 3, "min_margin": VECTOR[0]}),
        ("/similarity", {"vectors": [VECTOR, [*VECTOR, 1]], "kernel": SECRET}),
        ("/similarity", {"queries": {"vectors": [VECTOR]}, "candidates": {"vectors": [[*VECTOR, 1]]}}),
    ],
)
def test_no_image_vector_or_text_of_a_request_comes_back_in_its_error(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    reply = client.post(path, json=body)
    assert 400 <= reply.status_code < 500
    assert SECRET not in reply.text
    assert "123456" not in reply.text


@pytest.mark.parametrize("body", [{"x" * 100_000: 1}, {"expect_fingerprint": "x" * 100_000}, {"model": "x" * 100_000}])
def test_an_error_stays_small_however_large_the_request_is(client: TestClient, body: dict[str, Any]) -> None:
    reply = client.post("/similarity", json={"vectors": [[1.0] * SIZE], **body})
    assert 400 <= reply.status_code < 500
    assert len(reply.content) < 1000


def test_an_error_about_a_form_field_stays_small_too(client: TestClient) -> None:
    part = f'--b\r\nContent-Disposition: form-data; name="{"x" * 3000}"\r\n\r\n1\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = client.post("/similarity", content=part * 2 + "--b--\r\n", headers=headers)
    assert reply.status_code == 400
    assert len(reply.content) < 1000


def test_the_path_of_a_404_is_not_in_its_body(client: TestClient) -> None:
    assert SECRET not in client.get(f"/{SECRET}").text


@pytest.mark.parametrize("header", ["X-Request-Id", "Cache-Control", "X-Content-Type-Options"])
@pytest.mark.parametrize("status", [200, 400, 404, 405, 500])
def test_every_reply_carries_the_same_headers_whatever_its_status(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int, header: str
) -> None:
    client = serve(raise_bugs=False)
    if status == 500:
        monkeypatch.setattr(OnnxEngine, "embed", lambda *_: 1 / 0)
    image = {"image": base64.b64encode(encoded(photo(0))).decode()}
    reply = {
        200: lambda: client.get("/models"),
        400: lambda: client.post("/embed", json={}),
        404: lambda: client.get("/nope"),
        405: lambda: client.get("/embed"),
        500: lambda: client.post("/embed", json={"images": [image]}),
    }[status]()
    assert reply.status_code == status
    assert header in reply.headers


def test_errors_are_counted_by_kind(client: TestClient) -> None:
    client.get("/nope")
    client.post("/embed", json={})
    client.post("/embed", json={})
    lines = client.get("/metrics").text.splitlines()
    assert 'alignet_errors_total{kind="route_not_found"} 1.0' in lines
    assert 'alignet_errors_total{kind="invalid_request"} 2.0' in lines
