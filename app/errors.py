"""Every way a request can fail: one table from kind to status, problem bodies, OpenAPI responses.

Nothing else in the app names a status code of an error. A body is problem+json (RFC 9457) with a
stable `code`; `index` names the offending image, vector or triplet, `limit` the bound that was broken.
Below /v1 and /v2 the same errors have the shapes of the protocols spoken there.
"""

import logging
import math
import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from contract.pixels import ImageError

log = logging.getLogger("alignet")

Kind = Literal[
    "invalid_json",
    "invalid_request",
    "unauthorized",
    "invitation_needed",
    "model_not_found",
    "session_not_found",
    "trial_not_found",
    "route_not_found",
    "method_not_allowed",
    "body_timeout",
    "space_mismatch",
    "reload_refused",
    "choice_conflict",
    "study_full",
    "body_too_large",
    "image_too_large",
    "too_many_pixels",
    "side_too_long",
    "side_too_short",
    "too_many_images",
    "too_many_vectors",
    "too_many_triplets",
    "unsupported_media_type",
    "unsupported_image_format",
    "undecodable_image",
    "url_refused",
    "url_failed",
    "rate_limited",
    "overloaded",
    "not_ready",
    "engine_away",
    "engine_failed",
    "deadline_exceeded",
    "internal",
]


MAX_DETAIL = 400
"""Characters of a detail that are sent."""


class Row(NamedTuple):
    """One line of the table: HTTP status and what the kind means."""

    status: int
    title: str


TABLE: dict[Kind, Row] = {
    "invalid_json": Row(400, "The body is not JSON"),
    "invalid_request": Row(400, "A field is missing, unknown or has a wrong value"),
    "unauthorized": Row(401, "A valid API key is needed"),
    "invitation_needed": Row(403, "The study is by invitation"),
    "session_not_found": Row(404, "No such session of the study"),
    "trial_not_found": Row(404, "No such trial, or it is over"),
    "model_not_found": Row(404, "No such model is served here"),
    "route_not_found": Row(404, "No such path"),
    "method_not_allowed": Row(405, "The path has no such method"),
    "body_timeout": Row(408, "The body did not arrive in time"),
    "space_mismatch": Row(409, "The space fingerprint is not the one expected"),
    "choice_conflict": Row(409, "The trial has another answer already"),
    "study_full": Row(409, "The study takes no more participants"),
    "reload_refused": Row(409, "The new bundle cannot be served; the old one is"),
    "body_too_large": Row(413, "The body has too many bytes"),
    "image_too_large": Row(413, "An image has too many bytes"),
    "too_many_pixels": Row(413, "An image has too many pixels"),
    "side_too_long": Row(413, "A side of an image is too long"),
    "side_too_short": Row(422, "A side of an image is too short"),
    "too_many_images": Row(413, "Too many images in one request"),
    "too_many_vectors": Row(413, "Too many vectors in one request"),
    "too_many_triplets": Row(413, "Too many triplets in one request"),
    "unsupported_media_type": Row(415, "The body has a content type or encoding that this path does not read"),
    "unsupported_image_format": Row(415, "An image has a format that is not read here"),
    "undecodable_image": Row(422, "An image does not decode"),
    "url_refused": Row(422, "The URL of an image is not one that is fetched here"),
    "url_failed": Row(424, "An image could not be fetched from its URL"),
    "rate_limited": Row(429, "This API key has sent more images than its share"),
    "overloaded": Row(429, "Too much work is queued"),
    "not_ready": Row(503, "The service is starting or draining"),
    "engine_away": Row(503, "Triton, which runs the model, cannot be reached or serves another model"),
    "engine_failed": Row(502, "Triton, which runs the model, gave no usable answer"),
    "deadline_exceeded": Row(504, "The request took longer than its deadline"),
    "internal": Row(500, "This is a bug"),
}

# What every route that takes images or vectors may answer; routes add their own kinds.
REQUEST_KINDS: tuple[Kind, ...] = (
    "invalid_json",
    "invalid_request",
    "unauthorized",
    "model_not_found",
    "body_timeout",
    "space_mismatch",
    "body_too_large",
    "image_too_large",
    "too_many_pixels",
    "side_too_long",
    "side_too_short",
    "too_many_images",
    "unsupported_media_type",
    "unsupported_image_format",
    "undecodable_image",
    "url_refused",
    "url_failed",
    "rate_limited",
    "overloaded",
    "not_ready",
    "engine_away",
    "engine_failed",
    "deadline_exceeded",
    "internal",
)


class Problem(BaseModel):
    """An error body (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    index: int | None = None
    limit: float | None = None


class OpenAIFault(BaseModel):
    """What OpenAI's clients read of an error; `code` is that of a problem body."""

    message: str
    type: str
    param: str | None = Field(description="`input.3` where the fourth image is at fault.")
    code: str


class OpenAIError(BaseModel):
    """An error body below /v1."""

    error: OpenAIFault


class ProtocolError(BaseModel):
    """An error body below /v2, as the Open Inference Protocol has it."""

    error: str = Field(description="The code of a problem body, a colon, and its detail.")


class ServiceError(Exception):
    """A request that cannot be served; becomes the problem body of its kind."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        index: int | None = None,
        limit: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind: Kind = kind
        self.detail = detail
        self.index = index
        self.limit = limit
        self.retry_after = retry_after

    def at(self, index: int) -> "ServiceError":
        """The same fault of the image at another index."""
        if self.index == index:
            return self
        detail = self.detail.replace(f"image {self.index}", f"image {index}", 1)
        return ServiceError(self.kind, detail, index=index, limit=self.limit, retry_after=self.retry_after)

    @classmethod
    def of_image(cls, error: ImageError, index: int) -> "ServiceError":
        """The contract's fault of one image, with the position of that image in the request."""
        return cls(error.fault, f"image {index}: {error}", index=index, limit=error.limit)


def require_count(n: int, what: Literal["images", "vectors", "triplets"], limit: int) -> None:
    """Raises ServiceError 413 when there are more than `limit` of them."""
    kinds: dict[str, Kind] = {
        "images": "too_many_images",
        "vectors": "too_many_vectors",
        "triplets": "too_many_triplets",
    }
    if n > limit:
        raise ServiceError(kinds[what], f"{n} {what} in one request; at most {limit}.", limit=limit)


def body_of(error: ServiceError) -> dict[str, Any]:
    """The problem object of an error."""
    row = TABLE[error.kind]
    body = Problem(
        type=f"urn:alignet:problem:{error.kind}",
        title=row.title,
        status=row.status,
        code=error.kind,
        # Details quote what was given; a reply must not grow with the request.
        detail=error.detail if len(error.detail) <= MAX_DETAIL else error.detail[:MAX_DETAIL] + "...",
        index=error.index,
        limit=error.limit,
    )
    return body.model_dump(exclude_none=True)


def problem(error: ServiceError) -> Response:
    """The response of an error."""
    headers = {}
    if error.retry_after is not None:
        # Some sooner, some later: clients that were refused together must not come back together.
        seconds = min(max(error.retry_after, 1.0), 30.0) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        headers["Retry-After"] = str(math.ceil(seconds))
    if error.kind == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        orjson.dumps(body_of(error)), TABLE[error.kind].status, headers, media_type="application/problem+json"
    )


def _openai_body(error: ServiceError) -> OpenAIError:
    status = TABLE[error.kind].status
    names = {401: "authentication_error", 429: "rate_limit_error"}
    fault = OpenAIFault(
        message=body_of(error)["detail"],
        type=names.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        param=None if error.index is None else f"input.{error.index}",
        code=error.kind,
    )
    return OpenAIError(error=fault)


def _protocol_body(error: ServiceError) -> ProtocolError:
    return ProtocolError(error=f"{error.kind}: {body_of(error)['detail']}")


_SHAPES: dict[str, Callable[[ServiceError], BaseModel]] = {"/v1": _openai_body, "/v2": _protocol_body}
"""The bodies of errors below a path, where they are not problem objects."""


def refusal(error: ServiceError, path: str) -> Response:
    """The response of an error of a request to `path`: a problem, or in the shape that its clients read."""
    response = problem(error)
    for prefix, shape in _SHAPES.items():
        if path == prefix or path.startswith(prefix + "/"):
            response.body = orjson.dumps(shape(error).model_dump())
            response.headers["content-length"] = str(len(response.body))
            response.headers["content-type"] = "application/json"
    return response


def responses(*kinds: Kind, shape: type[BaseModel] = Problem) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route, from the table; `shape` is that of its errors."""
    media_type = "application/problem+json" if shape is Problem else "application/json"
    out: dict[int | str, dict[str, Any]] = {}
    for status in sorted({TABLE[kind].status for kind in kinds}):
        lines = [f"`{kind}`: {TABLE[kind].title}." for kind in kinds if TABLE[kind].status == status]
        out[status] = {
            "description": f"{HTTPStatus(status).phrase}. " + " ".join(lines),
            "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}},
        }
    return out


def _counted(request: Request, error: ServiceError) -> Response:
    request.app.state.service.metrics.errors.labels(error.kind).inc()
    return refusal(error, request.scope["path"])


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _counted(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind: Kind = "method_not_allowed" if error.status_code == 405 else "route_not_found"
    response = _counted(request, ServiceError(kind, f"{request.method} on this path is not served; see /docs."))
    if allow := (error.headers or {}).get("Allow"):
        response.headers["Allow"] = allow
    return response


def install(app: FastAPI) -> None:
    """Make the refusals of `app` leave through the table; `app.main` does the same for bugs."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
