"""From the arguments of both clients' methods to requests, and from requests to what httpx2 takes."""

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client import wire
from alignet_client.errors import ConnectionFailed
from alignet_client.images import Image, Payload, read_all
from alignet_client.retrying import Attempts
from alignet_client.wire import Call

DEFAULT_URL = "http://localhost:8000"

HOPELESS = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
"""Failures of a connection that another try cannot mend."""


def connection(url: str | None, key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of httpx2's clients.

    Args:
        url: of the service; without one, ALIGNET_URL, or port 8000 of this machine.
        key: the API key; without one, ALIGNET_KEY, or none.
        timeout: seconds.

    Raises:
        ValueError: the URL or key cannot be one.
    """
    url = url or os.environ.get("ALIGNET_URL") or DEFAULT_URL
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no URL of a service; expected http://host:port or https://host")
    key = os.environ.get("ALIGNET_KEY") if key is None else key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("the API key has characters that no header can carry")
    # Behind an alias that shares requests among models, the key, or this, keeps a client with one of them.
    itself = {"Authorization": f"Bearer {key}"} if key else {"X-Client-Key": uuid.uuid4().hex}
    headers = {"User-Agent": "alignet-client"} | itself
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout}


def arguments(call: Call, timeout: float) -> dict[str, Any]:
    """Arguments of `build_request`."""
    out: dict[str, Any] = {"headers": dict(call.headers), "timeout": timeout}
    if call.json is not None:
        out["json"] = call.json
    if call.files is not None:
        out |= {"data": dict(call.fields or {}), "files": list(call.files)}
    return out


def failed(error: httpx2.TransportError, url: object, attempts: Attempts) -> ConnectionFailed:
    """What is raised where nobody answered."""
    tries = "1 try" if attempts.made == 1 else f"{attempts.made} tries"
    reason = str(error) or "it took too long"
    return ConnectionFailed(f"no answer from {url} after {tries}: {type(error).__name__}: {reason}")


def odd_one_out(
    images: Iterable[Image] | None,
    vectors: ArrayLike | None,
    triplets: Iterable[Sequence[int]] | None,
    options: Mapping[str, Any],
) -> Call:
    """POST /odd-one-out. Raises as `images.payload`, and ValueError unless there is either images or vectors."""
    if (images is None) == (vectors is None):
        raise ValueError("give either images or vectors")
    listed = None if triplets is None else [[int(i) for i in triplet] for triplet in triplets]
    payloads = None if images is None else read_all(images)
    return wire.odd_one_out_call(payloads, vectors, {**options, "triplets": listed})


def similarity(given: Mapping[str, Any], options: Mapping[str, Any]) -> Call:
    """POST /similarity.

    Args:
        given: `images`, `vectors`, `queries` and `candidates`, None where not given. Vectors are a float array
            [n, d], images anything else.
        options: of the request.

    Raises:
        ValueError: neither one list, nor queries and candidates.
        OSError: a file cannot be read.
        TypeError: something is no image.
    """
    names = [name for name, value in given.items() if value is not None]
    if names not in (["images"], ["vectors"], ["queries", "candidates"]):
        raise ValueError(f"given are {names}; expected images or vectors alone, or queries and candidates")
    sides = {"images" if name == "vectors" else name: _side(given[name], name == "vectors") for name in names}
    return wire.similarity_call(sides, options)


def _side(value: Any, vectors: bool) -> list[Payload] | NDArray[np.float32]:
    if vectors or (isinstance(value, np.ndarray) and value.ndim == 2):
        return wire.matrix(value)
    return read_all(value)
