"""API keys: asked for everywhere but health, compared whole, never shown."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.settings import Settings
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
FIRST, SECOND = "k-3f81c2a9-first", "k-77b0e4d5-second"
VECTORS = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}
GUARDED: list[tuple[str, str, Any]] = [
    ("GET", "/models", None),
    ("GET", "/models/toy", None),
    ("GET", "/metrics", None),
    ("POST", "/embed", {"images": []}),
    ("POST", "/odd-one-out", VECTORS),
    ("POST", "/similarity", VECTORS),
]


@pytest.mark.parametrize(("method", "path", "body"), GUARDED)
def test_a_guarded_path_refuses_every_wrong_credential(serve: Serve, method: str, path: str, body: Any) -> None:
    client = serve(api_keys=f"{FIRST},{SECOND}")
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer nope",
        f"Basic {FIRST}",
        FIRST,
        f"Bearer {FIRST}x",
        f"Bearer {FIRST[:-1]}",
    ]
    wrong += [f"Bearer {FIRST},{SECOND}", f"Bearer {FIRST.upper()}", f"Bearer  {FIRST}", f"Token {SECOND}"]
    for headers in [{}, *({"Authorization": value} for value in wrong)]:
        reply = client.request(method, path, json=body, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
        assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_any_of_the_keys_opens_every_path(serve: Serve, key: str, scheme: str) -> None:
    client = serve(api_keys=f" {FIRST} , {SECOND},")
    for method, path, body in GUARDED:
        reply = client.request(method, path, json=body, headers={"Authorization": f"{scheme} {key}"})
        assert reply.status_code != 401
        assert path == "/embed" or reply.status_code == 200


def test_health_stays_open_with_keys_set(serve: Serve) -> None:
    client = serve(api_keys=FIRST)
    assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200


def test_without_keys_no_credential_is_needed(client: TestClient) -> None:
    assert client.get("/models", headers={"Authorization": "Bearer whatever"}).status_code == 200


def test_a_key_of_bytes_beyond_ascii_is_refused_not_a_bug(serve: Serve) -> None:
    client = serve(api_keys=FIRST)
    reply = client.get("/models", headers={b"Authorization": b"Bearer \xff\xfe\xe4"})
    assert reply.status_code == 401


def test_the_key_is_asked_for_before_the_body_is_read(serve: Serve) -> None:
    client = serve(api_keys=FIRST, max_body_bytes=1024)
    reply = client.post("/embed", content=b"x" * 5000, headers={"Content-Type": "text/plain"})
    assert reply.status_code == 401


def test_keys_appear_in_no_reply_log_or_repr(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = serve(api_keys=f"{FIRST},{SECOND}")
    seen = [repr(client.app.state.service.settings), str(Settings(api_keys=FIRST))]
    image = {"content": encoded(photo(0)), "headers": {"Content-Type": "image/png"}}
    for headers in ({}, {"Authorization": f"Bearer {FIRST}"}, {"Authorization": f"Basic {SECOND}"}):
        for path in ("/models", "/models/toy", "/metrics", "/openapi.json", "/nowhere", "/health/live"):
            reply = client.get(path, headers=headers)
            seen += [reply.text, str(reply.headers)]
        reply = client.post("/embed", content=image["content"], headers=image["headers"] | headers)
        seen += [reply.text, str(reply.headers)]
    everything = "\n".join([*seen, caplog.text])
    assert FIRST not in everything
    assert SECOND not in everything
