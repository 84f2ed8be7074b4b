"""The Open Inference Protocol, asked by Triton's own client and by hand."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app import tensors
from app.errors import ProtocolError
from app.routes.kserve import ModelMetadata
from contract.pixels import PixelSpec, load_pixels
from tests.running import free_port, replica, until
from tests.toy import SIDE, SIZE, encoded, photo, write_toy_bundle

triton = pytest.importorskip("tritonclient.http", reason="install tritonclient[http]")
from tritonclient.utils import InferenceServerException  # noqa: E402

FILES = [encoded(photo(seed)) for seed in range(3)]
SPEC = PixelSpec(height=SIDE, width=SIDE, resize="squash", dtype="uint8")
PIXELS = np.stack([load_pixels(file, SPEC) for file in FILES])
INFER = "/v2/models/toy/infer"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a service with a key and two models behind an alias."""
    folder, port = tmp_path_factory.mktemp("kserve"), free_port()
    bundles = ",".join(str(write_toy_bundle(folder / name, name=name)) for name in ("toy", "other"))
    options = ("--bundle", bundles, "--aliases", "best=toy:1", "--max-images", "3", "--drain-delay", "0")
    with replica(port, folder / "log", *options, "--api-keys", "secret"):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"127.0.0.1:{port}"


def key() -> dict[str, str]:
    """The header, a new one each time: Triton's client writes its own into the dict that it is given."""
    return {"Authorization": "Bearer secret"}


@pytest.fixture
def ask(live: str) -> Iterator[Any]:
    with triton.InferenceServerClient(live) as client:
        yield client


def pixels_input(pixels: NDArray[Any] = PIXELS, **how: Any) -> Any:
    given = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, **how)
    return given


def expected(live: str) -> dict[str, Any]:
    import httpx2

    out = {}
    for space in ("aligned", "base"):
        files = [("images", ("x", file)) for file in FILES]
        headers = key() | {"Accept": "application/octet-stream"}
        reply = httpx2.post(f"http://{live}/embed", files=files, data={"space": space}, headers=headers)
        out[space] = np.frombuffer(reply.content, "<f4").reshape(-1, SIZE)
    return out


def test_tritons_client_finds_the_server_and_its_models(ask: Any) -> None:
    assert ask.is_server_live()
    assert ask.is_server_ready()
    assert ask.get_server_metadata(headers=key())["name"] == "alignet-serve"
    for name in ("toy", "other", "best"):
        for version in ("", "1"):
            assert ask.is_model_ready(name, version, headers=key())
            card = ask.get_model_metadata(name, version, headers=key())
            assert (card["name"], card["versions"]) == (name, ["1"])
            assert card["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, SIDE, SIDE]}]
            output = {"datatype": "FP32", "shape": [-1, SIZE]}
            assert card["outputs"] == [{"name": space, **output} for space in ("aligned", "base")]
    assert not ask.is_model_ready("nope", headers=key())
    assert not ask.is_model_ready("toy", "2", headers=key())
    assert not ask.is_model_ready("toy")  # without the key


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_pixels_give_the_vectors_of_embed(live: str, ask: Any, binary_in: bool, binary_out: bool | None) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(space, binary_data=binary_out) for space in ("base", "aligned")]
    result = ask.infer("toy", [pixels_input(binary_data=binary_in)], outputs=outputs, request_id="7", headers=key())
    for space, matrix in expected(live).items():
        np.testing.assert_array_equal(result.as_numpy(space), matrix)
    reply = result.get_response()
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("toy", "1", "7")
    assert set(reply["parameters"]) == {"fingerprint.aligned", "fingerprint.base"}


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images_give_the_same(live: str, ask: Any, shape: list[int], binary: bool) -> None:
    items = FILES if binary else [base64.b64encode(file) for file in FILES]
    given = triton.InferInput("images", shape, "BYTES")
    given.set_data_from_numpy(np.array(items, object).reshape(shape), binary_data=binary)
    result = ask.infer("toy", [given], model_version="1", headers=key())
    for space, matrix in expected(live).items():
        np.testing.assert_array_equal(result.as_numpy(space), matrix)


def test_many_at_once_by_the_asynchronous_client(live: str) -> None:
    import tritonclient.http.aio as aio

    async def work() -> list[Any]:
        async with aio.InferenceServerClient(live) as client:
            inputs = []
            for i in range(3):
                given = aio.InferInput("pixels", [1, 3, SIDE, SIDE], "UINT8")
                given.set_data_from_numpy(PIXELS[i : i + 1])
                inputs.append(given)
            return await asyncio.gather(*(client.infer("best", [inputs[i % 3]], headers=key()) for i in range(12)))

    found = [result.as_numpy("aligned")[0] for result in asyncio.run(work())]
    np.testing.assert_array_equal(found, expected(live)["aligned"][[0, 1, 2] * 4])


def test_what_is_refused_reads_as_an_error_of_triton(ask: Any) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"headers": {}}, "unauthorized"),
        ({"model_name": "nope"}, "model_not_found"),
        ({"model_version": "2"}, "model_not_found"),
        ({"inputs": [pixels_input(np.repeat(PIXELS, 2, axis=0))]}, "too_many_images"),
        ({"parameters": {"fingerprint.aligned": "0"}}, "space_mismatch"),
        ({"outputs": [triton.InferRequestedOutput("nope")]}, "invalid_request"),
        ({"outputs": [triton.InferRequestedOutput("aligned", class_count=3)]}, "invalid_request"),
        ({"request_compression_algorithm": "gzip"}, "unsupported_media_type"),
    ]
    for options, code in cases:
        with pytest.raises(InferenceServerException, match=f"^\\[\\d+\\] {code}: "):
            ask.infer(**({"model_name": "toy", "inputs": [pixels_input()], "headers": key()} | options))
    with pytest.raises(InferenceServerException, match="route_not_found"):
        ask.get_inference_statistics("toy", headers=key())


# --- by hand, in this process -------------------------------------------------------------------


def body(**changes: Any) -> dict[str, Any]:
    given = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, SIDE, SIDE], "data": PIXELS[:1].tolist()}
    return {"inputs": [given | changes]}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"inputs": []},
        {"inputs": [*body()["inputs"], *body()["inputs"]]},
        body(name="image"),
        body(datatype="FP32"),
        body(shape=[1, SIDE, SIDE, 3]),
        body(shape=[0, 3, SIDE, SIDE], data=[]),
        body(shape=[-1, 3, SIDE, SIDE]),
        body(shape=[2, 3, SIDE, SIDE]),
        body(shape=[10**9, 3, SIDE, SIDE]),
        body(data=[0.5] * 192),
        body(data=[256] * 192),
        body(data=[-1] * 192),
        body(data=[True] * 192),
        body(data=["1"] * 192),
        body(data=[[1] * 191, [1]]),
        body(data=[1] * 191),
        body(data=7),
        body(data=None),
        body(parameters={"binary_data_size": 192}),
        body(data=None, parameters={"binary_data_size": 192}),
        body(parameters={"shared_memory_region": "r"}),
        body() | {"outputs": [{"name": "aligned"}, {"name": "aligned"}]},
        body() | {"outputs": [{"name": "aligned", "parameters": {"binary_data": 1}}]},
        body() | {"parameters": {"timeout": "soon"}},
        body() | {"parameters": {"fingerprint.nope": "0"}},
        body() | {"parameters": {"fingerprint.aligned": 0}},
        body(name="images", datatype="BYTES", shape=[1], data=[7]),
        body(name="images", datatype="BYTES", shape=[1], data=["no base64!"]),
        body(name="images", datatype="BYTES", shape=[2], data=[""]),
    ],
)
def test_what_does_not_fit_is_said_in_the_protocols_shape(client: TestClient, asked: dict[str, Any]) -> None:
    reply = client.post(INFER, json=asked)
    assert 400 <= reply.status_code < 500
    assert list(reply.json()) == ["error"]
    assert ProtocolError.model_validate_json(reply.content).error.split(":")[0] in (
        "invalid_request",
        "too_many_images",
    )


def with_binary(head: dict[str, Any], blob: bytes, stated: str | None = None) -> dict[str, Any]:
    text = json.dumps(head).encode()
    return {"content": text + blob, "headers": {tensors.HEADER: stated or str(len(text))}}


BYTES_HEAD = {"name": "images", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("head", "blob", "stated"),
    [
        (body(data=None, parameters={"binary_data_size": 191}), bytes(191), None),
        (body(data=None, parameters={"binary_data_size": 192}), bytes(191), None),
        (body(data=None, parameters={"binary_data_size": True}), bytes(1), None),
        (body(), bytes(192), None),
        (body(), b"", "0"),
        (body(), b"", "99999999"),
        (body(), b"", "x"),
        (body(), b"", "-5"),
        ({"inputs": [BYTES_HEAD | {"parameters": {"binary_data_size": 3}}]}, b"abc", None),
        ({"inputs": [BYTES_HEAD | {"parameters": {"binary_data_size": 5}}]}, b"\xff\xff\xff\xffa", None),
        ({"inputs": [BYTES_HEAD | {"parameters": {"binary_data_size": 8}}]}, bytes(8), None),
    ],
)
def test_bytes_that_do_not_fit_their_head(client: TestClient, head: Any, blob: bytes, stated: str | None) -> None:
    reply = client.post(INFER, **with_binary(head, blob, stated))
    assert (reply.status_code, reply.json()["error"][:15]) == (400, "invalid_request")


def test_float_pixels_are_those_of_a_bundle_that_has_them(serve: Any, tmp_path: Path) -> None:
    client = serve(bundle=write_toy_bundle(tmp_path / "bundle", dtype="float32"))
    assert client.get("/v2/models/toy").json()["inputs"][0]["datatype"] == "FP32"
    pixels = load_pixels(FILES[0], replace(SPEC, dtype="float32"))
    reply = client.post("/embed", content=FILES[0], headers={"Content-Type": "image/png"})
    wanted = reply.json()["data"][0]["embedding"]
    head = body(datatype="FP32", data=None, parameters={"binary_data_size": pixels.nbytes})
    as_json = {"json": body(datatype="FP32", data=pixels.ravel().tolist())}
    for asked in (as_json, with_binary(head, pixels.tobytes())):
        outputs = {one["name"]: one["data"] for one in client.post(INFER, **asked).json()["outputs"]}
        assert outputs["aligned"] == wanted
    for value in (np.nan, np.inf, 3e38, -0.3, 1.3):  # photos are 0 to 1 here, and a quarter more is let in
        blob = np.where(np.arange(pixels.size) == 99, value, 1.2).astype(np.float32).tobytes()
        reply = client.post(INFER, **with_binary(head, blob))
        assert (reply.status_code, "0 to 1 in this model" in reply.json()["error"]) == (400, True)
    assert client.post(INFER, **with_binary(head, np.full(pixels.shape, -0.2, np.float32).tobytes())).status_code == 200
    assert client.post(INFER, json=body(datatype="FP32", data=[1e39] * 192)).status_code == 400


def test_a_bad_image_is_named_and_the_others_are_not(client: TestClient) -> None:
    texts = [base64.b64encode(file).decode() for file in (FILES[0], FILES[1][:99])]
    reply = client.post(INFER, json=body(name="images", datatype="BYTES", shape=[2], data=texts))
    assert (reply.status_code, reply.json()["error"][:27]) == (422, "undecodable_image: image 1:")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nope", 404), ("GET", INFER, 405), ("POST", "/v2/health/live", 405), ("GET", "/v2/models/x", 404)],
)
def test_paths_and_methods_that_are_not_there(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


def test_keys_pay_for_pixels_as_for_images(serve: Any) -> None:
    client = serve(api_keys="secret", key_images_per_second=0.01, max_images=3)
    asked = body(shape=[3, 3, SIDE, SIDE], data=PIXELS.tolist())
    assert client.post(INFER, json=asked, headers=key()).status_code == 200
    reply = client.post(INFER, json=body(), headers=key())
    assert (reply.status_code, reply.json()["error"][:12]) == (429, "rate_limited")
    assert int(reply.headers["retry-after"]) >= 1


def test_pixels_are_admitted_counted_and_kept_as_images_are(serve: Any) -> None:
    client = serve(cache_images=10)
    for _ in range(2):
        assert client.post(INFER, json=body()).status_code == 200
    client.post("/embed", content=FILES[0], headers={"Content-Type": "image/png"})
    lines = client.get("/metrics").text.splitlines()
    assert 'alignet_images_total{outcome="pixels"} 2.0' in lines
    assert 'alignet_cache_lookups_total{outcome="miss"} 1.0' in lines
    assert 'alignet_cache_lookups_total{outcome="hit"} 2.0' in lines
    assert 'alignet_http_requests_total{code="200",method="POST",route="/v2/models/{name}/infer"} 2.0' in lines
    assert 'alignet_model_requests_total{model="toy"} 3.0' in lines


def test_deadlines_of_the_head_and_of_the_request(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine import OnnxEngine

    client = serve()
    slow = OnnxEngine.embed

    def embed(self: OnnxEngine, pixels: Any) -> Any:
        import time

        time.sleep(0.3)
        return slow(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", embed)
    late = client.post(INFER, json=body() | {"parameters": {"timeout": 50_000}})
    assert (late.status_code, late.json()["error"]) == (
        504,
        "deadline_exceeded: no answer within 0.05 s, which the request asked for.",
    )
    late = client.post(INFER, json=body() | {"parameters": {"timeout": 10**9}}, headers={"X-Request-Timeout-Ms": "50"})
    assert (late.status_code, late.json()["error"]) == (504, "deadline_exceeded: no answer within 0.05 s.")
    assert client.post(INFER, json=body() | {"parameters": {"timeout": 10**7}}).status_code == 200


def test_more_images_than_admitted_are_refused(serve: Any) -> None:
    client = serve()
    admission = client.app.state.service.models.current.default.embedder.admission
    with admission.admit(256):
        reply = client.post(INFER, json=body())
    assert (reply.status_code, reply.json()["error"][:10]) == (429, "overloaded")


@pytest.mark.parametrize("path", ["/v2/models/toy", "/v2/models/toy/versions/1"])
def test_the_document_says_what_is_answered(client: TestClient, path: str) -> None:
    document = client.get("/openapi.json").json()
    card = client.get(path).json()
    assert ModelMetadata.model_validate(card).model_dump() == card
    template = path.replace("toy", "{name}").replace("/1", "/{version}")
    operation = document["paths"][f"{template}/infer"]["post"]
    assert {p["name"] for p in operation["parameters"] if p["in"] == "path"} == {
        part.strip("{}") for part in template.split("/") if part.startswith("{")
    }
    schema = document["components"]["schemas"]["InferRequest"]
    assert set(schema["properties"]) == set(tensors.InferRequest.model_fields)
    reply = client.post(f"{path}/infer", json=body() | {"id": "a"})
    assert tensors.InferReply.model_validate_json(reply.content).model_dump(exclude_unset=True) == reply.json()
    for status, response in operation["responses"].items():
        assert status == "200" or response["content"]["application/json"]["schema"]["$ref"].endswith("ProtocolError")
