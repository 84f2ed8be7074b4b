"""The OpenAPI document says what the routes read and answer."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import errors
from app.errors import TABLE, Kind
from app.schemas import (
    EmbedOptions,
    EmbedReply,
    EmbedRequest,
    OddOneOutOptions,
    OddOneOutReply,
    OddOneOutRequest,
    SimilarityOptions,
    SimilarityReply,
    SimilarityRequest,
)
from tests.study import write_study
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
ROUTES = {
    "/embed": (EmbedRequest, EmbedOptions, EmbedReply, {"images"}),
    "/odd-one-out": (OddOneOutRequest, OddOneOutOptions, OddOneOutReply, {"images"}),
    "/similarity": (SimilarityRequest, SimilarityOptions, SimilarityReply, {"images", "queries", "candidates"}),
}
KINDS: dict[str, tuple[Kind, ...]] = {
    "/embed": errors.REQUEST_KINDS,
    "/odd-one-out": (*errors.REQUEST_KINDS, "too_many_vectors", "too_many_triplets"),
    "/similarity": (*errors.REQUEST_KINDS, "too_many_vectors"),
}
IMAGES = {"images": [{"image": base64.b64encode(encoded(photo(seed))).decode()} for seed in range(3)]}
VECTORS = {"vectors": [[1.0] * SIZE, [2.0] * SIZE, [0.0, 1, 2, 3, 4]]}


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_every_reference_in_the_document_resolves(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    references = [node["$ref"] for node in walk(document) if isinstance(node.get("$ref"), str)]
    assert len(references) > 20
    for reference in references:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert isinstance(target, dict)


def test_no_schema_is_left_unused(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    used = {node["$ref"].rpartition("/")[2] for node in walk(document) if isinstance(node.get("$ref"), str)}
    assert used == set(document["components"]["schemas"])


def test_every_operation_has_an_id_a_summary_and_described_responses(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert document["openapi"].startswith("3.")
    assert len({operation["operationId"] for operation in operations}) == len(operations) > 7
    for operation in operations:
        assert operation["summary"]
        assert all(response["description"] for response in operation["responses"].values())
        for parameter in operation.get("parameters", []):
            assert {"name", "in", "schema"} <= set(parameter)


@pytest.mark.parametrize("path", list(ROUTES))
def test_every_kind_of_error_stands_under_its_status_on_the_routes_that_raise_it(client: TestClient, path: str) -> None:
    responses = client.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    for kind in KINDS[path]:
        response = responses[str(TABLE[kind].status)]
        assert f"`{kind}`" in response["description"]
        assert list(response["content"]) == ["application/problem+json"]
    assert set(responses) == {"200", *(str(TABLE[kind].status) for kind in KINDS[path])}


def test_every_kind_of_the_table_is_documented_somewhere_or_belongs_to_no_route(serve: Serve, tmp_path: Path) -> None:
    text = serve(admin_keys="boss", judging=write_study(tmp_path)).get("/openapi.json").text
    undocumented = {kind for kind in TABLE if f"`{kind}`" not in text}
    assert undocumented == {"route_not_found", "method_not_allowed"}


@pytest.mark.parametrize("path", list(ROUTES))
def test_the_json_body_is_documented_as_it_is_validated(client: TestClient, path: str) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"][path]["post"]["requestBody"]["content"]
    model = ROUTES[path][0]
    assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{model.__name__}"}
    assert set(document["components"]["schemas"][model.__name__]["properties"]) == set(model.model_fields)


@pytest.mark.parametrize("path", list(ROUTES))
def test_the_form_is_documented_with_its_files_and_options(client: TestClient, path: str) -> None:
    document = client.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    _, options, _, files = ROUTES[path]
    assert set(schema["properties"]) == set(options.model_fields) | files
    assert all(schema["properties"][name]["items"]["format"] == "binary" for name in files)


def test_embed_alone_documents_a_raw_image_and_its_query(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    raw = {path for path in ROUTES if "image/*" in paths[path]["post"]["requestBody"]["content"]}
    query = {parameter["name"] for parameter in paths["/embed"]["post"]["parameters"] if parameter["in"] == "query"}
    assert raw == {"/embed"}
    assert query == set(EmbedOptions.model_fields)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", IMAGES),
        ("/embed", IMAGES | {"encoding": "base64", "normalize": True, "space": "base"}),
        ("/odd-one-out", IMAGES),
        ("/odd-one-out", VECTORS | {"triplets": [[0, 1, 2], [2, 1, 0]], "min_margin": 1}),
        ("/odd-one-out", {"vectors": [[1.0] * SIZE] * 3}),
        ("/similarity", IMAGES),
        ("/similarity", VECTORS | {"encoding": "base64"}),
        ("/similarity", {"queries": VECTORS, "candidates": IMAGES, "kernel": "pearson"}),
    ],
)
def test_a_reply_is_exactly_its_declared_model(client: TestClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json=body)
    parsed = ROUTES[path][2].model_validate_json(reply.content, strict=True)
    assert parsed.model_dump(mode="json", exclude_unset=True) == reply.json()
    schema = client.get("/openapi.json").json()["paths"][path]["post"]["responses"]["200"]["content"]
    assert schema["application/json"]["schema"]["$ref"].endswith(ROUTES[path][2].__name__)


def test_the_binary_replies_of_embed_are_documented(client: TestClient) -> None:
    content = client.get("/openapi.json").json()["paths"]["/embed"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "application/octet-stream", "application/x-npy"}


def test_the_document_is_there_before_the_bundle_is(toy_bundle: Any) -> None:
    from app.main import create_app
    from app.settings import Settings

    assert set(create_app(Settings(bundle=toy_bundle)).openapi()["paths"]) >= set(ROUTES)
