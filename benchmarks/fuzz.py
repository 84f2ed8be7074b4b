"""Broken photos through the whole service: what it answers, how long it takes, and what it costs in memory.

    python -m benchmarks.fuzz --images 10000
    python -m benchmarks.fuzz --images 1000 --seed 7 --photos FOLDER --bundle FOLDER
    python -m benchmarks.fuzz --bombs      how soon 25 million pixels and more are refused, in each format

Real photos are written in every format that the service opens, then bits are flipped, pieces cut, doubled,
moved from one file to another, numbers exchanged. Each file is a request of its own to the app in this process,
so it goes through the real intake, decode threads and model. After each hundred the bundle's first golden image
is asked for; its vector must be the golden one, within the bundle's tolerance, and always the same bytes. The
program ends with status 1 if a reply is 5xx, a photo takes longer than --seconds, or that vector changes.
Everything is drawn from --seed, so a fault can be seen again: it is named by its number, format and way.
"""

import argparse
import io
import itertools
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from tqdm import tqdm

from app.main import create_app
from app.settings import STARTER, Settings
from contract.bundle import Golden, read_bundle
from contract.manifest import GoldenTolerance

PHOTOS = Path(__file__).parents[1] / "docs" / "photos"
BATCH = 100
"""Mutated photos between two looks at the golden image."""

FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "JPEG with EXIF": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    "PNG": {},
    "PNG palette": {"mode": "P"},
    "PNG alpha": {"mode": "RGBA"},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "WEBP moving": {"save_all": True, "frames": 3},
    "GIF": {},
    "GIF moving": {"save_all": True, "frames": 3},
    "BMP": {},
    "TIFF": {},
    "TIFF LZW": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_deflate"},
    "TIFF JPEG": {"compression": "jpeg"},
    "TIFF tiles": {"tile": (64, 64)},
    "TIFF pages": {"save_all": True, "frames": 3},
}
"""Name to how Pillow writes it; the first word is the format."""


class Broken(NamedTuple):
    """One mutated file, and how it was made."""

    format: str
    way: str
    data: bytes


def written(photo: Image.Image, name: str) -> bytes:
    """A photo as a file of one of `FORMATS`."""
    options = dict(FORMATS[name])
    photo = photo.convert(options.pop("mode", "1" if photo.mode == "1" else "RGB"))
    if frames := options.pop("frames", 0):
        options["append_images"] = [photo.rotate(90 * turn) for turn in range(1, frames)]
    tiff: Any = {}
    if tile := options.pop("tile", None):
        options["compression"], tiff = "tiff_deflate", {322: tile[0], 323: tile[1]}
    stream = io.BytesIO()
    photo.save(stream, name.split()[0], **options, **({"tiffinfo": tiff} if tiff else {}))
    return stream.getvalue()


def flip(data: bytearray, draw: random.Random, _: bytes) -> None:
    """Some bits, anywhere."""
    for _bit in range(draw.choice([1, 1, 2, 8, 64])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def head(data: bytearray, draw: random.Random, _: bytes) -> None:
    """Some bytes where sizes and kinds are said."""
    for _byte in range(draw.choice([1, 1, 2, 4])):
        data[draw.randrange(min(len(data), 96))] = draw.choice([0, 1, 2, 127, 128, 255, draw.randrange(256)])


def number(data: bytearray, draw: random.Random, _: bytes) -> None:
    """A number of 2 or 4 bytes for one at the edge of what it can say."""
    for _number in range(draw.choice([1, 2, 3])):
        size = draw.choice([2, 4])
        value = draw.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 16_384])
        at = draw.randrange(min(len(data) - size, draw.choice([64, 1024, 10**9])))
        data[at : at + size] = value.to_bytes(size, draw.choice(["little", "big"]))


def cut(data: bytearray, draw: random.Random, _: bytes) -> None:
    """The end is missing."""
    del data[draw.randrange(len(data)) :]


def hole(data: bytearray, draw: random.Random, _: bytes) -> None:
    """A piece is missing."""
    at = draw.randrange(len(data))
    del data[at : at + draw.choice([1, 2, 16, 256, 4096])]


def double(data: bytearray, draw: random.Random, _: bytes) -> None:
    """A piece stands there many times."""
    at, size = draw.randrange(len(data)), draw.choice([4, 64, 1024, 8192])
    data[at:at] = bytes(data[at : at + size]) * draw.choice([1, 2, 50])


def splice(data: bytearray, draw: random.Random, other: bytes) -> None:
    """A piece of another file, in place of a piece of this one."""
    at, start, size = draw.randrange(len(data)), draw.randrange(len(other)), draw.choice([8, 64, 1024, 8192])
    data[at : at + draw.choice([0, size])] = other[start : start + size]


def blank(data: bytearray, draw: random.Random, _: bytes) -> None:
    """A piece of zeros, ones, or noise."""
    at, size = draw.randrange(len(data)), draw.choice([4, 64, 1024])
    data[at : at + size] = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size)])


def sealed(data: bytes) -> bytes:
    """A PNG with a checksum for each chunk as it is now, so that more than the checksum is tried; others unchanged."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data), 8
    while (end := at + 8 + int.from_bytes(data[at : at + 4], "big")) + 4 <= len(data):
        out[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


WAYS = (flip, head, number, cut, hole, double, splice, blank)


def broken(photos: list[Image.Image], seed: int) -> Iterator[Broken]:
    """Mutated files without end: every format in turn, one to three ways each, all drawn from `seed`."""
    draw = random.Random(seed)
    files = {name: [written(photo, name) for photo in photos] for name in FORMATS}
    for name in itertools.cycle(FORMATS):
        data = bytearray(draw.choice(files[name]))
        ways = draw.choices(WAYS, k=draw.choice([1, 1, 2, 3]))
        for way in ways:
            if len(data) > 8:
                other = draw.choice(files[draw.choice([name, *FORMATS])])
                way(data, draw, other)
        done = sealed(bytes(data)) if draw.random() < 0.7 else bytes(data)
        yield Broken(name, "+".join(way.__name__ for way in ways), done)


class Found:
    """What came of it, while it comes.

    Attributes:
        outcomes: replies by "format outcome", where the outcome is `ok` or the code of the problem.
        faults: 5xx replies, late ones, and golden vectors that are not, each with the number of its photo.
        slowest: (seconds, number, format, way) of the slowest reply.
        golden: how often the golden image was asked for.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.slowest: tuple[float, int, str, str] = (0.0, 0, "", "")
        self.golden = 0

    def take(self, number_: int, one: Broken, reply: Any, seconds: float, most: float) -> None:
        """Count one reply."""
        self.slowest = max(self.slowest, (seconds, number_, one.format, one.way))
        outcome = "ok" if reply.status_code == 200 else str(reply.json()["code"])
        self.outcomes[one.format, outcome] += 1
        if reply.status_code >= 500 or seconds > most:
            self.faults.append(f"{number_} {one.format} {one.way}: {reply.status_code} {outcome} after {seconds:.2f} s")


def attack(
    client: TestClient, golden: Golden, allowed: GoldenTolerance, photos: list[Image.Image], **given: Any
) -> Found:
    """Send `images` mutated photos drawn from `seed` to a ready app, each of which may take `seconds`."""
    found, first = Found(), b""
    raw = {"Content-Type": "image/x", "Accept": "application/octet-stream"}
    files = itertools.islice(broken(photos, given["seed"]), given["images"])
    for at, one in enumerate(tqdm(files, total=given["images"], unit="photo", mininterval=2)):
        start = time.perf_counter()
        reply = client.post("/embed", content=one.data, headers=raw)
        found.take(at, one, reply, time.perf_counter() - start, given["seconds"])
        if (at + 1) % BATCH == 0 or at + 1 == given["images"]:
            canary = client.post("/embed", content=golden.images[0], headers=raw).content
            first = first or canary
            found.golden += 1
            if canary != first or not near(canary, golden.vectors["aligned"][0], allowed):
                found.faults.append(f"{at}: the golden image has another vector")
    return found


def near(reply: bytes, right: Any, allowed: GoldenTolerance) -> bool:
    """Whether a vector, as the service sends it, is the golden one within the bundle's tolerance."""
    if len(reply) != 4 * len(right):
        return False
    one, two = np.frombuffer(reply, "<f4").astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(one), np.linalg.norm(two)
    apart = 1 - one @ two / (norms[0] * norms[1])
    return bool(apart <= allowed.one_minus_cosine and abs(norms[0] / norms[1] - 1) <= allowed.relative_norm)


def opened(folder: Path, side: int) -> list[Image.Image]:
    """The photos of a folder, made smaller so that a run is about decoders and not about sizes."""
    photos = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            photo = Image.open(file).convert("RGB")
            photo.thumbnail((side, side))
            photos.append(photo)
    if not photos:
        raise SystemExit(f"{folder} has no photo (.jpg, .jpeg, .png, .webp); name a folder that has with --photos.")
    return photos


def resident() -> float:
    """The most memory this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(found: Found, seconds: float, before: float) -> None:
    """Print the counts and what is worst."""
    outcomes = sorted({outcome for _, outcome in found.outcomes})
    print("| format | " + " | ".join(outcomes) + " |\n|---|" + "---|" * len(outcomes))
    for name in FORMATS:
        print(f"| {name} | " + " | ".join(str(found.outcomes[name, outcome]) for outcome in outcomes) + " |")
    total = [sum(n for (_, one), n in found.outcomes.items() if one == outcome) for outcome in outcomes]
    print("| all | " + " | ".join(map(str, total)) + " |")
    late, at, name, way = found.slowest
    print(f"{sum(total)} photos in {seconds:.0f} s; the slowest took {late:.3f} s (number {at}, {name}, {way})")
    print(f"most memory: {before:.0f} MiB once warm, {resident():.0f} MiB at the end")
    print(f"golden vector asked for {found.golden} times; {len(found.faults)} faults")
    print(*found.faults, sep="\n")


def bombs(client: TestClient) -> None:
    """Print how large a file of one colour is that has more pixels than are allowed, and how soon it is refused."""
    for name in FORMATS:
        plain = name in ("BMP", "TIFF", "TIFF pages")  # not compressed: a bit a pixel, or the body would be too large
        data, seconds = written(Image.new("1" if plain else "RGB", (5008, 5008)), name), []
        for _ in range(9):
            start = time.perf_counter()
            reply = client.post("/embed", content=data, headers={"Content-Type": "image/x"})
            seconds.append(time.perf_counter() - start)
            assert reply.json()["code"] == "too_many_pixels", reply.text
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"| {name} | {len(data)} | {middle * 1000:.1f} ms | {max(seconds) * 1000:.1f} ms |")


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many mutated photos")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of photos to mutate")
    parser.add_argument("--side", type=int, default=256, help="longest side of a photo before it is mutated")
    parser.add_argument("--bundle", type=Path, default=STARTER, help="bundle that is served")
    parser.add_argument("--seconds", type=float, default=5.0, help="a reply that takes longer is a fault")
    parser.add_argument("--bombs", action="store_true", help="time the refusal of too many pixels, and nothing else")
    given = parser.parse_args()
    bundle, photos = read_bundle(given.bundle), opened(given.photos, given.side)
    with TestClient(
        create_app(Settings(bundle=given.bundle, inference_threads=1, access_log=False)), raise_server_exceptions=False
    ) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.05)
        if given.bombs:
            bombs(client)
            return
        for name in FORMATS:  # every decoder is loaded before the memory is taken
            reply = client.post("/embed", content=written(photos[0], name), headers={"Content-Type": "image/x"})
            assert reply.status_code == 200, (name, reply.text)
        before, start = resident(), time.perf_counter()
        found = attack(
            client, bundle.golden, bundle.manifest.golden, photos,
            images=given.images, seed=given.seed, seconds=given.seconds,
        )  # fmt: skip
        report(found, time.perf_counter() - start, before)
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    main()
