"""`on_error: partial`: every image of a request has an outcome of its own."""

import base64
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.toy import encoded, photo

GOOD = [encoded(photo(seed)) for seed in range(2)]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def embed(client: TestClient, *images: str, **options: Any) -> Any:
    return client.post("/embed", json={"images": [{"image": image} for image in images], **options})


BAD = {
    "not base64!": (400, "invalid_request"),
    "data:image/png,plain": (400, "invalid_request"),
    b64(b"no image"): (415, "unsupported_image_format"),
    b64(GOOD[0][:200]): (422, "undecodable_image"),
    b64(encoded(photo(0, (8, 8)))): (422, "side_too_short"),
    b64(b""): (422, "undecodable_image"),
}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_good_ones_are_exactly_what_they_are_alone_and_each_bad_one_has_its_problem(
    client: TestClient, encoding: str
) -> None:
    images = [b64(GOOD[0]), *BAD, b64(GOOD[1]), b64(GOOD[0])]
    reply = embed(client, *images, on_error="partial", encoding=encoding)
    assert reply.status_code == 200
    data = reply.json()["data"]
    assert [item["index"] for item in data] == list(range(len(images)))
    alone = embed(client, b64(GOOD[0]), b64(GOOD[1]), encoding=encoding).json()["data"]
    assert [data[0]["embedding"], data[7]["embedding"], data[8]["embedding"]] == [
        alone[k]["embedding"] for k in (0, 1, 0)
    ]
    for i, (status, code) in enumerate(BAD.values(), 1):
        error = data[i]["error"]
        assert (error["status"], error["code"], error["index"]) == (status, code, i)
        assert f"image {i}" in error["detail"]
        assert "embedding" not in data[i]
    assert reply.json()["usage"] == {"images": 9, "unique_images": 6}


def test_a_bad_image_given_twice_names_each_of_its_places(client: TestClient) -> None:
    bad = b64(GOOD[0][:200])
    data = embed(client, bad, b64(GOOD[0]), bad, on_error="partial").json()["data"]
    assert [(item["error"]["index"], item["error"]["detail"][:7]) for item in (data[0], data[2])] == [
        (0, "image 0"),
        (2, "image 2"),
    ]


def test_without_it_one_bad_image_fails_the_request(client: TestClient) -> None:
    for bad, (status, code) in BAD.items():
        for options in ({}, {"on_error": "fail"}):
            reply = embed(client, b64(GOOD[0]), bad, **options)
            assert (reply.status_code, reply.json()["code"], reply.json()["index"]) == (status, code, 1)


def test_if_all_are_bad_the_reply_has_problems_only(client: TestClient) -> None:
    reply = embed(client, *BAD, on_error="partial", normalize=True)
    assert reply.status_code == 200
    assert all("error" in item for item in reply.json()["data"])
    assert reply.json()["size"] == 5


def test_it_works_in_a_form_and_with_a_raw_body(client: TestClient) -> None:
    files = [("images", ("a", image, "image/png")) for image in (b"bad", GOOD[0])]
    form = client.post("/embed", files=files, data={"on_error": "partial"}).json()["data"]
    assert ["error" in item for item in form] == [True, False]
    raw = client.post("/embed?on_error=partial", content=b"bad", headers={"Content-Type": "image/png"})
    assert raw.json()["data"][0]["error"]["code"] == "unsupported_image_format"


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/x-npy"])
def test_a_binary_reply_has_no_place_for_errors(client: TestClient, accept: str) -> None:
    reply = client.post(
        "/embed?on_error=partial", content=GOOD[0], headers={"Content-Type": "image/png", "Accept": accept}
    )
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_faults_of_the_request_itself_still_fail_it(serve: Any) -> None:
    client = serve(max_images=1)
    assert embed(client, b64(GOOD[0]), b64(GOOD[1]), on_error="partial").json()["code"] == "too_many_images"
    assert embed(client, b64(GOOD[0]), on_error="maybe").json()["code"] == "invalid_request"


def test_it_equals_the_plain_reply_where_nothing_is_bad(client: TestClient) -> None:
    images = [b64(image) for image in GOOD]
    plain, partial = embed(client, *images).json(), embed(client, *images, on_error="partial").json()
    assert plain == partial
    assert np.isfinite(plain["data"][0]["embedding"]).all()
