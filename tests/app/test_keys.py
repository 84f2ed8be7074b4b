"""Keys that change, and what each may send."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app import keys as keys_module
from app.errors import ServiceError
from app.keys import Bucket, Keys
from app.metrics import Metrics
from app.settings import Settings
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
VECTORS = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}


def embed(client: TestClient, key: str, images: int = 1) -> Any:
    files = [("images", ("a", encoded(photo(seed)), "image/png")) for seed in range(images)]
    return client.post("/embed", files=files, headers={"Authorization": f"Bearer {key}"})


def test_a_bucket_fills_with_its_rate_and_may_go_into_debt() -> None:
    now = [0.0]
    bucket = Bucket(rate=2.0, most=4.0, clock=lambda: now[0])
    assert bucket.wait() == 0
    bucket.spend(9)
    assert bucket.wait() == pytest.approx(3.0)
    now[0] = 2.9
    assert bucket.wait() > 0
    now[0] = 1000
    assert bucket.wait() == 0
    bucket.spend(4)
    assert bucket.wait() == pytest.approx(0.5)


def test_a_key_that_sends_too_much_is_429_and_the_other_is_served(serve: Serve) -> None:
    client = serve(api_keys="one,two", key_images_per_second=0.01, max_images=3)
    assert embed(client, "one", 3).status_code == 200
    refused = embed(client, "one")
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (429, "rate_limited", 0.01)
    assert int(refused.headers["Retry-After"]) >= 1
    assert "one" not in refused.json()["detail"].split()
    assert embed(client, "two", 3).status_code == 200
    metrics = client.get("/metrics", headers={"Authorization": "Bearer two"})
    assert metrics.status_code == 429  # the scraper should have a key of its own


def test_every_request_counts_as_one_image_at_least(serve: Serve) -> None:
    client = serve(api_keys="one", key_images_per_second=0.01, max_images=3)
    headers = {"Authorization": "Bearer one"}
    codes = [client.post("/odd-one-out", json=VECTORS, headers=headers).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]


def test_a_key_over_its_share_is_refused_before_its_body_is_read(serve: Serve) -> None:
    client = serve(api_keys="one", key_images_per_second=0.01, max_images=1, max_body_bytes=1024)
    headers = PNG | {"Authorization": "Bearer one"}
    assert client.post("/embed", content=b"x", headers=headers).status_code == 415
    assert client.post("/embed", content=b"x" * 5000, headers=headers).status_code == 429


def test_every_key_is_compared_whether_or_not_one_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(len(a) == len(b) == 32)
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(keys_module, "hmac", type("hmac", (), {"compare_digest": staticmethod(counted)}))
    known = Keys(["a" * 40, "b", "c"], None, 0, 0, Metrics())
    for key in ("a" * 40, "b", "c", "", "x" * 10_000):
        del compared[:]
        try:
            known.admit(f"Bearer {key}")
        except ServiceError as error:
            assert error.kind == "unauthorized"
        assert compared == [True] * 3  # digests, so length says nothing either


def test_a_file_of_keys_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "LOOK_SECONDS", -1)
    file = tmp_path / "keys"
    file.write_text("old\n")
    known = Keys(["fixed"], file, 0, 0, Metrics())

    def opens(key: str) -> bool:
        try:
            known.admit(f"Bearer {key}")
        except ServiceError:
            return False
        return True

    def write(text: str, second: int) -> None:
        file.write_text(text)
        os.utime(file, (second, second))

    assert [opens(key) for key in ("old", "new", "fixed")] == [True, False, True]
    write("old\nnew\n", 1)
    assert [opens(key) for key in ("old", "new", "fixed")] == [True, True, True]
    write("new\n", 2)
    assert [opens(key) for key in ("old", "new", "fixed")] == [False, True, True]
    for wrong, second in (("", 3), (" , ", 4), ("a b\n", 5)):  # half written, or a mistake: nothing opens
        write(wrong, second)
        assert [opens(key) for key in ("old", "new", "", "a")] == [False, True, False, False]
    file.unlink()
    assert [opens(key) for key in ("old", "new", "")] == [False, True, False]


def test_settings_that_would_bound_or_guard_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    wrong: list[dict[str, Any]] = [
        {"key_images_per_second": 1},
        {"api_keys_file": tmp_path / "none"},
        {"api_keys_file": tmp_path / "empty"},
    ]
    for settings in wrong:
        with pytest.raises(ValidationError):
            Settings(**settings)


def test_no_origin_is_answered_by_default(client: TestClient) -> None:
    reply = client.get("/models", headers={"Origin": "https://a.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    asked = client.options("/embed", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405


def test_only_the_origins_named_may_call_from_a_page(serve: Serve) -> None:
    client = serve(cors_origins="https://a.example, https://b.example:8443", api_keys="one")
    for origin, allowed in (
        ("https://a.example", True),
        ("https://b.example:8443", True),
        ("https://c.example", False),
    ):
        asked = client.options("/embed", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        reply = client.post("/embed", headers={"Origin": origin})  # 401: a page can read that too
        for answer in (asked, reply):
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        assert "access-control-allow-credentials" not in reply.headers
        assert reply.status_code == 401


@pytest.mark.parametrize("origins", ["a.example", "https://a.example/path", "ftp://a", "https://*.example"])
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="origins"):
        Settings(cors_origins=origins)


def test_every_reply_carries_the_security_headers(client: TestClient) -> None:
    replies = [client.get(path) for path in ("/models", "/nowhere", "/health/live", "/metrics", "/openapi.json")]
    for reply in [*replies, client.post("/embed", content=encoded(photo(0)), headers=PNG)]:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "Content-Security-Policy" not in client.get("/docs").headers


def test_the_api_document_can_be_switched_off(serve: Serve) -> None:
    client = serve(api_docs=False)
    assert {client.get(path).status_code for path in ("/docs", "/openapi.json")} == {404}
    assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 200
