"""The ASGI application: `create_app(settings)` builds it, its lifespan owns the model."""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors, logs, schemas, tensors
from app.errors import ServiceError
from app.routes import about, admin, embed, judging, kserve, odd_one_out, openai, pages, similarity
from app.served import ServedModel
from app.service import VERSION, Service
from app.settings import Settings
from app.timings import Timings
from app.tracing import Tracing

log = logging.getLogger("alignet")

_EXPOSED = ("Retry-After", "Server-Timing", "X-Embedding-Shape", "X-Request-Id", "X-Space-Fingerprint")

_ALWAYS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# No reply is a page, but for those of app.routes.pages, which say their own, and the viewer of the API document,
# which loads itself from the internet.
_NO_PAGE = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(
    settings: Settings,
    *,
    on_ready: Callable[[ServedModel], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """The service for the bundles of the settings. Nothing is read or started before the lifespan begins.

    The bundles load beside the running server: /health/live answers at once, everything else 503
    until they are verified and warm.

    Args:
        on_ready: called once with the default model, when the first request would be served.
        on_failure: called if a bundle cannot be served; without it the error ends the lifespan.
    """
    service = Service(settings)

    async def load() -> None:
        try:
            if settings.trace_endpoint:
                service.tracing = await asyncio.to_thread(Tracing, settings.trace_endpoint, VERSION)
            model = await service.load()
        except Exception as error:
            log.error("the bundle cannot be served: %s: %s", type(error).__name__, error)
            if on_failure is None:
                raise
            on_failure(error)
        else:
            if on_ready is not None and not service.draining:
                on_ready(model)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            service.draining = True
            await loading
            await service.close()
            if service.tracing is not None:
                await asyncio.to_thread(service.tracing.close)

    app = FastAPI(
        title="AligNet Serve",
        version=VERSION,
        description="Image embeddings, similarities and odd-one-out judgments that agree with people.",
        lifespan=lifespan,
        docs_url="/docs" if settings.api_docs else None,
        openapi_url="/openapi.json" if settings.api_docs else None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would make clients send their photos twice
        # FastAPI's own traces hold paths and exceptions, and its environment can switch them on; see app.tracing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    errors.install(app)
    _include_rooms(app, settings)
    app.add_middleware(_Observe, service=service)
    if settings.cors_origins:  # outermost, so that a page can read errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=(
                "Accept",
                "Authorization",
                "Content-Type",
                "X-Client-Key",
                "X-Request-Id",
                "X-Request-Timeout-Ms",
            ),
            expose_headers=_EXPOSED,
        )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _include_rooms(app: FastAPI, settings: Settings) -> None:
    """The paths that these settings switch on."""
    for room in (embed, odd_one_out, similarity, openai, kserve, about, *([admin] if settings.admin_keys else [])):
        app.include_router(room.router)
    if settings.judging is not None:
        app.include_router(judging.router)
        if settings.admin_keys:
            app.include_router(judging.exporting)
    app.include_router(pages.router(settings))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the schemas of the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        known = document["components"]["schemas"]
        bodies: list[type[BaseModel]]
        bodies = [schemas.EmbedRequest, schemas.OddOneOutRequest, schemas.SimilarityRequest, errors.Problem]
        bodies += [openai.EmbeddingsRequest, errors.OpenAIError, tensors.InferRequest, errors.ProtocolError]
        for model in bodies:
            definition = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, nested in definition.pop("$defs", {}).items():
                known.setdefault(name, nested)
            known[model.__name__] = definition
        # FastAPI promises its own 422 for path parameters; a name of any text is valid here.
        for path, operations in document["paths"].items():
            for operation in operations.values() if "{" in path else ():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            known.pop(unused, None)
    return app.openapi_schema or {}


class _Observe:
    """Around every request: id, timings, metrics, and the headers that every response carries."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.metrics = service.metrics
        self.running = 0
        self.metrics.in_flight.set_function(lambda: float(self.running))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        timings = Timings()
        scope.setdefault("state", {})["timings"] = timings
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else os.urandom(16).hex()
        status: int | None = None
        token = logs.request_id.set(request_id)
        tracing = self.service.tracing
        span = tracing.start(headers) if tracing else None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*_ALWAYS, (b"x-request-id", request_id.encode())]
                if scope["path"] != "/docs":
                    extra.append(_NO_PAGE)
                if timings.stages:
                    stages = ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in timings.stages.items())
                    extra.append((b"server-timing", stages.encode()))
                if self.service.leaving:
                    # A client that keeps its connection would meet the closing port with its next request.
                    extra.append((b"connection", b"close"))
                own = {name.lower() for name, _ in message["headers"]}  # a page has a policy of its own
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in own)]
            await send(message)

        self.running += 1
        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # nobody is there to be answered; the code is nginx's
        except Exception as error:
            log.exception("request %s failed", request_id)
            self.metrics.errors.labels("internal").inc()
            if status is not None:
                raise  # the reply has begun; only cutting the connection tells the client
            detail = f"{type(error).__name__} in the service; its log has the trace, with id {request_id}."
            await errors.refusal(ServiceError("internal", detail), scope["path"])(scope, receive, send_with_headers)
        finally:
            self.running -= 1
            # An unknown path is one label, whatever it is; so is an unknown method.
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            seconds, code = time.perf_counter() - start, status or 499
            self.metrics.requests.labels(route, method, str(code)).inc()
            self.metrics.duration.observe(seconds, route)
            if self.service.settings.access_log:
                logs.access(method, route, code, seconds, timings.stages)
            if tracing:
                tracing.finish(span, method, route, code, request_id, timings.stages)
            logs.request_id.reset(token)
            for stage, seconds in timings.stages.items():
                self.metrics.stage.observe(seconds, stage)
