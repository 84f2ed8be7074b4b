"""Tensors of the Open Inference Protocol (KServe's v2): requests to pixels or files, vectors to replies.

A request is JSON, or, with the header `Inference-Header-Content-Length`, JSON of that many bytes with the bytes of
its tensors behind it (Triton's binary tensor data extension). The pixels are the graph's own input, as Triton serves
it: the same name, type and shape. Beside it stands `images`, encoded files as BYTES, so that a client without
`contract.pixels` cannot prepare its photos wrongly.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any, get_args

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field

from app import intake
from app.errors import ServiceError, require_count
from app.fetch import Target
from app.intake import Body
from app.schemas import ImageItem, SpaceName
from app.settings import Settings
from app.triton_engine import DATATYPES
from contract.manifest import GRAPH_INPUT
from contract.pixels import PixelSpec

HEADER = "Inference-Header-Content-Length"
FILES = "images"
"""Name of the BYTES input: encoded files; as JSON each in base64, or a URI as elsewhere."""

_FOREIGN = ("classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
"""Parameters of Triton's other extensions. To answer as if they were not there would be a wrong answer."""


class _Protocol(BaseModel):
    # Clients send more than the protocol names (KServe's own a `model_name`); as in Triton, that is not read.
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, protected_namespaces=())

    parameters: dict[str, Any] = Field(default_factory=dict)


class InputTensor(_Protocol):
    """One input: `data`, or `binary_data_size` among its parameters."""

    name: str
    datatype: str
    shape: Annotated[list[int], FailFast()] = Field(min_length=1, max_length=8)
    data: Any = Field(default=None, description="Row by row, flat or nested; base64 texts for BYTES.")


class OutputAsked(_Protocol):
    """One output that is wanted; `binary_data` among its parameters says how."""

    name: str


class InferRequest(_Protocol):
    """JSON of an inference: the one input `pixels` or `images`, and the outputs that are wanted, or all."""

    id: str | None = None
    inputs: Annotated[list[InputTensor], FailFast()] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[OutputAsked] | None, FailFast()] = Field(default=None, max_length=len(get_args(SpaceName)))


class TensorDescription(BaseModel):
    """Name, type and shape of one tensor; -1 is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class OutputTensor(TensorDescription):
    """One output: `data`, or `binary_data_size` among its parameters."""

    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferReply(BaseModel):
    """JSON of an answer; `parameters` has the fingerprint of each space."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: list[OutputTensor]


@dataclass(frozen=True)
class Tensors:
    """The images of one request: pixels [3, height, width] each, or files."""

    pixels: Sequence[NDArray[Any]] = field(default_factory=list)
    files: Sequence[bytes | Target] = field(default_factory=list)


def split(body: Body, settings: Settings) -> tuple[InferRequest, bytes]:
    """The JSON of a request, and the bytes behind it. Raises ServiceError: not the protocol."""
    stated = body.headers.get(HEADER)
    if stated is None:
        return intake.parse_json(body, InferRequest, settings), b""
    size = int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 18 else -1
    if not 0 < size <= len(body.content):
        detail = f"{HEADER} is {stated!r}; expected the bytes of the JSON, 1 to {len(body.content)}."
        raise ServiceError("invalid_request", detail)
    head = Body(body.media_type, body.content[:size], body.headers)
    return intake.parse_json(head, InferRequest, settings), body.content[size:]


def timeout_of(asked: InferRequest) -> float | None:
    """Seconds that the request's parameter `timeout` allows, which is in microseconds; 0 is none.

    Raises:
        ServiceError: it is no whole number.
    """
    value = asked.parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise ServiceError("invalid_request", "parameter timeout: expected microseconds as a whole number.")
    return value / 1e6 or None


def fingerprints_of(asked: InferRequest) -> dict[str, str]:
    """Space to the fingerprint that the client expects of it: parameters such as `fingerprint.aligned`."""
    given = {key.partition(".")[2]: value for key, value in asked.parameters.items() if key.startswith("fingerprint.")}
    if not all(isinstance(value, str) for value in given.values()):
        raise ServiceError("invalid_request", "parameters fingerprint.*: expected text.")
    return given


def outputs_of(asked: InferRequest, spaces: Sequence[str]) -> dict[str, bool]:
    """The outputs that are wanted, in the order asked for, and whether each is to be binary.

    Raises:
        ServiceError: one that the model lacks, or one twice.
    """
    binary = _flag(asked.parameters, "binary_data_output", default=False)
    if not asked.outputs:
        return dict.fromkeys(spaces, binary)
    wanted: dict[str, bool] = {}
    for output in asked.outputs:
        _refuse_foreign(output.parameters, f"output {output.name!r}")
        if output.name not in spaces:
            detail = f"no output {output.name!r}; expected {' or '.join(spaces)}."
            raise ServiceError("invalid_request", detail)
        if output.name in wanted:
            raise ServiceError("invalid_request", f"output {output.name!r} is asked for twice.")
        wanted[output.name] = _flag(output.parameters, "binary_data", default=binary)
    return wanted


def tensors_of(asked: InferRequest, rest: bytes, spec: PixelSpec, settings: Settings) -> Tensors:
    """The images that the one input holds.

    Args:
        asked: the request.
        rest: what stands behind its JSON.
        spec: of the model; `pixels` is its tensor [n, 3, height, width].
        settings: with the limits.

    Raises:
        ServiceError: another input, type or shape, or data that do not fill it.
    """
    (given,) = asked.inputs
    _refuse_foreign(given.parameters, f"input {given.name!r}")
    expected = {GRAPH_INPUT: (DATATYPES[spec.dtype], [-1, *spec.shape]), FILES: ("BYTES", [-1])}
    if given.name not in expected:
        raise ServiceError("invalid_request", f"no input of the name given; expected {GRAPH_INPUT!r} or {FILES!r}.")
    datatype, shape = expected[given.name]
    # Triton gives every input of a model that batches an axis for the batch: files may come as [n, 1].
    plain = given.shape[:1] if given.name == FILES and given.shape[1:] == [1] else given.shape
    if given.datatype != datatype or plain[1:] != shape[1:] or len(plain) != len(shape) or plain[0] < 1:
        found = f"{given.datatype[:16]} {given.shape}"
        raise ServiceError("invalid_request", f"input {given.name!r} is {found}; expected {datatype} {shape}.")
    require_count(plain[0], "images", settings.max_images)
    blob = _blob(given, rest)
    if given.name == FILES:
        return Tensors(files=_files(given, blob, plain[0], settings))
    pixels = _pixels(given, blob, (plain[0], *spec.shape), np.dtype(spec.dtype))
    if spec.dtype == "float32":
        _require_photos(pixels, spec, given.name)
    return Tensors(pixels=list(pixels))


def write(head: dict[str, Any], vectors: Sequence[tuple[str, NDArray[np.float32], bool]]) -> Response:
    """The reply: JSON, with the bytes of binary outputs behind it.

    Args:
        head: all fields but `outputs`.
        vectors: of each output name, [n, size], and whether it is to be binary.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, matrix, binary in vectors:
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(matrix.shape)}
        if binary:
            blobs.append(np.ascontiguousarray(matrix, "<f4").tobytes())
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = np.ascontiguousarray(matrix, np.float32).ravel()
        outputs.append(output)
    text = orjson.dumps(head | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Response(text, media_type="application/json")
    headers = {HEADER: str(len(text))}
    return Response(b"".join([text, *blobs]), headers=headers, media_type="application/octet-stream")


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ServiceError("invalid_request", f"parameter {name}: expected true or false.")
    return value


def _refuse_foreign(parameters: dict[str, Any], where: str) -> None:
    for name in _FOREIGN:
        if parameters.get(name):
            raise ServiceError(
                "invalid_request", f"{where} has parameter {name}, an extension that is not served here."
            )


def _blob(given: InputTensor, rest: bytes) -> bytes | None:
    """The bytes of the one input, or None where it has `data`."""
    size = given.parameters.get("binary_data_size")
    if (size is None) == (given.data is None):
        raise ServiceError("invalid_request", f"input {given.name!r}: give either data or binary_data_size.")
    if size is None:
        if rest:
            raise ServiceError("invalid_request", f"{len(rest)} bytes behind the JSON belong to no input.")
        return None
    if type(size) is not int or size != len(rest):
        raise ServiceError(
            "invalid_request", f"input {given.name!r}: binary_data_size is not the {len(rest)} bytes behind the JSON."
        )
    return rest


def _pixels(given: InputTensor, blob: bytes | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if blob is None:
        values = np.array(_flattened(given.data, shape, given.name), np.float64)
        if dtype == np.uint8 and not ((values >= 0) & (values <= 255) & (values % 1 == 0)).all():
            detail = f"input {given.name!r}: a value is no whole number from 0 to 255."
            raise ServiceError("invalid_request", detail)
        with np.errstate(over="ignore"):
            pixels = values.astype(dtype).reshape(shape)
    else:
        wanted = math.prod(shape) * dtype.itemsize
        if len(blob) != wanted:
            raise ServiceError(
                "invalid_request", f"input {given.name!r} has {len(blob)} bytes; its shape has {wanted}."
            )
        pixels = np.frombuffer(blob, dtype.newbyteorder("<")).reshape(shape)
    return pixels


def _require_photos(pixels: NDArray[Any], spec: PixelSpec, name: str) -> None:
    """Raises ServiceError unless float pixels [n, 3, height, width] are finite and about what photos give.

    Some programs resize floats by cubic curves, which overshoot a little: a quarter of the range is left for that.
    Beyond it a vector may be as large as it likes, or not finite.
    """
    low, high = (
        np.array([(end - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]) for end in spec.value_range
    )
    spare = (high - low) / 4
    least, most = (low - spare)[:, None, None], (high + spare)[:, None, None]
    if not ((pixels >= least) & (pixels <= most)).all():
        bounds = f"{low.min():.3g} to {high.max():.3g}"
        detail = f"input {name!r}: a value is not finite or far from those of photos, which are {bounds} in this model."
        raise ServiceError("invalid_request", detail)


def _flattened(data: Any, shape: Sequence[int], name: str) -> list[Any]:
    """JSON data, flat or nested as `shape`, as a flat list of numbers. Raises ServiceError."""
    wrong = ServiceError("invalid_request", f"input {name!r}: data are not {math.prod(shape)} numbers of that shape.")
    values = data if isinstance(data, list) else []
    if len(values) != math.prod(shape):
        for inner in shape[1:]:
            if not all(isinstance(part, list) and len(part) == inner for part in values):
                raise wrong
            values = list(chain.from_iterable(values))
    # numpy would take true for 1 and "1" for 1.0.
    if len(values) != math.prod(shape) or not set(map(type, values)) <= {int, float}:
        raise wrong
    return values


def _files(given: InputTensor, blob: bytes | None, n: int, settings: Settings) -> list[bytes | Target]:
    if blob is None:
        texts = given.data
        if isinstance(texts, list) and texts and all(isinstance(row, list) for row in texts):  # [n, 1]
            texts = list(chain.from_iterable(texts))
        if not isinstance(texts, list) or len(texts) != n or not all(isinstance(text, str) for text in texts):
            raise ServiceError("invalid_request", f"input {given.name!r}: data are not {n} texts.")
        return intake.decode_images([ImageItem(image=text) for text in texts], settings)
    files: list[bytes | Target] = []
    at = 0
    while at + 4 <= len(blob) and len(files) < n:
        (size,) = struct.unpack_from("<I", blob, at)
        files.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(blob) or len(files) != n:
        detail = f"input {given.name!r}: the bytes are not {n} elements, each behind its length in 4 bytes."
        raise ServiceError("invalid_request", detail)
    return files
