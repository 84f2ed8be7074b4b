"""POST /v1/embeddings and GET /v1/models: the shapes of OpenAI's API, with images as Jina's has them.

For programs that speak it already. Errors have its shape too (app.errors), with our codes; /embed can do more.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, FailFast, Field

from app import errors, intake, replies
from app.errors import ServiceError
from app.exchange import service_of, taken_in, usage
from app.fetch import Target
from app.routes.embed import unit
from app.schemas import ImageItem, Options, SpaceName, Strict, Usage, at_most
from app.served import ServedModel

router = APIRouter()

_URI = ("data:", "http://", "https://")


def _items(value: Any) -> Any:
    """One input or a list; a string that is an image's URI is one. Text is refused where its place can be named."""
    items = value if isinstance(value, list) else [value]
    return [{"image": item} if isinstance(item, str) and item[:8].lower().startswith(_URI) else item for item in items]


class EmbeddingsRequest(Strict):
    """JSON body of /v1/embeddings."""

    model: str = Field(description="Name of a model of /v1/models.")
    input: Annotated[
        list[ImageItem | str], FailFast(), BeforeValidator(_items), at_most("images"), Field(min_length=1)
    ] = Field(description="Images: {image: base64, data URI or URL}, or a data URI or URL alone; one or a list.")
    encoding_format: Literal["float", "base64"] = "float"
    embedding_type: Literal["float", "base64"] | None = Field(default=None, description="Jina's encoding_format.")
    dimensions: int | None = Field(default=None, description="Refused unless it is the size of the vectors.")
    user: str | None = Field(default=None, description="Not used.")
    normalized: bool = Field(default=False, description="Scale vectors to length 1, as Jina's option does.")
    space: SpaceName = "aligned"
    expect_fingerprint: str | None = None


class EmbeddingObject(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbeddingsUsage(Usage):
    """What the request cost; images have no tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """Answer of /v1/embeddings, in the order of the images."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingsUsage
    fingerprint: str = Field(description="Compare and store vectors only with vectors of the same fingerprint.")


class ModelReply(BaseModel):
    """Answer of /v1/models/{name}."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Seconds since 1970.")
    owned_by: str


class ModelsReply(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelReply]


_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EmbeddingsRequest"}}},
}
_MODEL_KINDS: tuple[errors.Kind, ...] = ("unauthorized", "rate_limited", "not_ready", "engine_away")


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsReply,
    responses=errors.responses(*errors.REQUEST_KINDS, shape=errors.OpenAIError),
    openapi_extra={"requestBody": _BODY},
    summary="Images to vectors, as OpenAI's API has them",
)
async def embeddings(request: Request) -> Response:
    """Images to vectors, one object each."""
    async with taken_in(request, raw=False) as taken:
        settings, timings = taken.service.settings, taken.timings

        def parse() -> tuple[EmbeddingsRequest, list[bytes | Target]]:
            asked = intake.parse_json(taken.body, EmbeddingsRequest, settings)
            for index, item in enumerate(asked.input):
                if isinstance(item, str):
                    detail = f'input {index} is text; this model embeds images: {{"image": base64 or data URI}}.'
                    raise ServiceError("invalid_request", detail, index=index)
            return asked, intake.decode_images(cast(list[ImageItem], asked.input), settings)

        with timings.measure("read"):
            intake.no_query(dict(request.query_params))
            if not intake.is_json(taken.body):
                detail = f"content-type is {taken.body.media_type!r}; expected application/json."
                raise ServiceError("unsupported_media_type", detail)
            asked, given = await intake.in_thread_if_large(len(taken.body.content), parse, small=intake.SMALL_IMAGES)
        options = Options(model=asked.model, space=asked.space, expect_fingerprint=asked.expect_fingerprint)
        model = taken.model(options)
        fingerprint = model.space_fingerprint(options, normalize=asked.normalized)
        size = model.manifest.spaces[asked.space].size
        if asked.dimensions not in (None, size):
            raise ServiceError(
                "invalid_request", f"dimensions is {asked.dimensions}; the vectors of this space have {size}."
            )
        files = await taken.files(given)
        vectors = (await model.embedder.embed(files, timings))[asked.space]
        if asked.normalized:
            vectors = unit(vectors)

        def build() -> dict[str, Any]:
            rows = replies.rows(vectors, asked.embedding_type or asked.encoding_format)
            data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
            # Their clients need counts of tokens; images have none. Ours stand beside.
            used = {"prompt_tokens": 0, "total_tokens": 0} | usage(files)
            return {"object": "list", "data": data, "model": model.name, "usage": used, "fingerprint": fingerprint}

        with timings.measure("serialise"):
            response = await replies.write_json(build, vectors.size)
        response.headers["X-Space-Fingerprint"] = fingerprint
        return response


@router.get(
    "/v1/models",
    response_model=ModelsReply,
    responses=errors.responses(*_MODEL_KINDS, shape=errors.OpenAIError),
    summary="Models served, as OpenAI's API lists them",
)
async def listed(request: Request) -> Response:
    """The models served."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    service.require_any()
    data = [described(model) for model in service.models.current.models.values()]
    return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")


@router.get(
    "/v1/models/{name}",
    response_model=ModelReply,
    responses=errors.responses(*_MODEL_KINDS, "model_not_found", shape=errors.OpenAIError),
    summary="One model, as OpenAI's API names it",
)
async def retrieved(request: Request, name: str) -> Response:
    """One model."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    return Response(orjson.dumps(described(service.model(name))), media_type="application/json")


def described(model: ServedModel) -> dict[str, Any]:
    """A model as OpenAI's API lists it; its bundle's date is UTC unless it names a zone."""
    created = datetime.fromisoformat(model.manifest.created)
    if created.tzinfo is None:  # else this machine's zone would count
        created = created.replace(tzinfo=UTC)
    return {"id": model.name, "object": "model", "created": int(created.timestamp()), "owned_by": "alignet"}
