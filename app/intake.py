"""From an HTTP request to images, vectors and options: JSON, multipart or a raw image body.

Bodies are counted while they arrive and refused at the limit; the conversion of what arrived
(JSON, forms, base64, numbers) runs in a worker thread, never on the event loop.
"""

import asyncio
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import orjson
import pybase64
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from app import forms, garbage
from app.errors import ServiceError, require_count
from app.fetch import FetchError, Origin, Target, parse_url
from app.schemas import Collection, ImageItem
from app.settings import Settings

M = TypeVar("M", bound=BaseModel)

SMALL_BODY = 16_384
"""Bytes below which parsing on the event loop is cheaper than a hop to a thread."""

SMALL_IMAGES = 262_144
"""The same for a body that is nearly all base64 of images, which parses at a gigabyte a second."""


@dataclass(frozen=True)
class Body:
    """A request body that arrived whole."""

    media_type: str
    content: bytes
    headers: Any


@dataclass(frozen=True)
class Given:
    """Images, or vectors [n, d] float64, as one request names them."""

    images: Sequence[bytes | Target] = field(default_factory=list)
    vectors: NDArray[np.float64] | None = None


async def read_body(
    request: Request, settings: Settings, require: Callable[[int], None], take: Callable[[int], None]
) -> Body:
    """The body, within its limit, its time and what memory is left.

    Args:
        request: of which only the body is read.
        settings: its limits.
        require: see `app.admission.ByteBudget.require`; asked for the stated length, before a byte is read.
        take: see `app.admission.ByteBudget.hold`; asked for each piece.

    Raises:
        ServiceError: 413 as soon as the limit is passed, 408 when it is late, 415 when compressed, or
            429 where memory is full.
    """
    limit = settings.max_body_bytes
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        # A compressed body has no size until it is unpacked; images are compressed already.
        raise ServiceError("unsupported_media_type", f"body has content-encoding {encoding!r}; send it plain.")
    too_large = ServiceError("body_too_large", f"the body may have at most {limit} bytes.", limit=limit)
    stated = request.headers.get("content-length", "")
    if stated.isdecimal():
        if len(stated) > 18 or int(stated) > limit:
            raise too_large
        require(int(stated))
    pieces, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise too_large
                take(len(piece))
                pieces.append(piece)
    except TimeoutError as error:
        raise ServiceError(
            "body_timeout", f"{size} bytes arrived in {settings.body_timeout:g} s.", limit=settings.body_timeout
        ) from error
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return Body(media_type, b"".join(pieces), request.headers)


async def in_thread_if_large(size: int, function: Any, *args: Any, small: int = SMALL_BODY) -> Any:
    """Call at once for small work, in a thread for large."""
    if size <= small:
        return function(*args)

    def large() -> Any:
        with garbage.uncollected():
            return function(*args)

    return await asyncio.to_thread(large)


def parse_json(body: Body, model: type[M], settings: Settings) -> M:
    """The JSON body as `model`. Raises ServiceError: not JSON, not the schema, or more than the settings allow."""
    try:
        value = orjson.loads(body.content)
    except orjson.JSONDecodeError as error:
        raise ServiceError("invalid_json", f"{error}.") from error
    if not isinstance(value, dict):
        raise ServiceError("invalid_request", f"the body is a JSON {type(value).__name__}; expected an object.")
    return validate(model, value, settings, strict=True)


def validate(model: type[M], value: dict[str, Any], settings: Settings, *, strict: bool = False) -> M:
    """`value` as `model`. Raises ServiceError naming the first wrong field, never quoting its content.

    JSON has types of its own, so it is read strictly: 1 and "yes" are not true. Forms and queries have text.
    Models must have few errors whatever they are given, as those of `app.schemas` have (but for an admin's weights):
    pydantic makes an object of each at once, and a megabyte of wrong numbers would stop the process for seconds.
    """
    try:
        return model.model_validate(value, strict=strict, context=settings)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        index = next((part for part in first["loc"] if isinstance(part, int)), None)
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ServiceError("invalid_request", f"{where}: {first['msg']}{more}.", index=index) from error


def is_json(body: Body) -> bool:
    """Whether the content type says JSON."""
    return body.media_type == "application/json" or body.media_type.endswith("+json")


def require_media_type(body: Body, *, raw: bool) -> None:
    """Raises ServiceError unless the body is JSON, multipart or, if `raw`, an image."""
    if is_json(body) or body.media_type == "multipart/form-data" or (raw and body.media_type.startswith("image/")):
        return
    expected = "application/json, multipart/form-data" + (" or image/*" if raw else "")
    raise ServiceError("unsupported_media_type", f"content-type is {body.media_type!r}; expected {expected}.")


async def parse_form(
    body: Body, settings: Settings, files: Sequence[str]
) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """A multipart body: its text fields, and the files under each of the names `files`.

    Raises:
        ServiceError: not multipart, too many parts, a repeated option, or a file under another name.
    """
    limit = settings.max_images
    try:
        parts = await in_thread_if_large(
            len(body.content), forms.parse, body.content, body.headers.get("content-type"), limit
        )
    except forms.TooManyFiles as error:
        raise ServiceError("too_many_images", f"more than {limit} files in one request.", limit=limit) from error
    except forms.FormError as error:
        raise ServiceError("invalid_request", f"the multipart body does not parse: {error}.") from error
    fields: dict[str, str] = {}
    found: dict[str, list[bytes]] = {name: [] for name in files}
    for name, filename, content in parts:
        if filename is not None:
            if name not in found:
                raise ServiceError(
                    "invalid_request", f"a file stands under an unknown name; expected {', '.join(files)}."
                )
            found[name].append(content)
        elif name in fields:
            raise ServiceError("invalid_request", f"field {name!r} is given twice.")
        elif name in found:
            raise ServiceError("invalid_request", f"{name!r} is text; send it as a file (curl -F {name}=@photo.jpg).")
        else:
            fields[name] = content.decode("utf-8", "replace")
    return fields, found


def decode_base64(text: str, what: str, index: int) -> bytes:
    """Standard base64, line breaks allowed. Raises ServiceError naming the item."""
    try:
        plain: bytes = pybase64.b64decode(text, validate=True)  # fifty times as fast, and as strict or stricter
        return plain
    except ValueError:
        pass  # there may be line breaks
    try:
        return binascii.a2b_base64(text.translate(_NO_SPACE).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ServiceError("invalid_request", f"{what} {index}: not base64.", index=index) from error


_NO_SPACE = {ord(c): None for c in " \t\r\n"}


def decode_images(items: Sequence[ImageItem], settings: Settings, first: int = 0) -> list[bytes | Target]:
    """Base64 or data URIs to bytes, and URLs to what is fetched later; `first` is the index of the first.

    Raises:
        ServiceError: naming the item.
    """
    require_count(first + len(items), "images", settings.max_images)
    return [_decode_image(item, index, settings) for index, item in enumerate(items, first)]


def decode_each(items: Sequence[ImageItem], settings: Settings) -> list[bytes | Target | ServiceError]:
    """As `decode_images`, but an item that is no image leaves its error in its place."""
    require_count(len(items), "images", settings.max_images)
    images: list[bytes | Target | ServiceError] = []
    for index, item in enumerate(items):
        try:
            images.append(_decode_image(item, index, settings))
        except ServiceError as error:
            images.append(error)
    return images


def _decode_image(item: ImageItem, index: int, settings: Settings) -> bytes | Target:
    text = item.image
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ServiceError("invalid_request", f"image {index}: a data URI must be base64.", index=index)
    elif "://" in text[:16]:
        if not settings.fetch_origins:
            raise ServiceError("invalid_request", f"image {index}: URLs are not fetched; send the bytes.", index=index)
        try:
            return parse_url(text, [Origin.parse(origin) for origin in settings.fetch_origins])
        except FetchError as error:
            raise error.at(index) from error
    if len(text) * 3 // 4 > settings.max_image_bytes * 1.1 + 4:  # line breaks may take a few per cent
        limit = settings.max_image_bytes
        raise ServiceError("image_too_large", f"image {index} has more than {limit} bytes.", index=index, limit=limit)
    return decode_base64(text, "image", index)


def decode_vectors(items: Sequence[Any], size: int, settings: Settings, first: int = 0) -> NDArray[np.float64]:
    """Lists of numbers, or base64 of little-endian float32, to [n, size]; `first` is the index of the first.

    Raises:
        ServiceError: naming the vector that has another size, or a value that is no finite number.
    """
    require_count(first + len(items), "vectors", settings.max_vectors)
    out = np.empty((len(items), size), np.float64)
    for index, item in enumerate(items, first):
        vector = _vector(item, index, size)
        # Finite float32 only: the product of two of them cannot overflow in float64.
        if not (np.abs(vector) <= np.finfo(np.float32).max).all():
            raise ServiceError("invalid_request", f"vector {index}: a value is no finite float32.", index=index)
        out[index - first] = vector
    return out


def _vector(item: Any, index: int, size: int) -> NDArray[Any]:
    if isinstance(item, str):
        data = decode_base64(item, "vector", index)
        if len(data) % 4:
            raise ServiceError("invalid_request", f"vector {index}: {len(data)} bytes are no float32s.", index=index)
        values: NDArray[Any] = np.frombuffer(data, "<f4")
    else:
        # numpy would take true for 1 and "1" for 1.0.
        if not isinstance(item, list) or not set(map(type, item)) <= {float, int}:
            raise ServiceError("invalid_request", f"vector {index}: expected numbers or base64.", index=index)
        values = np.array(item, np.float64)
    if len(values) != size:
        raise ServiceError(
            "invalid_request", f"vector {index} has {len(values)} values; this space has {size}.", index=index
        )
    return values


def given(collection: Collection, size: int, settings: Settings, after: Given | None = None) -> Given:
    """The images or vectors of one JSON collection, decoded; limits and indices count on from `after`."""
    if collection.images is not None:
        return Given(images=decode_images(collection.images, settings, len(after.images) if after else 0))
    before = 0 if after is None or after.vectors is None else len(after.vectors)
    return Given(vectors=decode_vectors(collection.vectors or [], size, settings, before))


def no_query(query: dict[str, str]) -> None:
    """Options of JSON and multipart bodies stand in the body; a query would be ignored, so it is refused."""
    if query:
        names = ", ".join(sorted(query)[:3])
        raise ServiceError("invalid_request", f"query parameters ({names[:80]}) are read with a raw image body only.")


def files_under(images: list[bytes], name: str, limit: int) -> list[bytes]:
    """The files that came under `name`. Raises ServiceError: none, or more than `limit`."""
    if not images:
        raise ServiceError("invalid_request", f"no file {name!r} in the multipart body (curl -F {name}=@photo.jpg).")
    require_count(len(images), "images", limit)
    return images
