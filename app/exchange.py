"""What the judging routes share: taking a body in, the deadline, embedding what was given, the head of a reply."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from app import intake
from app.errors import ServiceError
from app.fetch import Fetcher, FetchError, Target
from app.intake import Body, Given
from app.models import Snapshot
from app.schemas import Options
from app.served import ServedModel
from app.service import Service
from app.timings import Timings

WATCH_SECONDS = 0.05
"""Time after which a client that hangs up is noticed."""


def service_of(request: Request) -> Service:
    """The service of the app that serves this request."""
    return cast(Service, request.app.state.service)


class Taken(NamedTuple):
    """A request whose body is there.

    Attributes:
        client: what keeps a client with its model behind an alias; never logged.
        models: those that were served when its body was there; they stay open until its block ends.
        spend: to be told how many images it has, for its key.
        take: to be told of more bytes that are held for it.
        be_patient: gives it the longest time that may be asked for, unless it has asked for another.
    """

    service: Service
    models: Snapshot
    client: bytes
    body: Body
    timings: Timings
    spend: Callable[[int], None]
    take: Callable[[int], None]
    be_patient: Callable[[], None]

    def model(self, options: Options) -> ServedModel:
        """The model it asks for. Raises ServiceError: no such model, or not to be had now."""
        model = self.service.usable(self.models.choose(options, self.client))
        self.service.metrics.served.labels(model.name).inc()
        return model

    def vector_size(self, options: Options) -> int:
        """Length of a vector in the space it asks for, after checking that it is the one expected."""
        model = self.service.usable(self.models.choose(options, self.client))
        model.space_fingerprint(options)
        return model.manifest.spaces[options.space].size

    async def files(self, images: Sequence[bytes | Target]) -> list[bytes]:
        """The images as files, those given as URLs fetched. Raises ServiceError of the first that cannot be had."""
        found = await self.each_file(images)
        for image in found:
            if isinstance(image, ServiceError):
                raise image
        return cast(list[bytes], found)

    async def each_file(self, images: Sequence[bytes | Target | ServiceError]) -> list[bytes | ServiceError]:
        """As `files`, with an error in the place of an image that cannot be had. The key pays for all of them."""
        self.spend(len(images))
        found: list[Any] = list(images)
        places: dict[Target, list[int]] = {}
        for index, image in enumerate(images):
            if isinstance(image, Target):
                places.setdefault(image, []).append(index)
        if not places:
            return found
        fetcher = self.service.fetcher
        assert fetcher is not None
        with self.timings.measure("read"):
            async with asyncio.TaskGroup() as group:
                jobs = {target: group.create_task(self._fetch(fetcher, target)) for target in places}
        for target, job in jobs.items():
            outcome = job.result()
            for index in places[target]:
                found[index] = outcome.at(index) if isinstance(outcome, FetchError) else outcome
        return found

    async def _fetch(self, fetcher: Fetcher, target: Target) -> bytes | FetchError | ServiceError:
        try:
            return await fetcher.fetch(target, self.take)
        except FetchError as error:
            return error
        except ServiceError as error:  # memory is full
            return error


@asynccontextmanager
async def taken_in(request: Request, *, raw: bool | None) -> AsyncIterator[Taken]:
    """Authorise, take the body in, and work on it in the block while somebody waits for the answer.

    Whatever can be refused without the body is refused before it is read. Its bytes count as held until the
    block ends.

    Args:
        request: whose body it is.
        raw: whether it may be an image alone, besides JSON and multipart; None leaves its type to the route.

    Raises:
        ServiceError: the refusals, and 504 when the deadline is over.
        ClientDisconnect: nobody waits any more.
    """
    service = service_of(request)
    spend = service.keys.admit(request.headers.get("authorization"))
    service.require_any()
    timings: Timings = request.state.timings
    with service.body_bytes.hold() as take:
        with timings.measure("read"):
            body = await intake.read_body(request, service.settings, service.body_bytes.require, take)
        if raw is not None:
            intake.require_media_type(body, raw=raw)
        async with _deadline(request) as be_patient, _while_connected(request):
            with service.models.hold() as models:
                yield Taken(service, models, client_key(request), body, timings, spend, take, be_patient)


def client_key(request: Request) -> bytes:
    """X-Client-Key, or the API key, or chance: who says nothing of itself has no model to keep to."""
    named = request.headers.get("x-client-key") or request.headers.get("authorization")
    return named.encode() if named else os.urandom(16)


@asynccontextmanager
async def _deadline(request: Request) -> AsyncIterator[Callable[[], None]]:
    """The service's time for a request, from when its body is there; 504 when it is over. Gives `Taken.be_patient`.

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
    start = asyncio.get_running_loop().time()

    def be_patient() -> None:
        nonlocal seconds
        if asked is None:
            seconds = max(seconds, settings.max_request_timeout)
            request.state.timings.until = start + seconds
            limit.reschedule(start + seconds)

    try:
        async with asyncio.timeout_at(start + seconds) as limit:
            request.state.timings.until = start + seconds
            yield be_patient
    except TimeoutError as error:
        raise ServiceError("deadline_exceeded", f"no answer within {seconds:g} s.", limit=seconds) from error


@asynccontextmanager
async def _while_connected(request: Request) -> AsyncIterator[None]:
    """Ends the block when the client hangs up, so that what it asked for is decoded and inferred no more.

    Nobody looks in the first moments: in a quiet service the answer is there by then, and looking would cost more
    than it could save.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass  # an empty piece after the body
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    later = asyncio.get_running_loop().call_later(WATCH_SECONDS, begin)
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        later.cancel()
        if watcher is not None:
            watcher.cancel()


async def vectors_of(
    model: ServedModel, given: Given, space: str, taken: Taken
) -> tuple[NDArray[np.float64], list[bytes]]:
    """[n, d] float64 vectors of what was given, and the files that were embedded for it."""
    if given.vectors is not None:
        return given.vectors, []
    images = await taken.files(given.images)
    embedded = await model.embedder.embed(images, taken.timings)
    return embedded[space].astype(np.float64), images


def usage(images: Sequence[bytes | ServiceError]) -> dict[str, int]:
    """What a request costs, as the reply states it; what never was a file is not among the unique ones."""
    return {"images": len(images), "unique_images": len({image for image in images if isinstance(image, bytes)})}


def head(model: ServedModel, options: Options, fingerprint: str, used: dict[str, int]) -> dict[str, Any]:
    """The fields that every judging reply starts with."""
    return {"model": model.name, "space": options.space, "fingerprint": fingerprint, "usage": used}


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
