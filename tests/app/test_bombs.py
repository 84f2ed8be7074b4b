"""Small files that would unpack into far more than the limits: refused at the door, by no decoder of pixels."""

import base64
import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
FLAT: dict[str, dict[str, Any]] = {
    "PNG": {}, "JPEG": {}, "JPEG progressive": {"progressive": True}, "WEBP": {"method": 0},
    "WEBP lossless": {"lossless": True, "method": 0}, "GIF": {}, "BMP": {},
    "TIFF deflate": {"compression": "tiff_deflate"},
    "TIFF group4": {"compression": "group4"}, "TIFF LZW": {"compression": "tiff_lzw"},
    "TIFF tiles": {"compression": "tiff_deflate", "tiffinfo": {322: 1024, 323: 1024}},
    "TIFF one strip": {"compression": "tiff_deflate", "tiffinfo": {278: 16_000}},
    "TIFF pages": {"compression": "tiff_deflate", "save_all": True, "frames": 50},
    "GIF moving": {"save_all": True, "frames": 50}, "WEBP moving": {"save_all": True, "frames": 10, "method": 0},
}  # fmt: skip


def bomb(name: str, side: int = 400) -> bytes:
    """A real, whole file of one colour, which the tests hold against a limit of fewer pixels."""
    options = dict(FLAT[name])
    if "tiffinfo" in options:
        options["tiffinfo"] = {tag: min(value, side // 16 * 16) for tag, value in options["tiffinfo"].items()}
    mode = "1" if name in ("TIFF group4", "BMP") else "L" if name.startswith(("PNG", "GIF", "TIFF")) else "RGB"
    image = Image.new(mode, (side, side))
    if frames := options.pop("frames", 0):
        options["append_images"] = [Image.new(mode, (side, side), n % 2 * 255) for n in range(1, frames)]
    return encoded(image, name.split()[0], **options)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the decoders whose pixels were asked for."""
    called: list[str] = []
    kinds: list[Any] = [ImageFile.ImageFile, GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile]
    for kind in [*kinds, WebPImagePlugin.WebPImageFile, JpegImagePlugin.JpegImageFile]:

        def load(self: Image.Image, original: Any = kind.load) -> Any:
            called.append(type(self).__name__)
            return original(self)

        monkeypatch.setattr(kind, "load", load)
    return called


def every_way(client: TestClient, data: bytes) -> list[Any]:
    """The replies to one image sent raw, in JSON, in a form, and under the two other protocols that take files."""
    text = base64.b64encode(data).decode()
    return [
        client.post("/embed", content=data, headers={"Content-Type": "image/png"}),
        client.post("/embed", json={"images": [{"image": text}]}),
        client.post("/similarity", files={"images": ("a", data)}),
        client.post("/v1/embeddings", json={"model": "toy", "input": [f"data:image/png;base64,{text}"]}),
    ]


@pytest.mark.parametrize("name", FLAT)
def test_a_bomb_of_each_format_is_refused_on_every_path_and_nothing_of_it_is_decoded(
    serve: Serve, name: str, decodes: list[str]
) -> None:
    data = bomb(name)
    client = serve(max_image_pixels=400 * 400 - 1)
    decodes.clear()  # starting has decoded the golden images
    for reply in every_way(client, data):
        assert reply.status_code == 413, reply.text
        assert "too_many_pixels" in reply.text
    assert decodes == []
    client = serve()
    decodes.clear()
    assert client.post("/embed", content=data, headers={"Content-Type": "image/png"}).status_code == 200
    assert decodes != []  # it is a good file, and the watch works


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def directory(tags: int, size: int) -> bytes:
    """A TIFF whose tags all point to the same bytes; each of them is a value of `size` bytes."""
    start = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1000 + n, 7, size, start) for n in range(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", tags) + entries + bytes(4) + bytes(size)


def hoarding() -> dict[str, bytes]:
    """Files whose metadata, not pixels, would grow: by a thousand, if each were unpacked or copied."""
    block, png, jpeg = directory(1000, 2**19), encoded(photo(0)), encoded(photo(0), "JPEG")
    pieces = [b"Exif\0\0" + block[at : at + 60_000] for at in range(0, len(block), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20), 9))
    return {
        "TIFF directory": block,
        "EXIF of a PNG": png[:33] + chunk(b"eXIf", block) + png[33:],
        "EXIF of a JPEG": jpeg[:2] + segments + jpeg[2:],
        "texts of a PNG": png[:33] + text * 900 + png[33:],
    }


@pytest.mark.parametrize("name", hoarding())
@pytest.mark.filterwarnings("ignore")  # as in production, where a decoder's warning is no error
def test_metadata_that_would_grow_a_thousandfold_does_not(client: TestClient, name: str) -> None:
    data = hoarding()[name]
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reply = client.post("/embed", content=data, headers={"Content-Type": "image/png"})
        grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reply.status_code in (200, 400, 413, 415, 422), reply.text
    assert grown < 100 * 2**20


def test_a_moving_picture_of_many_frames_costs_one(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[int] = []
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", _noting(GifImagePlugin.GifImageFile._seek, sought))
    frames = [Image.new("L", (64, 64), n) for n in range(200)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert client.post("/embed", content=stream.getvalue(), headers={"Content-Type": "image/gif"}).status_code == 200
    assert set(sought) == {0}


def _noting(original: Any, sought: list[int]) -> Any:
    def seek(self: Any, frame: int, *more: Any) -> Any:
        sought.append(frame)
        return original(self, frame, *more)

    return seek
