"""From numbers to response bodies. Large ones are written in a thread, and none by the standard library's json."""

import asyncio
import base64
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from app import garbage

BINARY = ("application/octet-stream", "application/x-npy")
"""Media types of /embed besides JSON: bare little-endian float32 rows, or a numpy file."""

# Numbers below which writing on the event loop is cheaper than a hop to a thread.
_SMALL = 4096


def float32_base64(array: NDArray[Any]) -> str:
    """Little-endian float32, row by row, as base64."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def rows(matrix: NDArray[Any], encoding: str) -> list[Any]:
    """Each row as a float32 array for orjson, or as base64."""
    if encoding == "base64":
        return [float32_base64(row) for row in matrix]
    return list(np.ascontiguousarray(matrix, np.float32))


def preferred_binary(accept: str | None) -> str | None:
    """The first binary media type that the Accept header names before JSON, if any."""
    for part in (accept or "").split(","):
        media_type = part.split(";")[0].strip().lower()
        if media_type in BINARY:
            return media_type
        if media_type == "application/json":
            return None
    return None


def array_of(blocks: Iterable[list[Any]]) -> orjson.Fragment:
    """A JSON array of what the blocks hold, one after the other; each is written before the next one is made."""
    written = [orjson.dumps(block, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for block in blocks]
    return orjson.Fragment(b"[" + b",".join(written) + b"]")


async def write_json(build: Callable[[], Any], numbers: int) -> Response:
    """JSON by orjson of what `build` returns; both run in a thread if there are many numbers."""

    def dump() -> bytes:
        return orjson.dumps(build(), option=orjson.OPT_SERIALIZE_NUMPY)

    def large() -> bytes:
        with garbage.uncollected():
            return dump()

    content = dump() if numbers <= _SMALL else await asyncio.to_thread(large)
    return Response(content, media_type="application/json")


async def write_matrix(matrix: NDArray[np.float32], media_type: str) -> Response:
    """[n, d] as bare float32 rows or as a numpy file; the shape stands in a header too."""

    def dump() -> bytes:
        array = np.ascontiguousarray(matrix, "<f4")
        if media_type == "application/octet-stream":
            return array.tobytes()
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()

    content = dump() if matrix.size <= _SMALL else await asyncio.to_thread(dump)
    shape = "x".join(str(side) for side in matrix.shape)
    return Response(content, media_type=media_type, headers={"X-Embedding-Shape": shape})
