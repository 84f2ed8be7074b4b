"""/v2: the Open Inference Protocol (KServe's v2), for programs that ask Triton or another server of it already.

The same model, admission, deadlines and keys as elsewhere, and the numbers of /embed bit for bit. Errors have the
protocol's shape (app.errors), with our codes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from app import errors, intake, tensors
from app.errors import Kind, ProtocolError, ServiceError
from app.exchange import Taken, client_key, service_of, taken_in
from app.schemas import Options
from app.served import ServedModel
from app.service import VERSION
from app.tensors import InferReply, TensorDescription, Tensors
from app.timings import Timings
from app.triton_engine import DATATYPES
from contract.manifest import GRAPH_INPUT

router = APIRouter(prefix="/v2")

MODEL_VERSION = "1"
"""Of every model, as in the Triton model repository that `python -m export triton` makes."""

_SMALL = 4096  # numbers below which writing on the event loop is cheaper than a hop to a thread


class ServerMetadata(BaseModel):
    """Answer of /v2."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Answer of /v2/health/live."""

    live: bool


class ServerReady(BaseModel):
    """Answer of /v2/health/ready."""

    ready: bool


class ModelReady(ServerReady):
    """Answer of /v2/models/{name}/ready."""

    name: str


class ModelMetadata(BaseModel):
    """Answer of /v2/models/{name}, as Triton states the same graph."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


_VERSIONED: dict[str, Any] = {
    "parameters": [{"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": ["1"]}}]
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
            "application/octet-stream": _BINARY,
        },
    },
}
_LENGTH = {
    "name": tensors.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "integer"},
    "description": "Bytes of the JSON, where the bytes of the tensor stand behind it.",
}
_MODEL_KINDS: tuple[Kind, ...] = ("unauthorized", "rate_limited", "model_not_found", "not_ready", "engine_away")


def _responses(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    return errors.responses(*kinds, shape=ProtocolError)


@router.get(
    "", response_model=ServerMetadata, responses=_responses("unauthorized", "rate_limited"), summary="Server metadata"
)
async def server(request: Request) -> ServerMetadata:
    """Name, version and the protocol's extensions that are served."""
    service_of(request).keys.admit(request.headers.get("authorization"))
    return ServerMetadata(name="alignet-serve", version=VERSION, extensions=["binary_tensor_data", "parameters"])


@router.get("/health/live", response_model=ServerLive, responses=_responses("internal"), summary="Is the server alive")
async def live(request: Request) -> ServerLive:
    """As /health/live."""
    if not service_of(request).alive:
        raise ServiceError("internal", "a thread that serving needs has ended or hangs; restart the process.")
    return ServerLive(live=True)


@router.get(
    "/health/ready",
    response_model=ServerReady,
    responses=_responses("not_ready", "engine_away"),
    summary="May the server get requests",
)
async def ready(request: Request) -> ServerReady:
    """As /health/ready."""
    service_of(request).require_ready()
    return ServerReady(ready=True)


@router.get(
    "/models/{name}", response_model=ModelMetadata, responses=_responses(*_MODEL_KINDS), summary="Model metadata"
)
@router.get(
    "/models/{name}/versions/{version}",
    response_model=ModelMetadata,
    responses=_responses(*_MODEL_KINDS),
    openapi_extra=_VERSIONED,
    summary="Metadata of a model's version",
)
async def metadata(request: Request, name: str) -> ModelMetadata:
    """Inputs and outputs. Of the two inputs only the graph's own is stated, as in Triton: clients send all of them."""
    manifest = _named(request, name).manifest
    spec = manifest.pixels
    pixels = TensorDescription(name=GRAPH_INPUT, datatype=DATATYPES[spec.dtype], shape=[-1, *spec.shape])
    outputs = [
        TensorDescription(name=space, datatype="FP32", shape=[-1, stated.size])
        for space, stated in manifest.spaces.items()
    ]
    return ModelMetadata(
        name=name, versions=[MODEL_VERSION], platform="onnxruntime_onnx", inputs=[pixels], outputs=outputs
    )


@router.get(
    "/models/{name}/ready", response_model=ModelReady, responses=_responses(*_MODEL_KINDS), summary="Is a model ready"
)
@router.get(
    "/models/{name}/versions/{version}/ready",
    response_model=ModelReady,
    responses=_responses(*_MODEL_KINDS),
    openapi_extra=_VERSIONED,
    summary="Is a model's version ready",
)
async def model_ready(request: Request, name: str) -> ModelReady:
    """200 while the model can be asked."""
    _named(request, name)
    return ModelReady(name=name, ready=True)


@router.post(
    "/models/{name}/infer",
    response_model=InferReply,
    responses=_responses(*errors.REQUEST_KINDS) | {200: {"content": {"application/octet-stream": _BINARY}}},
    openapi_extra=_BODY | {"parameters": [_LENGTH]},
    summary="Pixels or images to vectors",
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    response_model=InferReply,
    responses=_responses(*errors.REQUEST_KINDS) | {200: {"content": {"application/octet-stream": _BINARY}}},
    openapi_extra=_BODY | {"parameters": [*_VERSIONED["parameters"], _LENGTH]},
    summary="Pixels or images to vectors, by a model's version",
)
async def infer(request: Request, name: str) -> Response:
    """Vectors of the graph's input `pixels`, or of encoded `images`; one output for each space."""
    async with taken_in(request, raw=None) as taken:
        timings, size = taken.timings, len(taken.body.content)
        _require_version(request)
        with timings.measure("read"):
            intake.no_query(dict(request.query_params))
            asked, rest = await intake.in_thread_if_large(size, tensors.split, taken.body, taken.service.settings)
            expected = tensors.fingerprints_of(asked)
            model = taken.model(Options(model=name, expect_fingerprint=next(iter(expected.values()), None)))
            manifest = model.manifest
            wanted = tensors.outputs_of(asked, list(manifest.spaces))
            fingerprints = _fingerprints(model, list(wanted), expected)
            given = await intake.in_thread_if_large(
                size, tensors.tensors_of, asked, rest, manifest.pixels, taken.service.settings
            )
        async with _within(tensors.timeout_of(asked), timings):
            vectors = await _vectors(model, given, taken)
        head = {"model_name": name, "model_version": MODEL_VERSION} | ({"id": asked.id} if asked.id else {})
        head["parameters"] = {f"fingerprint.{space}": value for space, value in fingerprints.items()}
        rows = [(space, vectors[space], binary) for space, binary in wanted.items()]
        with timings.measure("serialise"):
            if sum(matrix.size for _, matrix, _ in rows) <= _SMALL:
                return tensors.write(head, rows)
            return await asyncio.to_thread(tensors.write, head, rows)


def _named(request: Request, name: str) -> ServedModel:
    """The model of a name or an alias. Raises ServiceError: no such model or version, or not to be had now."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    service.require_any()
    _require_version(request)
    return service.usable(service.models.current.choose(Options(model=name), client_key(request)))


def _require_version(request: Request) -> None:
    if request.path_params.get("version", MODEL_VERSION) != MODEL_VERSION:
        raise ServiceError("model_not_found", f"every model has version {MODEL_VERSION} only.")


def _fingerprints(model: ServedModel, spaces: list[str], expected: dict[str, str]) -> dict[str, str]:
    """Of each space that is asked for. Raises ServiceError: one is not as expected, or is none of the model's."""
    for space, fingerprint in expected.items():
        if space not in model.manifest.spaces:
            raise ServiceError("invalid_request", f"model {model.name!r} has no space {space[:64]!r}.")
        options: dict[str, Any] = {"space": space, "expect_fingerprint": fingerprint}
        model.space_fingerprint(Options(**options))
    return {space: model.manifest.spaces[space].fingerprint for space in spaces}


async def _vectors(model: ServedModel, given: Tensors, taken: Taken) -> dict[str, Any]:
    """{space: [n, size]} of what was given."""
    if given.files:
        return await model.embedder.embed(await taken.files(given.files), taken.timings)
    taken.spend(len(given.pixels))
    return await model.embedder.embed_pixels(given.pixels, taken.timings)


@asynccontextmanager
async def _within(seconds: float | None, timings: Timings) -> AsyncIterator[None]:
    """The time that the request's own parameter leaves, where that is less than the deadline of its head."""
    until = asyncio.get_running_loop().time() + (seconds or 0)
    if seconds is None or until >= timings.until:
        yield
        return
    timings.until = until
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as error:
        detail = f"no answer within {seconds:g} s, which the request asked for."
        raise ServiceError("deadline_exceeded", detail, limit=seconds) from error
