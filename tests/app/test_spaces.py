"""Vectors of two spaces are never mixed: fingerprints, and the name of the model, on every path."""

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.toy import SIZE, encoded, photo

IMAGES = [{"image": base64.b64encode(encoded(photo(seed))).decode()} for seed in range(3)]
VECTORS = [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]
REQUESTS = [
    ("/embed", {"images": IMAGES}),
    ("/odd-one-out", {"images": IMAGES}),
    ("/odd-one-out", {"vectors": VECTORS}),
    ("/similarity", {"images": IMAGES}),
    ("/similarity", {"vectors": VECTORS}),
    ("/similarity", {"queries": {"vectors": VECTORS}, "candidates": {"images": IMAGES}}),
]


@pytest.mark.parametrize("space", ["aligned", "base"])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_the_fingerprint_of_the_space_passes_and_every_other_is_409(
    client: TestClient, path: str, body: dict[str, Any], space: str
) -> None:
    card = client.get("/models/toy").json()["spaces"]
    right = body | {"space": space, "expect_fingerprint": card[space]["fingerprint"]}
    assert client.post(path, json=right).json()["fingerprint"] == card[space]["fingerprint"]
    other = "base" if space == "aligned" else "aligned"
    for wrong in (card[other]["fingerprint"], card[space]["fingerprint_normalized"], "", "f" * 32):
        reply = client.post(path, json=right | {"expect_fingerprint": wrong})
        assert (reply.status_code, reply.json()["code"]) == (409, "space_mismatch")


def test_normalized_vectors_are_expected_by_the_normalized_fingerprint(client: TestClient) -> None:
    card = client.get("/models/toy").json()["spaces"]["aligned"]
    body = {"images": IMAGES, "normalize": True}
    right = client.post("/embed", json=body | {"expect_fingerprint": card["fingerprint_normalized"]})
    wrong = client.post("/embed", json=body | {"expect_fingerprint": card["fingerprint"]})
    assert (right.status_code, wrong.status_code) == (200, 409)


def test_a_form_and_a_raw_body_expect_a_fingerprint_too(client: TestClient) -> None:
    image = encoded(photo(0))
    form = {"files": [("images", ("a", image, "image/png"))] * 3, "data": {"expect_fingerprint": "0" * 32}}
    raw = {"content": image, "headers": {"Content-Type": "image/png"}, "params": {"expect_fingerprint": "0" * 32}}
    for path in ("/embed", "/odd-one-out", "/similarity"):
        assert client.post(path, **form).status_code == 409
    assert client.post("/embed", **raw).status_code == 409


@pytest.mark.parametrize("name", ["other", "", "TOY", "toy "])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_another_models_name_is_404(client: TestClient, path: str, body: dict[str, Any], name: str) -> None:
    assert client.post(path, json=body | {"model": "toy"}).status_code == 200
    reply = client.post(path, json=body | {"model": name})
    assert (reply.status_code, reply.json()["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_a_space_that_no_model_has_is_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json=body | {"space": "other"})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
