"""POST /embed: images to vectors."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from app import errors, intake, replies
from app.errors import ServiceError
from app.exchange import Taken, body_schema, fields_of, head, taken_in, usage
from app.fetch import Target
from app.routes.request_route import RequestRoute
from app.schemas import EmbedOptions, EmbedReply, EmbedRequest

router = APIRouter(route_class=RequestRoute)

Images = Sequence[bytes | Target | ServiceError]
"""The images of a request, some to be fetched, or, with `on_error: partial`, what is wrong with one."""

_BODY = body_schema("EmbedRequest", fields_of(EmbedOptions), ["images"])
_BINARY = {"type": "string", "format": "binary"}
_BODY["requestBody"]["content"]["image/*"] = {"schema": _BINARY}
_BODY["parameters"] = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": "With a raw image body only."}
    for name, schema in fields_of(EmbedOptions).items()
]


@router.post(
    "/embed",
    response_model=EmbedReply,
    responses=errors.responses(*errors.REQUEST_KINDS)
    | {200: {"content": {media_type: {"schema": _BINARY} for media_type in replies.BINARY}}},
    openapi_extra=_BODY,
    summary="Images to vectors",
)
async def embed(request: Request) -> Response:
    """Embed images, sent as JSON, as multipart files `images`, or as one raw `image/*` body.

    With `Accept: application/octet-stream` the reply is bare little-endian float32 rows, with
    `Accept: application/x-npy` a numpy file; the fingerprint stands in a header of every reply. With
    `on_error: partial`, a bad image does not fail the others: its problem stands in its place in `data`.
    """
    async with taken_in(request, raw=True) as taken:
        timings = taken.timings
        with timings.measure("read"):
            options, given = await _parse_embed(request, taken)
        model = taken.model(options)
        fingerprint = model.space_fingerprint(options, normalize=options.normalize)
        binary = replies.preferred_binary(request.headers.get("accept"))
        images: Sequence[bytes | ServiceError]
        faults: dict[int, ServiceError] = {}
        if options.on_error == "partial":
            if binary:
                detail = "on_error is partial, but a binary reply has no place for errors; accept application/json."
                raise ServiceError("invalid_request", detail)
            images = await taken.each_file(given)
            rows = await model.embedder.embed_each(images, timings)
            faults = {i: row for i, row in enumerate(rows) if isinstance(row, ServiceError)}
            good = [row[options.space] for row in rows if not isinstance(row, ServiceError)]
            vectors = np.stack(good) if good else np.empty((0, model.manifest.spaces[options.space].size), np.float32)
        else:
            images = files = await taken.files(cast(Sequence[bytes | Target], given))
            embedded = await model.embedder.embed(files, timings)
            vectors = embedded[options.space]
        if options.normalize:
            vectors = unit(vectors)
        with timings.measure("serialise"):
            if binary:
                response = await replies.write_matrix(vectors, binary)
            else:
                space = model.manifest.spaces[options.space]
                start = head(model, options, fingerprint, usage(images)) | {
                    "size": space.size,
                    "normalized": options.normalize or space.normalized,
                    "encoding": options.encoding,
                }
                response = await replies.write_json(
                    lambda: start | {"data": _items(replies.rows(vectors, options.encoding), faults)}, vectors.size
                )
        response.headers["X-Space-Fingerprint"] = fingerprint
        return response


def _items(vectors: list[Any], faults: dict[int, ServiceError]) -> list[dict[str, Any]]:
    """One object an image: the next vector, or the problem of that image."""
    following = iter(vectors)
    return [
        {"index": i, "error": errors.body_of(faults[i])} if i in faults else {"index": i, "embedding": next(following)}
        for i in range(len(vectors) + len(faults))
    ]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1, in float64 so that the length is right to the last bit of float32."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)


async def _parse_embed(request: Request, taken: Taken) -> tuple[EmbedOptions, Images]:
    body, settings = taken.body, taken.service.settings
    query = dict(request.query_params)
    if len(query) < len(request.query_params.multi_items()):
        raise ServiceError("invalid_request", "a query parameter is given twice.")
    if body.media_type.startswith("image/"):
        return intake.validate(EmbedOptions, query, settings), [body.content]
    intake.no_query(query)
    if body.media_type == "multipart/form-data":
        fields, files = await intake.parse_form(body, settings, ["images"])
        options = intake.validate(EmbedOptions, fields, settings)
        return options, intake.files_under(files["images"], "images", settings.max_images)

    def parse() -> tuple[EmbedOptions, Images]:
        parsed = intake.parse_json(body, EmbedRequest, settings)
        if parsed.on_error == "partial":
            return parsed, intake.decode_each(parsed.images, settings)
        return parsed, intake.decode_images(parsed.images, settings)

    found = await intake.in_thread_if_large(len(body.content), parse, small=intake.SMALL_IMAGES)
    return cast(tuple[EmbedOptions, Images], found)
