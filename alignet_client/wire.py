"""Requests from arguments and results from replies, as pure functions; nothing here sends anything."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client.errors import ServiceProblem, UnexpectedReply, problem_body, problem_of
from alignet_client.images import Limits, Payload
from alignet_client.results import (
    Explanation,
    Judgment,
    ModelCard,
    ModelSummary,
    OddOneOut,
    SharedDimension,
    Similarities,
    SpaceCard,
)

Files = Sequence[tuple[str, tuple[str, bytes, str]]]


@dataclass(frozen=True)
class Call:
    """A request: JSON, or multipart with `fields` and `files`, or neither."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    fields: Mapping[str, str] | None = None
    files: Files | None = None


@dataclass(frozen=True)
class Reply:
    """An answer, whatever its status; names of `headers` are in lower case or do not care."""

    status: int
    headers: Mapping[str, str]
    content: bytes


# --- requests -----------------------------------------------------------------------------------

READY = Call("GET", "/health/ready")
MODELS = Call("GET", "/models")


def model_call(name: str) -> Call:
    """GET /models/{name}."""
    return Call("GET", f"/models/{quote(name, safe='')}")


def embed_call(payloads: Sequence[Payload], options: Mapping[str, Any], *, each: bool) -> Call:
    """POST /embed; `each` asks for an outcome for every image, which only JSON has a place for."""
    if each:
        options = {**options, "encoding": "base64", "on_error": "partial"}
    headers = {"Accept": "application/json" if each else "application/octet-stream"}
    return _posted("/embed", {"images": payloads}, options, headers)


def odd_one_out_call(payloads: Sequence[Payload] | None, vectors: ArrayLike | None, options: Mapping[str, Any]) -> Call:
    """POST /odd-one-out, with images or vectors."""
    if vectors is not None:
        return Call("POST", "/odd-one-out", json={"vectors": encoded(vectors), **_given(options)})
    return _posted("/odd-one-out", {"images": payloads or ()}, options, {})


def similarity_call(sides: Mapping[str, Sequence[Payload] | NDArray[np.float32]], options: Mapping[str, Any]) -> Call:
    """POST /similarity; `sides` is `images` alone, or `queries` and `candidates`, each images or vectors [n, d]."""
    options = {**options, "encoding": "base64"}
    images = {name: side for name, side in sides.items() if not isinstance(side, np.ndarray)}
    if len(images) == len(sides):
        return _posted("/similarity", images, options, {})
    body: dict[str, Any] = {}
    for name, side in sides.items():
        collection = {"vectors": encoded(side)} if isinstance(side, np.ndarray) else {"images": _items(side)}
        body |= collection if name == "images" else {name: collection}
    return Call("POST", "/similarity", json=body | _given(options))


def _posted(
    path: str, sides: Mapping[str, Sequence[Payload]], options: Mapping[str, Any], headers: Mapping[str, str]
) -> Call:
    """Multipart, which needs no base64, unless one of the images is a URL."""
    if any(one.url for side in sides.values() for one in side):
        items = {name: _items(side) for name, side in sides.items()}
        body = items if "images" in items else {name: {"images": side} for name, side in items.items()}
        return Call("POST", path, headers, json=body | _given(options))
    # Files are numbered: the service does not need to know what they are called.
    files = [
        (name, (str(i), one.data, "application/octet-stream"))
        for name, side in sides.items()
        for i, one in enumerate(side)
    ]
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in _given(options).items()}
    return Call("POST", path, headers, fields=fields, files=files)


def _items(payloads: Sequence[Payload]) -> list[dict[str, str]]:
    return [{"image": one.url or base64.b64encode(one.data).decode()} for one in payloads]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def matrix(vectors: ArrayLike) -> NDArray[np.float32]:
    """Vectors [n, d] as little-endian float32. Raises ValueError: another shape, or not finite."""
    array = np.ascontiguousarray(vectors, "<f4")
    if array.ndim != 2 or not len(array):
        raise ValueError(f"vectors are of shape {list(array.shape)}; expected [n, d] with n of 1 or more")
    if not np.isfinite(array).all():
        raise ValueError(f"vector {int(np.argmin(np.isfinite(array).all(1)))} has a value that is no finite float32")
    return array


def encoded(vectors: ArrayLike) -> list[str]:
    """Vectors [n, d], each as base64 of little-endian float32."""
    return [base64.b64encode(row.tobytes()).decode() for row in matrix(vectors)]


# --- replies ------------------------------------------------------------------------------------


def problem(reply: Reply) -> ServiceProblem:
    """The error that a reply with an error status is."""
    body = problem_body(reply.content)
    if body is None:  # something between us and the service
        text = reply.content[:200].decode("utf-8", "replace").strip()
        body = {"code": f"http_{reply.status}", "detail": text or "the answer has no body"}
    asked = reply.headers.get("retry-after") or ""
    return problem_of(
        body,
        reply.status,
        retry_after=float(asked[:9]) if asked.isascii() and asked.isdecimal() else None,
        request_id=reply.headers.get("x-request-id"),
    )


def checked(reply: Reply) -> Reply:
    """The reply. Raises ServiceProblem unless its status is 200."""
    if reply.status >= 400:
        raise problem(reply)
    if reply.status != 200:
        raise UnexpectedReply(f"status {reply.status} is none of AligNet Serve; is the URL right?")
    return reply


def parsed(reply: Reply) -> dict[str, Any]:
    """The JSON object of a good reply. Raises ServiceProblem or UnexpectedReply."""
    content = checked(reply).content
    try:
        body = json.loads(content)
    except ValueError as error:
        raise UnexpectedReply(f"the answer is no JSON ({error}); is the URL that of AligNet Serve?") from error
    if not isinstance(body, dict):
        raise UnexpectedReply(f"the answer is a JSON {type(body).__name__}; is the URL that of AligNet Serve?")
    return body


def vectors_of(reply: Reply) -> tuple[str, NDArray[np.float32]]:
    """Fingerprint and vectors [n, d] of a binary reply of /embed. Raises ServiceProblem or UnexpectedReply."""
    checked(reply)
    try:
        rows, size = map(int, reply.headers["x-embedding-shape"].split("x"))
        return reply.headers["x-space-fingerprint"], np.frombuffer(reply.content, "<f4").reshape(rows, size).copy()
    except (KeyError, ValueError) as error:
        raise UnexpectedReply(f"the answer has no vectors ({error}); is the URL that of AligNet Serve?") from error


def outcomes_of(reply: Reply) -> tuple[str, str, list[NDArray[np.float32] | ServiceProblem]]:
    """Model, fingerprint, and for each image of a partial reply its vector [d] or what is wrong with it."""
    body = parsed(reply)
    out: list[NDArray[np.float32] | ServiceProblem] = []
    with _shape():
        for item in body["data"]:
            if "error" in item:
                out.append(problem_of(item["error"], item["error"]["status"]))
            else:
                out.append(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"))
        return body["model"], body["fingerprint"], out


def models_of(reply: Reply) -> list[ModelSummary]:
    """Answer of GET /models."""
    with _shape():
        return [_summary(item) for item in parsed(reply)["models"]]


def aliases_of(reply: Reply) -> dict[str, dict[str, float]]:
    """The aliases in an answer of GET /models; none where it has no such field."""
    with _shape():
        return {
            name: {model: float(weight) for model, weight in weights.items()}
            for name, weights in parsed(reply).get("aliases", {}).items()
        }


def card_of(reply: Reply) -> ModelCard:
    """Answer of GET /models/{name}."""
    body = parsed(reply)
    with _shape():
        spaces = {
            name: SpaceCard(**{key: space[key] for key in SpaceCard.__dataclass_fields__})
            for name, space in body["spaces"].items()
        }
        return ModelCard(**vars(_summary(body)), spaces=spaces, limits=dict(body["limits"]), raw=body)


def limits_of(card: ModelCard) -> Limits:
    """What of a card bounds one request."""
    limits = card.limits
    with _shape():
        return Limits(int(limits["max_images"]), int(limits["max_body_bytes"]), int(limits["max_image_bytes"]))


def odd_one_out_of(reply: Reply) -> OddOneOut:
    """Answer of /odd-one-out."""
    body = parsed(reply)
    with _shape():
        results = [_judgment(item) for item in body["results"]]
        names = ("model", "space", "fingerprint", "similarity", "temperature", "calibrated", "tie_rule")
        return OddOneOut(results=results, **{name: body[name] for name in names})


def _judgment(item: dict[str, Any]) -> Judgment:
    plain = {key: _tuple(item[key]) for key in Judgment.__dataclass_fields__ if key != "explanation"}
    given = item.get("explanation")
    return Judgment(**plain, explanation=None if given is None else _explanation(given))


def _explanation(given: dict[str, Any]) -> Explanation:
    shared = given["shared"]
    return Explanation(
        log_probability=given["log_probability"],
        maps=np.array([image["map"] for image in given["images"]], np.float64),
        boxes=np.array([image["boxes"] for image in given["images"]], np.float64),
        shared=None if shared is None else [SharedDimension(**dimension) for dimension in shared["dimensions"]],
        method=given["method"],
    )


def similarities_of(reply: Reply) -> Similarities:
    """Answer of /similarity."""
    body = parsed(reply)
    with _shape():
        flat = np.frombuffer(base64.b64decode(body["similarities"]), "<f4")
        names = ("model", "space", "fingerprint", "kernel")
        return Similarities(matrix=flat.reshape(body["shape"]).copy(), **{name: body[name] for name in names})


def _summary(item: dict[str, Any]) -> ModelSummary:
    return ModelSummary(**{key: item[key] for key in ModelSummary.__dataclass_fields__})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _shape() -> Iterator[None]:
    """A block whose missing keys and wrong values mean that somebody else answered."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedReply(f"the answer lacks what was asked for ({error!r}); is the URL right?") from error
