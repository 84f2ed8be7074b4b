"""The OpenAI-shaped paths, asked by OpenAI's own client."""

import base64
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from app.engine import OnnxEngine
from app.errors import TABLE, Kind, OpenAIError
from app.routes.openai import EmbeddingsReply, EmbeddingsRequest, ModelReply, ModelsReply, described
from tests.toy import encoded, photo

FILES = [encoded(photo(seed)) for seed in range(3)]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
ITEMS = [{"image": text} for text in TEXTS]


@pytest.fixture
def ask(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)  # type: ignore[arg-type]


def expected(client: TestClient, **options: Any) -> tuple[str, Any]:
    reply = client.post("/embed", json={"images": ITEMS, **options}).json()
    return reply["fingerprint"], np.array([item["embedding"] for item in reply["data"]], np.float32)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_vectors_are_those_of_embed(client: TestClient, ask: openai.OpenAI, encoding: Any) -> None:
    reply = ask.embeddings.create(model="toy", input=ITEMS, **encoding)  # type: ignore[arg-type]
    fingerprint, vectors = expected(client)
    found = [
        np.frombuffer(base64.b64decode(item.embedding), "<f4") if isinstance(item.embedding, str) else item.embedding
        for item in reply.data
    ]
    np.testing.assert_array_equal(np.array(found, np.float32), vectors)
    assert [(item.index, item.object) for item in reply.data] == [(0, "embedding"), (1, "embedding"), (2, "embedding")]
    assert (reply.model, reply.object, reply.usage.total_tokens) == ("toy", "list", 0)
    assert (reply.model_extra or {})["fingerprint"] == fingerprint


def test_what_jina_adds(client: TestClient, ask: openai.OpenAI) -> None:
    extra = {"normalized": True, "embedding_type": "float", "space": "base"}
    reply = ask.embeddings.create(model="toy", input=ITEMS, extra_body=extra)  # type: ignore[arg-type]
    fingerprint, vectors = expected(client, normalize=True, space="base")
    np.testing.assert_array_equal(np.array([item.embedding for item in reply.data], np.float32), vectors)
    assert (reply.model_extra or {})["fingerprint"] == fingerprint


def test_an_image_alone_and_a_data_uri(ask: openai.OpenAI) -> None:
    uri = f"data:image/png;base64,{TEXTS[0]}"
    for given in (uri, [uri], {"image": uri}, ITEMS[:1]):
        (item,) = ask.embeddings.create(model="toy", input=given).data  # type: ignore[arg-type]
        assert len(item.embedding) == 5


@pytest.mark.parametrize(
    ("given", "error", "code", "param"),
    [
        (["a cat"], openai.BadRequestError, "invalid_request", "input.0"),
        ([*ITEMS, {"image": TEXTS[0][:200]}], openai.UnprocessableEntityError, "undecodable_image", "input.3"),
        ([], openai.BadRequestError, "invalid_request", None),
        ([[1, 2]], openai.BadRequestError, "invalid_request", "input.0"),
        ([{"text": "a cat"}], openai.BadRequestError, "invalid_request", "input.0"),
        (["https://images.example.org/a.jpg"], openai.BadRequestError, "invalid_request", "input.0"),
    ],
)
def test_bad_input_in_their_shape(ask: openai.OpenAI, given: Any, error: Any, code: str, param: str | None) -> None:
    with pytest.raises(error) as caught:
        ask.embeddings.create(model="toy", input=given)
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")
    assert caught.value.body["message"]


def test_models_and_options_that_are_not_there(ask: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask.embeddings.create(model="text-embedding-3-small", input=ITEMS)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ask.models.retrieve("other")
    assert ask.embeddings.create(model="toy", input=ITEMS, dimensions=5)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="dimensions is 3; the vectors of this space have 5"):
        ask.embeddings.create(model="toy", input=ITEMS, dimensions=3)  # type: ignore[arg-type]
    with pytest.raises(openai.ConflictError):
        ask.embeddings.create(model="toy", input=ITEMS, extra_body={"expect_fingerprint": "0"})  # type: ignore[arg-type]


def test_models(ask: openai.OpenAI) -> None:
    (model,) = ask.models.list().data
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "alignet")
    assert model.created == 1767225600  # 2026-01-01
    assert ask.models.retrieve("toy") == model


@pytest.mark.parametrize("created", ["2026-01-01", "2026-01-01T00:00:00", "2026-01-01T09:00:00+09:00"])
def test_a_date_without_a_zone_is_utc_wherever_the_service_runs(created: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = SimpleNamespace(name="toy", manifest=SimpleNamespace(created=created))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert described(model)["created"] == 1767225600
    time.tzset()


def test_keys_and_busy_services(serve: Any) -> None:
    client = serve(api_keys="secret", key_images_per_second=0.1, max_images=3)
    wrong = openai.OpenAI(base_url="http://testserver/v1", api_key="wrong", http_client=client, max_retries=0)
    for call in (wrong.models.list, lambda: wrong.embeddings.create(model="toy", input=ITEMS)):  # type: ignore[arg-type]
        with pytest.raises(openai.AuthenticationError) as caught:
            call()
        assert (caught.value.code, caught.value.type) == ("unauthorized", "authentication_error")
    right = wrong.with_options(api_key="secret")
    right.embeddings.create(model="toy", input=ITEMS)  # type: ignore[arg-type]
    with pytest.raises(openai.RateLimitError) as limited:
        right.embeddings.create(model="toy", input=ITEMS)  # type: ignore[arg-type]
    assert limited.value.code == "rate_limited"
    assert int(limited.value.response.headers["retry-after"]) >= 1


def test_only_json_is_read(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", files=[("images", ("a", FILES[0], "image/png"))])
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert client.post("/v1/embeddings?model=toy", json={"model": "toy", "input": ITEMS}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "code", "kind"),
    [
        ("GET", "/v1/nope", "route_not_found", "invalid_request_error"),
        ("GET", "/v1", "route_not_found", "invalid_request_error"),
        ("GET", "/v1/embeddings", "method_not_allowed", "invalid_request_error"),
        ("DELETE", "/v1/models", "method_not_allowed", "invalid_request_error"),
    ],
)
def test_paths_and_methods_that_are_not_there(
    client: TestClient, method: str, path: str, code: Kind, kind: str
) -> None:
    reply = client.request(method, path)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"], error["param"]) == (TABLE[code].status, code, kind, None)
    assert error["message"]
    assert reply.headers["content-type"] == "application/json"
    assert ("allow" in reply.headers) == (code == "method_not_allowed")


def test_a_bug_of_ours(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(raise_bugs=False)
    monkeypatch.setattr(OnnxEngine, "embed", lambda *_: 1 / 0)
    ask = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        ask.embeddings.create(model="toy", input=ITEMS)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.type) == ("internal", "server_error")
    assert client.get("/v10").headers["content-type"] == "application/problem+json"


def test_the_paths_stand_in_the_document_with_their_bodies(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    known = document["components"]["schemas"]
    posted = document["paths"]["/v1/embeddings"]["post"]
    asked = posted["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert set(known[asked]["properties"]) == set(EmbeddingsRequest.model_fields)
    for path, method in (("/v1/embeddings", "post"), ("/v1/models", "get"), ("/v1/models/{name}", "get")):
        responses = document["paths"][path][method]["responses"]
        assert "$ref" in responses.pop("200")["content"]["application/json"]["schema"]
        shapes = [response["content"]["application/json"]["schema"] for response in responses.values()]
        assert shapes
        assert all(shape == {"$ref": "#/components/schemas/OpenAIError"} for shape in shapes)
    parse_error = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
    assert OpenAIError.model_validate(parse_error).model_dump() == parse_error


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/v1/models/toy"])
def test_a_reply_is_exactly_its_declared_model(client: TestClient, path: str) -> None:
    models = {"/v1/embeddings": EmbeddingsReply, "/v1/models": ModelsReply, "/v1/models/toy": ModelReply}
    body = {"model": "toy", "input": ITEMS}
    reply = client.post(path, json=body) if path == "/v1/embeddings" else client.get(path)
    parsed = models[path].model_validate_json(reply.content, strict=True)
    assert parsed.model_dump(mode="json") == reply.json()
