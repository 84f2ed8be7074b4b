"""POST /embed: one photo is one vector, however it comes in and however it goes out."""

import base64
import binascii
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.errors import ServiceError
from app.intake import decode_base64
from contract.bundle import Golden, read_bundle, write_bundle
from tests.contract.pictures import camera_file
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_json(*images: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [{"image": base64.b64encode(image).decode()} for image in images], **options}


def vectors_in(reply: Any) -> NDArray[np.float32]:
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]], np.float32)


def raw(client: TestClient, image: bytes, **options: Any) -> Any:
    return client.post("/embed", content=image, headers={"Content-Type": "image/png"}, params=options)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_golden_images_give_their_golden_vectors_bit_for_bit(client: TestClient, toy_bundle: Path) -> None:
    golden = read_bundle(toy_bundle).golden
    for space in ("aligned", "base"):
        given_ = vectors_in(client.post("/embed", json=as_json(*golden.images, space=space)))
        assert same_bits(given_, golden.vectors[space])


def test_base64_data_uri_multipart_and_raw_body_give_the_same_bits(client: TestClient) -> None:
    image = encoded(photo(7))
    text = base64.b64encode(image).decode()
    ways = [
        client.post("/embed", json={"images": [{"image": text}]}),
        client.post("/embed", json={"images": [{"image": "\r\n".join(text[i : i + 76] for i in range(0, 9999, 76))}]}),
        client.post("/embed", json={"images": [{"image": f"data:image/png;base64,{text}"}]}),
        client.post("/embed", json={"images": [{"image": f"DATA:;x=y;BASE64,{text}"}]}),
        client.post("/embed", files=[("images", ("a.png", image, "image/png"))]),
        raw(client, image),
    ]
    first = vectors_in(ways[0])
    assert all(same_bits(vectors_in(reply), first) for reply in ways)


def test_float_base64_octet_stream_and_npy_replies_hold_the_same_bits(client: TestClient) -> None:
    body = as_json(*(encoded(photo(seed)) for seed in range(4)))
    floats = vectors_in(client.post("/embed", json=body))
    rows = [item["embedding"] for item in client.post("/embed", json=body | {"encoding": "base64"}).json()["data"]]
    octets = client.post("/embed", json=body, headers={"Accept": "application/octet-stream"})
    npy = client.post("/embed", json=body, headers={"Accept": "application/x-npy"})
    assert same_bits(np.frombuffer(b"".join(map(base64.b64decode, rows)), "<f4").reshape(4, SIZE), floats)
    assert same_bits(np.frombuffer(octets.content, "<f4").reshape(4, SIZE), floats)
    assert same_bits(np.load(io.BytesIO(npy.content), allow_pickle=False), floats)
    assert octets.headers["X-Embedding-Shape"] == npy.headers["X-Embedding-Shape"] == f"4x{SIZE}"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("application/json, application/octet-stream", "application/json"),
        ("text/html, application/x-npy;q=0.9, application/json", "application/x-npy"),
        ("APPLICATION/OCTET-STREAM", "application/octet-stream"),
    ],
)
def test_the_reply_is_binary_only_where_accept_names_it_before_json(
    client: TestClient, accept: str, content_type: str
) -> None:
    headers = {"Accept": accept, "Content-Type": "image/png"}
    reply = client.post("/embed", content=encoded(photo(0)), headers=headers)
    assert reply.headers["Content-Type"] == content_type


@examples
@given(seeds=st.lists(st.integers(0, 12), min_size=1, max_size=24))
def test_a_photo_gives_the_same_bits_alone_and_in_any_batch(client: TestClient, seeds: list[int]) -> None:
    together = vectors_in(client.post("/embed", json=as_json(*(encoded(photo(seed)) for seed in seeds))))
    alone = np.concatenate([vectors_in(raw(client, encoded(photo(seed)))) for seed in seeds])
    assert same_bits(together, alone)


def test_requests_side_by_side_do_not_change_each_others_bits(serve: Serve) -> None:
    client = serve(max_batch=4)
    images = [encoded(photo(seed)) for seed in range(40)]
    alone = [vectors_in(raw(client, image)) for image in images]
    with ThreadPoolExecutor(8) as pool:
        crowded = list(pool.map(lambda image: vectors_in(raw(client, image)), images))
    assert all(same_bits(a, b) for a, b in zip(alone, crowded, strict=True))


@pytest.mark.parametrize("format_", ["BMP", "TIFF", "WEBP", "PNG"])
def test_every_lossless_format_of_one_photo_gives_the_same_bits(client: TestClient, format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    given_ = vectors_in(raw(client, encoded(photo(3), format_, **options)))
    assert same_bits(given_, vectors_in(raw(client, encoded(photo(3)))))


@pytest.mark.parametrize("format_", ["JPEG", "GIF"])
def test_a_lossy_photo_gives_the_vector_of_its_decoded_pixels(client: TestClient, format_: str) -> None:
    lossy = encoded(photo(3), format_)
    decoded = encoded(Image.open(io.BytesIO(lossy)).convert("RGB"))
    assert same_bits(vectors_in(raw(client, lossy)), vectors_in(raw(client, decoded)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_a_turned_photo_with_its_exif_flag_gives_the_bits_of_the_upright_one(
    client: TestClient, format_: str, orientation: int
) -> None:
    upright = photo(5)
    _, stored = camera_file(upright, orientation, format_, **({"lossless": True} if format_ == "WEBP" else {}))
    assert same_bits(vectors_in(raw(client, stored)), vectors_in(raw(client, encoded(upright))))


def test_normalize_gives_unit_length_in_the_same_direction(client: TestClient) -> None:
    body = as_json(*(encoded(photo(seed)) for seed in range(5)))
    plain = vectors_in(client.post("/embed", json=body)).astype(np.float64)
    unit = vectors_in(client.post("/embed", json=body | {"normalize": True})).astype(np.float64)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.allclose(unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-6)


def test_every_space_and_scaling_has_a_fingerprint_of_its_own_as_on_the_card(client: TestClient) -> None:
    spaces = client.get("/models/toy").json()["spaces"]
    seen = set()
    for space, card in spaces.items():
        for normalize, expected in ((False, card["fingerprint"]), (True, card["fingerprint_normalized"])):
            reply = client.post("/embed", json=as_json(encoded(photo(0)), space=space, normalize=normalize))
            assert (reply.json()["fingerprint"], reply.json()["normalized"]) == (expected, normalize)
            assert reply.headers["X-Space-Fingerprint"] == expected
            seen.add(expected)
    assert len(seen) == 4


@examples
@given(seeds=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_the_same_photo_twice_is_counted_once_and_answered_in_order(client: TestClient, seeds: list[int]) -> None:
    reply = client.post("/embed", json=as_json(*(encoded(photo(seed)) for seed in seeds)))
    assert reply.json()["usage"] == {"images": len(seeds), "unique_images": len(set(seeds))}
    assert [item["index"] for item in reply.json()["data"]] == list(range(len(seeds)))
    rows = [item["embedding"] for item in reply.json()["data"]]
    assert all((rows[i] == rows[j]) == (a == b) for i, a in enumerate(seeds) for j, b in enumerate(seeds))


def test_identical_photos_are_inferred_once(client: TestClient) -> None:
    client.post("/embed", json=as_json(*[encoded(photo(0))] * 5))
    lines = client.get("/metrics").text.splitlines()
    assert "alignet_batch_images_sum 1.0" in lines
    assert 'alignet_images_total{outcome="decoded"} 1.0' in lines


def test_the_same_options_work_as_json_fields_form_fields_and_query(client: TestClient) -> None:
    image, options = encoded(photo(2)), {"space": "base", "normalize": "true", "encoding": "base64", "model": "toy"}
    form = client.post("/embed", files=[("images", ("a", image, "image/png"))], data=options)
    query = raw(client, image, **options)
    json = client.post("/embed", json=as_json(image, **options | {"normalize": True}))
    assert form.json() == query.json() == json.json()
    assert json.json()["normalized"] is True


def test_a_bundle_without_base_refuses_the_space_base(serve: Serve, toy_bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(toy_bundle)
    manifest = replace(whole.manifest, spaces={"aligned": whole.manifest.spaces["aligned"]})
    golden = Golden(images=whole.golden.images, pixels=whole.golden.pixels, vectors=dict(whole.golden.vectors))
    del golden.vectors["base"]
    graph = tmp_path / "aligned_only.onnx"
    import onnx

    model = onnx.load(str(whole.model_path))
    del model.graph.output[1]
    onnx.save(model, str(graph))
    client = serve(bundle=write_bundle(tmp_path / "bundle", manifest, graph, golden).path)
    refused = raw(client, encoded(photo(0)), space="base")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert raw(client, encoded(photo(0))).status_code == 200


@given(st.text("AQgz/+=- _\n\r\té", max_size=12) | st.binary(max_size=30).map(lambda b: base64.b64encode(b).decode()))
def test_base64_is_what_the_standard_library_takes_strictly_with_line_breaks_left_out(text: str) -> None:
    bare = "".join(c for c in text if c not in " \t\r\n")
    try:
        expected = binascii.a2b_base64(bare.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        with pytest.raises(ServiceError, match="image 3: not base64"):
            decode_base64(text, "image", 3)
    else:
        assert decode_base64(text, "image", 3) == expected


@pytest.mark.parametrize(
    "text", ["https://example.org/cat.png", "file:///etc/passwd", "data:image/png,abc", "a_b-", "é"]
)
def test_what_is_no_base64_is_refused_by_its_index_and_never_fetched(client: TestClient, text: str) -> None:
    good = {"image": base64.b64encode(encoded(photo(0))).decode()}
    reply = client.post("/embed", json={"images": [good, good, {"image": text}]})
    assert (reply.status_code, reply.json()["code"], reply.json()["index"]) == (400, "invalid_request", 2)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"", "undecodable_image"),
        (b"hello", "unsupported_image_format"),
        (encoded(photo(0))[:-60], "undecodable_image"),
    ],
)
@pytest.mark.parametrize("way", ["json", "multipart"])
def test_a_bad_photo_is_named_by_its_index_whichever_way_it_came(
    client: TestClient, way: str, bad: bytes, code: str
) -> None:
    images = [encoded(photo(0)), encoded(photo(0)), encoded(photo(1)), bad]
    files = [("images", ("photo", image, "image/png")) for image in images]
    reply = client.post("/embed", files=files) if way == "multipart" else client.post("/embed", json=as_json(*images))
    assert (reply.json()["code"], reply.json()["index"]) == (code, 3)


def test_the_content_type_of_a_raw_body_need_not_be_the_format_of_the_photo(client: TestClient) -> None:
    reply = client.post("/embed", content=encoded(photo(0), "JPEG"), headers={"Content-Type": "image/webp"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ([("photos", ("a", b"x", "image/png"))], {}),  # another name
        ([], {"images": "text"}),  # text where a file belongs
        ([("images", ("a", encoded(photo(0)), "image/png"))], {"space": ["base", "base"]}),  # twice
        ([("images", ("a", encoded(photo(0)), "image/png"))], {"colour": "red"}),  # unknown option
        ([("images", ("a", encoded(photo(0)), "image/png"))], {"normalize": "maybe"}),
    ],
)
def test_a_form_of_other_parts_is_refused(client: TestClient, files: list[Any], data: dict[str, Any]) -> None:
    forced = files or [("other", ("a", b"", "image/png"))]  # keeps the client from sending urlencoded data
    reply = client.post("/embed", files=forced, data=data)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_a_form_without_files_is_refused(client: TestClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="space"\r\n\r\nbase\r\n--x--\r\n'
    reply = client.post("/embed", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert "no file" in reply.json()["detail"]


def test_a_form_cut_short_is_refused_not_answered_in_part(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + encoded(photo(0)) + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/embed", content=part * 3 + b"--x--\r\n", headers=headers).json()["usage"]["images"] == 3
    for missing in (b"", part[:-20], part):
        assert client.post("/embed", content=part * 2 + missing, headers=headers).status_code == 400


@pytest.mark.parametrize("path", ["/embed", "/odd-one-out", "/similarity"])
def test_a_query_beside_a_json_body_is_refused_not_ignored(client: TestClient, path: str) -> None:
    body = as_json(*(encoded(photo(seed)) for seed in range(3)))
    assert client.post(path, json=body).status_code == 200
    refused = client.post(path, json=body, params={"space": "base"})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")


def test_a_query_names_an_unknown_option_of_a_raw_body(client: TestClient) -> None:
    reply = raw(client, encoded(photo(0)), normalise="true")
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
