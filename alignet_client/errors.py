"""What can go wrong when a service is asked: one class a way of handling it, with the service's own code and detail."""

import json
import re
from collections.abc import Mapping
from typing import Any


class AligNetError(Exception):
    """Anything this package raises of its own; wrong arguments are ValueError and TypeError."""


class ConnectionFailed(AligNetError):
    """Nobody answered, or the connection broke, until the deadline or the tries were used up."""


class UnexpectedReply(AligNetError):
    """The answer is none of AligNet Serve; the URL may be that of something else."""


class ServiceProblem(AligNetError):
    """The service refused or failed.

    Attributes:
        status: HTTP status.
        code: stable name of the fault, as docs/api.md lists them; `http_502` and the like where something
            between client and service answered.
        detail: what is wrong, in a sentence.
        index: position of the offending image, vector or triplet in what was given to the client, if one is named.
        image: what that image was given as: its path or URL, or its kind.
        limit: the bound that was broken.
        retry_after: seconds after which the service wants to be asked again.
        request_id: for the operator, whose log has it.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str,
        index: int | None = None,
        image: str | None = None,
        limit: float | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        named = f" [{image}]" if image else ""
        super().__init__(f"{status} {code}: {detail}{named}")
        self.detail = detail
        self.status = status
        self.code = code
        self.index = index
        self.image = image
        self.limit = limit
        self.retry_after = retry_after
        self.request_id = request_id

    def at(self, index: int, image: str) -> "ServiceProblem":
        """The same fault of the image at another position."""
        detail = re.sub(rf"\bimage {self.index}\b", f"image {index}", self.detail, count=1)
        return type(self)(
            detail,
            status=self.status,
            code=self.code,
            index=index,
            image=image,
            limit=self.limit,
            retry_after=self.retry_after,
            request_id=self.request_id,
        )


class BadRequest(ServiceProblem):
    """An option or value is wrong."""


class Unauthorized(ServiceProblem):
    """A valid API key is needed."""


class NotFound(ServiceProblem):
    """No such model, or no such path."""


class SpaceMismatch(ServiceProblem):
    """The vectors are of another space than expected, or than those of the same run before."""


class TooLarge(ServiceProblem):
    """An image, or how much there is in one request, is over a limit of the service."""


class BadImage(ServiceProblem):
    """An image does not decode, is too small, or cannot be fetched from its URL."""


class Overloaded(ServiceProblem):
    """Too much work is queued, or the key has sent more than its share, and waiting did not help."""


class Unavailable(ServiceProblem):
    """The service is starting, draining or without its engine, and waiting did not help."""


class DeadlineExceeded(ServiceProblem):
    """The service had no answer within its own deadline; send fewer images at once."""


_BY_STATUS: dict[int, type[ServiceProblem]] = {
    400: BadRequest,
    401: Unauthorized,
    404: NotFound,
    405: NotFound,
    409: SpaceMismatch,
    413: TooLarge,
    415: BadImage,
    422: BadImage,
    424: BadImage,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def problem_of(body: Mapping[str, Any], status: int, **more: Any) -> ServiceProblem:
    """The error of one problem object, as a body or in the place of an image's vector."""
    kind = _BY_STATUS.get(status, ServiceProblem)
    if body.get("code") == "unsupported_media_type":
        kind = BadRequest  # of the request, though its status is that of images
    return kind(
        str(body.get("detail", "")),
        status=status,
        code=str(body["code"]),
        index=body.get("index"),
        limit=body.get("limit"),
        **more,
    )


def problem_body(content: bytes) -> dict[str, Any] | None:
    """The problem object (RFC 9457) that a body is, or None."""
    try:
        body = json.loads(content)
    except ValueError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("code"), str) else None
