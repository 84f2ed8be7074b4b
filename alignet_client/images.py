"""What may be given as an image, and how it travels: the bytes of a file, or the URL of one."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignet_client.errors import BadImage, ServiceProblem, TooLarge

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Image: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.uint8] | PillowImage"
"""A path, a URL (str with http:// or https://), the bytes of a file, a PIL image, or uint8 RGB [height, width, 3]."""

BATCH_BYTES = 8 * 2**20
"""Bytes of images after which a batch is sent: a slow line must bring them within the service's time for a body."""

_PART_BYTES = 256
"""What a multipart or JSON body needs around one image."""


@dataclass(frozen=True)
class Payload:
    """One image as it is sent; either `data` or `url`.

    Attributes:
        label: for messages: the path or URL, or what kind of value it was.
    """

    label: str
    data: bytes = b""
    url: str = ""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, as the model card states them."""

    images: int
    body_bytes: int
    image_bytes: int


@dataclass(frozen=True)
class Batch:
    """Images of one request.

    Attributes:
        indices: their positions in what the caller gave.
        payloads: the images, one an index.
        faults: of images before or between them that were not sent.
    """

    indices: list[int]
    payloads: list[Payload]
    faults: list[ServiceProblem]


def payload(image: Image, index: int) -> Payload:
    """One image, read or encoded. Arrays and PIL images travel as PNG, so nothing of them is lost.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is nothing that can be an image.
    """
    if isinstance(image, bytes):
        return Payload(f"{len(image)} bytes", image)
    if isinstance(image, str) and image[:8].lower().startswith(("http://", "https://")):
        return Payload(image, url=image)
    if isinstance(image, str | os.PathLike):
        return Payload(os.fspath(image), Path(image).read_bytes())
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shape = f"{image.dtype} {list(image.shape)}"
            raise TypeError(f"image {index} is an array of {shape}; expected uint8 [height, width, 3], RGB")
        return Payload(f"array {list(image.shape)}", _png(_pillow().fromarray(image)))
    if hasattr(image, "save") and hasattr(image, "getexif"):
        return Payload(f"{image.mode} image {list(image.size)}", _png(image))
    kind = type(image).__name__
    raise TypeError(f"image {index} is a {kind}; expected a path, a URL, bytes, a PIL image or a uint8 array")


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("arrays are sent as PNG, which needs Pillow; run: pip install pillow") from error
    return PIL.Image


def _png(image: "PillowImage") -> bytes:
    stream = io.BytesIO()
    if image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        # The orientation tag goes along, so an opened photo is embedded as its file would be.
        image.save(stream, "PNG", compress_level=1, exif=image.info.get("exif", b""))
    else:  # CMYK and the like, which PNG has not
        image.save(stream, "TIFF")
    return stream.getvalue()


def listed(images: Iterable[Image]) -> Iterable[Image]:
    """`images`, after a look at whether it is several. Raises TypeError for a single one."""
    if isinstance(images, str | bytes | os.PathLike) or hasattr(images, "getexif"):
        raise TypeError("expected several images; put the one in a list")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise TypeError(f"expected several images: a list, or uint8 [n, height, width, 3], not {list(images.shape)}")
    return images


def read_all(images: Iterable[Image]) -> list[Payload]:
    """Every image of one request. Raises as `payload`, and ValueError if there is none."""
    payloads = [payload(image, index) for index, image in enumerate(listed(images))]
    if not payloads:
        raise ValueError("no images were given")
    return payloads


def batches(images: Iterable[Image], size: int, limits: Limits) -> Iterator[Batch]:
    """Images in groups of at most `size` that the service takes in one request; read only when their turn comes.

    A file that cannot be read, or is larger than the service takes, is a fault of its batch.

    Raises:
        TypeError: something is no image at all.
    """
    size = min(size, limits.images)
    batch, held = Batch([], [], []), 0
    for index, image in enumerate(listed(images)):
        one = _checked(image, index, limits)
        if isinstance(one, ServiceProblem):
            batch.faults.append(one)
            continue
        # Base64, in case that a URL makes the request JSON, takes a third more.
        cost = len(one.data) * 4 // 3 + len(one.url) + _PART_BYTES
        if batch.payloads and (len(batch.payloads) == size or held + cost > min(BATCH_BYTES, limits.body_bytes - 4096)):
            yield batch
            batch, held = Batch([], [], []), 0
        batch.indices.append(index)
        batch.payloads.append(one)
        held += cost
    if batch.payloads or batch.faults:
        yield batch


def _checked(image: Image, index: int, limits: Limits) -> Payload | ServiceProblem:
    try:
        one = payload(image, index)
    except OSError as error:
        label = str(image) if isinstance(image, str | os.PathLike) else type(image).__name__
        reason = error.strerror or str(error)
        fault = BadImage(f"image {index}: {reason}", status=0, code="unreadable_file", index=index, image=label)
        fault.__cause__ = error
        return fault
    if len(one.data) > limits.image_bytes:
        detail = f"image {index} has {len(one.data)} bytes; the service takes at most {limits.image_bytes}"
        bound = limits.image_bytes
        return TooLarge(detail, status=413, code="image_too_large", index=index, image=one.label, limit=bound)
    return one
