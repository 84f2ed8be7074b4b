"""A name for several models: the split is as weighted, a client keeps its model, and nothing of its key is written."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.alias import Alias
from app.main import create_app
from app.settings import Settings
from tests.toy import SIZE, encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
ADMIN = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two bundles, `a` and `b`."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate("ab"):
        write_toy_bundle(folder / name, seed, name)
    return folder


def embed(client: TestClient, model: str | None = "best", expect: str | None = None, **headers: str) -> Any:
    query = {"model": model, "expect_fingerprint": expect}
    query = {name: value for name, value in query.items() if value is not None}
    return client.post("/embed", params=query, content=encoded(photo(0)), headers=PNG | headers).json()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_clients_are_split_by_weight(share: float) -> None:
    alias = Alias("best", {"a": 1 - share, "b": share})
    counts = Counter(alias.model(str(i).encode()) for i in range(4000))
    assert abs(counts["b"] / 4000 - share) < 0.03  # three standard deviations at a half are 0.024
    assert sum(counts.values()) == counts["a"] + counts["b"]


@given(st.binary(), st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_sends_no_client_back(client: bytes, one: float, two: float) -> None:
    small, large = sorted((one, two))
    before, after = (Alias("best", {"a": 1 - share, "b": share}).model(client) for share in (small, large))
    assert (before, after) != ("b", "a")


def test_two_aliases_split_the_same_clients_differently() -> None:
    weights = {"a": 1.0, "b": 1.0}
    chosen = [[Alias(name, weights).model(str(i).encode()) for i in range(64)] for name in ("one", "two")]
    assert chosen[0] != chosen[1]


def test_a_client_keeps_its_model_and_its_key_is_nowhere(
    serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = serve(bundle=folder, aliases="best=a:1,b:1", log_level="debug")
    secrets = [f"customer-{i}" for i in range(16)]
    chosen = {key: {embed(client, **{"X-Client-Key": key})["model"] for _ in range(2)} for key in secrets}
    assert all(len(models) == 1 for models in chosen.values())
    assert {model for models in chosen.values() for model in models} == {"a", "b"}
    text = client.get("/metrics").text
    assert "customer-" not in caplog.text + text
    assert 'alignet_model_requests_total{model="a"}' in text


def test_without_a_client_key_the_api_key_is_one_and_without_both_chance_decides(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, aliases="best=a:1,b:1")
    keys = [{"Authorization": f"Bearer {i}"} for i in range(16)]
    assert [embed(client, **key)["model"] for key in keys] == [embed(client, **key)["model"] for key in keys]
    assert {embed(client)["model"] for _ in range(40)} == {"a", "b"}


def test_vectors_and_images_of_one_client_are_judged_by_one_model(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, aliases="best=a:1,b:1")
    body = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]], "model": "best"}
    for i in range(8):
        key = {"X-Client-Key": str(i)}
        assert client.post("/odd-one-out", json=body, headers=key).json()["model"] == embed(client, **key)["model"]


def test_who_expects_a_fingerprint_gets_the_model_that_has_it(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, aliases="best=a:1,b:0")
    other = embed(client, "b")["fingerprint"]
    assert embed(client)["model"] == "a"
    assert embed(client, expect=other)["model"] == "b"
    assert embed(client, expect="0" * 32)["code"] == "space_mismatch"


def test_an_alias_of_the_first_models_name_splits_those_who_name_none(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, aliases="a=a:0,b:1")
    assert embed(client, None)["model"] == embed(client, "a")["model"] == "b"
    assert client.get("/models").json()["aliases"] == {"a": {"a": 0.0, "b": 1.0}}


def test_an_admin_moves_the_weights(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder, aliases="best=a:1,b:0", admin_keys="boss")
    moved = {"weights": {"a": 0.0, "b": 5.0}}
    assert client.post("/admin/aliases/best", json=moved).status_code == 401
    assert client.post("/admin/aliases/best", json=moved, headers=ADMIN).json() == moved
    assert embed(client)["model"] == "b"
    for wrong in ({"weights": {"c": 1}}, {"weights": {"a": -1}}, {"weights": {}}, {"weights": {"a": "1"}}, {}):
        reply = client.post("/admin/aliases/best", json=wrong, headers=ADMIN)
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert embed(client)["model"] == "b"


@pytest.mark.parametrize(
    "text", ["best", "best=", "best=a", "best=a:x", "best=a:-1", "best=a:0", "a b=a:1", "best=a:nan"]
)
def test_a_wrong_alias_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="aliases"):
        Settings(aliases=text)


def test_an_alias_of_an_unknown_model_does_not_start(toy_bundle: Path) -> None:
    failures: list[Exception] = []
    settings = Settings(bundle=toy_bundle, aliases="best=toy:1,other:1")
    with TestClient(create_app(settings, on_failure=failures.append)) as client:
        while not failures:
            assert client.get("/health/ready").status_code == 503
    assert "'other'" in str(failures[0])


def test_the_document_has_the_admin_paths_only_where_they_are(serve: Serve, folder: Path) -> None:
    paths = [serve(bundle=folder, admin_keys=keys).get("/openapi.json").json()["paths"] for keys in ("", "boss")]
    admin = {"/admin/aliases/{name}", "/admin/models/{name}/reload"}
    assert set(paths[1]) - set(paths[0]) == admin
    for path in admin:
        operation = paths[1][path]["post"]
        assert operation["summary"] and "422" not in operation["responses"]
