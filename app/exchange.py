"""What the judging routes share: the deadline, taking a body in, embedding what was given, the head of a reply."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from app import intake
from app.errors import ServiceError
from app.intake import Body, Given
from app.schemas import Options
from app.service import ServedModel, Service
from app.timings import Timings


def service_of(request: Request) -> Service:
    """The service of the app that serves this request."""
    return cast(Service, request.app.state.service)


@asynccontextmanager
async def deadline(request: Request) -> AsyncIterator[None]:
    """The service's time for a request, from when its body is there; 504 when it is over.

    X-Request-Timeout-Ms asks for less or more than the default. How long a body may take is a
    limit of its own (408), so a slow upload is not the service's lateness.
    """
    settings = service_of(request).settings
    seconds = settings.request_timeout
    if (asked := request.headers.get("x-request-timeout-ms")) is not None:
        most = settings.max_request_timeout * 1000
        digits = asked.lstrip("0")
        if not (asked.isascii() and asked.isdecimal()) or len(digits) > 9 or not 0 < int(digits or "0") <= most:
            raise ServiceError("invalid_request", f"X-Request-Timeout-Ms must be a whole number from 1 to {most:g}.")
        seconds = int(digits) / 1000
    try:
        async with asyncio.timeout(seconds):
            request.state.timings.until = asyncio.get_running_loop().time() + seconds
            yield
    except TimeoutError as error:
        raise ServiceError("deadline_exceeded", f"no answer within {seconds:g} s.", limit=seconds) from error


async def receive(request: Request, *, raw: bool) -> tuple[Service, Body, Timings]:
    """Authorise, then take the body in; whatever can be refused without the body is refused before it."""
    service = service_of(request)
    service.authorize(request.headers.get("authorization"))
    service.model()
    timings: Timings = request.state.timings
    with timings.measure("read"):
        body = await intake.read_body(request, service.settings)
    intake.require_media_type(body, raw=raw)
    return service, body, timings


async def vectors_of(
    model: ServedModel, given: Given, space: str, timings: Timings
) -> tuple[NDArray[np.float64], dict[str, int]]:
    """[n, d] float64 vectors of what was given, and the usage."""
    if given.vectors is not None:
        return given.vectors, usage([])
    embedded = await model.embedder.embed(given.images, timings)
    return embedded[space].astype(np.float64), usage(given.images)


def usage(images: Sequence[bytes]) -> dict[str, int]:
    """What a request costs, as the reply states it."""
    return {"images": len(images), "unique_images": len(set(images))}


def head(model: ServedModel, options: Options, fingerprint: str, used: dict[str, int]) -> dict[str, Any]:
    """The fields that every judging reply starts with."""
    return {"model": model.name, "space": options.space, "fingerprint": fingerprint, "usage": used}


def vector_size(service: Service, options: Options) -> int:
    """Length of a vector in the space asked for, after checking that it is the one expected."""
    model = service.model(options.model)
    model.space_fingerprint(options)
    return model.manifest.spaces[options.space].size


def body_schema(json_model: str, form: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """OpenAPI request body of a route: JSON, or multipart with `files` and the fields of `form`."""
    binary = {"type": "string", "format": "binary"}
    properties = {name: {"type": "array", "items": binary} for name in files} | form
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{json_model}"}},
        "multipart/form-data": {"schema": {"type": "object", "properties": properties}},
    }
    return {"requestBody": {"required": True, "content": content}}


def fields_of(options: type[Options]) -> dict[str, Any]:
    """JSON schemas of the options, by name."""
    return dict(options.model_json_schema()["properties"])
