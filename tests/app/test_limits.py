"""Every limit refuses with its own code and status, names itself, and lets the next request through."""

import asyncio
import base64
import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


def as_json(*images: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [{"image": base64.b64encode(image).decode()} for image in images], **options}


def summary(reply: Any) -> tuple[int, str, float | None]:
    return reply.status_code, reply.json()["code"], reply.json().get("limit")


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
def test_a_body_over_the_limit_is_refused_with_and_without_a_stated_length(serve: Serve, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b" " * 2049

    client = serve(max_body_bytes=2048)
    stated = client.post(path, content=b" " * 2049, headers={"Content-Type": "application/json"})
    chunked = client.post(path, content=chunks(), headers={"Content-Type": "application/json"})
    assert "content-length" not in chunked.request.headers
    assert summary(stated) == summary(chunked) == (413, "body_too_large", 2048)


def test_an_endless_body_is_refused_as_soon_as_it_passes_the_limit(serve: Serve) -> None:
    client, sent, taken = serve(max_body_bytes=2048), [], []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 413
    assert len(taken) == 3


def test_a_stated_length_over_the_limit_is_refused_before_a_byte_is_read(serve: Serve) -> None:
    client, sent = serve(max_body_bytes=2048), []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", b"2049")]
    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": headers}
    client.portal.call(client.app, scope | {"http_version": "1.1"}, asyncio.Event().wait, send)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("way", ["raw", "json", "multipart"])
@pytest.mark.parametrize(
    ("setting", "size", "status", "code"),
    [
        ({"max_image_bytes": 500}, (40, 30), 413, "image_too_large"),
        ({"max_image_pixels": 1199}, (40, 30), 413, "too_many_pixels"),
        ({"max_image_side": 39}, (40, 30), 413, "side_too_long"),
        ({"min_image_side": 31}, (40, 30), 422, "side_too_short"),
    ],
)
def test_each_limit_of_an_image_has_its_own_code_whichever_way_it_came(
    serve: Serve, way: str, setting: dict[str, int], size: tuple[int, int], status: int, code: str
) -> None:
    client, image = serve(**setting), encoded(photo(0, size))
    if way == "raw":
        reply = client.post("/embed", content=image, headers=PNG)
    elif way == "json":
        reply = client.post("/embed", json=as_json(image))
    else:
        reply = client.post("/embed", files=[("images", ("a", image, "image/png"))])
    ((name, limit),) = setting.items()
    assert summary(reply) == (status, code, limit)
    assert reply.json()["index"] == 0
    assert client.get("/models/toy").json()["limits"][name] == limit


@pytest.mark.parametrize("setting", [{"max_image_pixels": 1200}, {"max_image_side": 40}, {"min_image_side": 30}])
def test_an_image_exactly_at_a_limit_passes(serve: Serve, setting: dict[str, int]) -> None:
    reply = serve(**setting).post("/embed", content=encoded(photo(0, (40, 30))), headers=PNG)
    assert reply.status_code == 200


def test_an_image_of_exactly_the_largest_size_in_bytes_passes(serve: Serve) -> None:
    image = encoded(photo(0))
    client = serve(max_image_bytes=len(image))
    assert client.post("/embed", content=image, headers=PNG).status_code == 200
    assert client.post("/embed", json=as_json(image)).status_code == 200
    assert client.post("/embed", json=as_json(image + b"\0")).json()["code"] == "image_too_large"


def test_base64_far_over_the_limit_is_refused_before_it_is_decoded(serve: Serve) -> None:
    reply = serve(max_image_bytes=100).post("/embed", json=as_json(encoded(photo(0)), b"x" * 9000))
    assert summary(reply) == (413, "image_too_large", 100)


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
@pytest.mark.parametrize("extra", [1, 2, 5])
def test_too_many_images_are_refused_as_json_and_as_files(serve: Serve, path: str, extra: int) -> None:
    client, images = serve(max_images=3), [encoded(photo(seed)) for seed in range(3)]
    assert client.post(path, json=as_json(*images)).status_code == 200
    images += images[:1] * extra
    files = [("images", ("a", image, "image/png")) for image in images]
    json, form = client.post(path, json=as_json(*images)), client.post(path, files=files)
    assert summary(json) == summary(form) == (413, "too_many_images", 3)


def test_queries_and_candidates_count_together_as_images(serve: Serve) -> None:
    client, two = serve(max_images=3), as_json(encoded(photo(0)), encoded(photo(1)))
    reply = client.post("/similarity", json={"queries": two, "candidates": two})
    assert summary(reply) == (413, "too_many_images", 3)


@pytest.mark.parametrize("path", ["/odd-one-out", "/similarity"])
def test_too_many_vectors_are_refused(serve: Serve, path: str) -> None:
    client, vectors = serve(max_vectors=3), [[float(i), 1, 2, 3, 4] for i in range(4)]
    assert client.post(path, json={"vectors": vectors[:3]}).status_code == 200
    assert summary(client.post(path, json={"vectors": vectors})) == (413, "too_many_vectors", 3)


def test_queries_and_candidates_count_together_as_vectors(serve: Serve) -> None:
    client, two = serve(max_vectors=3), {"vectors": [[1.0] * SIZE] * 2}
    reply = client.post("/similarity", json={"queries": two, "candidates": two})
    assert summary(reply) == (413, "too_many_vectors", 3)


def test_too_many_triplets_are_refused_as_json_and_as_a_form(serve: Serve) -> None:
    client = serve(max_triplets=2)
    images = [encoded(photo(seed)) for seed in range(3)]
    files = [("images", ("a", image, "image/png")) for image in images]
    two, three = [[0, 1, 2]] * 2, [[0, 1, 2]] * 3
    assert client.post("/odd-one-out", json=as_json(*images, triplets=two)).status_code == 200
    json = client.post("/odd-one-out", json=as_json(*images, triplets=three))
    form = client.post("/odd-one-out", files=files, data={"triplets": str(three)})
    assert summary(json) == summary(form) == (413, "too_many_triplets", 2)


NOTHING = [0] * 2000
UNKNOWN = {f"no{i}": 0 for i in range(2000)}
TENSOR = {"name": "pixels", "datatype": "UINT8", "shape": [1]}
INFER = "/v2/models/toy/infer"


@pytest.mark.parametrize(
    ("path", "body", "first"),
    [
        ("/embed", {"images": NOTHING}, "images.0: "),
        ("/embed", {"images": [{"image": ""}], **UNKNOWN}, "no0: "),
        ("/embed", {"images": [{"image": ""}, {"image": "", **UNKNOWN}]}, "images.1.no0: "),
        ("/odd-one-out", {"vectors": [], "triplets": NOTHING}, "vectors: "),
        ("/odd-one-out", {"vectors": [[0]], "triplets": NOTHING}, "triplets.0: "),
        ("/similarity", {"queries": {"images": NOTHING}, "candidates": {}}, "queries.images.0: "),
        ("/similarity", {"queries": UNKNOWN}, "queries.no0: "),
        ("/v1/embeddings", {"model": "toy", "input": NOTHING}, "input.0"),
        ("/v1/embeddings", {"model": "toy", "input": [{"image": ""}], **UNKNOWN}, "no0: "),
        (INFER, {"inputs": NOTHING}, "inputs.0: "),
        (INFER, {"inputs": [TENSOR] * 2000}, "inputs: "),
        (INFER, {"inputs": [TENSOR | {"shape": [""] * 2000}]}, "inputs.0.shape.0: "),
        (INFER, {"inputs": [TENSOR], "outputs": NOTHING}, "outputs.0: "),
    ],
)
def test_of_thousands_of_wrong_items_the_first_is_named_and_the_rest_costs_nothing(
    serve: Serve, path: str, body: dict[str, Any], first: str
) -> None:
    reply = serve(max_images=4000).post(path, json=body)
    assert reply.status_code == 400 and first in reply.text
    more = re.search(r"\((\d+) more\)", reply.text)  # each was an object of its own, made with everything else waiting
    assert more is None or int(more[1]) < 10


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/embed", {"images": [0] * 9}, "too_many_images"),
        ("/v1/embeddings", {"model": "toy", "input": [0] * 9}, "too_many_images"),
        ("/odd-one-out", {"vectors": [0] * 9}, "too_many_vectors"),
        ("/odd-one-out", {"vectors": [[0]], "triplets": [0] * 9}, "too_many_triplets"),
        ("/similarity", {"queries": {"images": [0] * 9}}, "too_many_images"),
        ("/similarity", {"candidates": {"vectors": [0] * 9}}, "too_many_vectors"),
    ],
)
def test_a_list_is_counted_before_its_items_are_looked_at(
    serve: Serve, path: str, body: dict[str, Any], code: str
) -> None:
    reply = serve(max_images=8, max_vectors=8, max_triplets=8).post(path, json=body)
    assert reply.status_code == 413 and code in reply.text


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "x"])
def test_a_compressed_body_is_415(client: TestClient, path: str, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    reply = client.post(path, content=gzip.compress(b"{}"), headers=headers)
    assert summary(reply) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
@pytest.mark.parametrize("type_", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed", "json"])
def test_another_content_type_is_415(client: TestClient, path: str, type_: str) -> None:
    reply = client.post(path, content=b"{}", headers={"Content-Type": type_})
    assert summary(reply) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize("path", ["/odd-one-out", "/similarity"])
def test_a_raw_image_is_read_by_embed_alone(client: TestClient, path: str) -> None:
    reply = client.post(path, content=encoded(photo(0)), headers=PNG)
    assert summary(reply) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize("type_", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
def test_json_goes_by_any_of_its_names(client: TestClient, type_: str) -> None:
    reply = client.post("/similarity", content=b'{"vectors": [[1,2,3,4,5]]}', headers={"Content-Type": type_})
    assert reply.status_code == 200


@pytest.mark.parametrize("asked", ["", "0", "-5", "1.5", "1e3", "30001", "٣", "five", " ", "0x10", "1" * 20])
def test_a_deadline_out_of_range_is_refused(client: TestClient, asked: str) -> None:
    headers = {b"X-Request-Timeout-Ms": asked.encode()}
    reply = client.post("/similarity", json={"vectors": [[1, 2, 3, 4, 5]]}, headers=headers)
    assert summary(reply)[:2] == (400, "invalid_request")


@pytest.mark.parametrize("tail", ["9" * 9, "9" * 400, "9" * 5000])
def test_a_deadline_out_of_range_is_refused_however_many_zeros_lead_it(serve: Serve, tail: str) -> None:
    client = serve(raise_bugs=False)
    headers = {"X-Request-Timeout-Ms": "000000000001" + tail}
    reply = client.post("/similarity", json={"vectors": [[1, 2, 3, 4, 5]]}, headers=headers)
    assert reply.status_code == 400


@pytest.mark.parametrize("asked", ["1000", "30000", "007000"])
def test_a_deadline_within_range_is_granted(client: TestClient, asked: str) -> None:
    headers = {"X-Request-Timeout-Ms": asked}
    assert client.post("/similarity", json={"vectors": [[1, 2, 3, 4, 5]]}, headers=headers).status_code == 200


def test_a_tiff_whose_tile_is_larger_than_its_picture_is_refused_before_the_tile_is_decoded(serve: Serve) -> None:
    # 64 x 64 pixels to all appearances; one compressed tile of a million. With 30,000 x 30,000, 875 kB become 900 MB.
    tile = zlib.compress(bytes(1000 * 1000), 9)
    tags = {
        256: 64,
        257: 64,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: 1000,
        323: 1000,
        324: 8 + 2 + 120 + 4,
        325: len(tile),
    }
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    tiff = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + tile
    reply = serve(max_image_pixels=10_000).post("/embed", content=tiff, headers=PNG)
    assert summary(reply) == (413, "too_many_pixels", 10_000)


def test_a_jpeg_of_a_thousand_scans_is_refused_before_they_are_decoded(client: TestClient) -> None:
    # At 5000 x 5000 pixels each further scan of 42 bytes costs 10 ms: 10 MB take 40 minutes of a decoding thread.
    jpeg = encoded(photo(0), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert client.post("/embed", content=jpeg, headers=PNG).status_code == 200
    reply = client.post("/embed", content=jpeg[:-2] + scan * 1000 + jpeg[-2:], headers=PNG)
    assert (reply.status_code, reply.json()["code"]) == (422, "undecodable_image")


@pytest.mark.parametrize("value", [1, 0, "true", "yes", "on", None])
def test_in_json_only_true_and_false_are_booleans(client: TestClient, value: Any) -> None:
    reply = client.post("/embed", json=as_json(encoded(photo(0)), normalize=value))
    assert summary(reply) == (400, "invalid_request", None)
    assert "normalize" in reply.json()["detail"]


@pytest.mark.parametrize("value", ["true", "1", "false"])
def test_in_a_form_or_query_booleans_are_text(client: TestClient, value: str) -> None:
    form = client.post("/embed", files=[("images", ("a", encoded(photo(0))))], data={"normalize": value})
    query = client.post(f"/embed?normalize={value}", content=encoded(photo(0)), headers=PNG)
    for reply in (form, query):
        assert (reply.status_code, reply.json()["normalized"]) == (200, value != "false")


@pytest.mark.parametrize("value", ["0.5", True])
def test_in_json_only_numbers_are_numbers(client: TestClient, value: Any) -> None:
    vectors = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}
    assert summary(client.post("/odd-one-out", json=vectors | {"min_margin": value}))[:2] == (400, "invalid_request")
    assert client.post("/odd-one-out", json=vectors | {"min_margin": 1}).status_code == 200
