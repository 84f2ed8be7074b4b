"""More than a thousand malformed inputs: 4xx, never 5xx, and the next good request is exactly right.

Each group of cases yields what to send and whether it is clearly malformed (True: it must be 4xx)
or only odd (False: 200 or 4xx, never 5xx).
"""

import base64
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.errors import TABLE, Problem
from contract.bundle import read_bundle
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
PATHS = ("/embed", "/odd-one-out", "/similarity")
VECTOR_PATHS = ("/odd-one-out", "/similarity")
FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
)


class Case(NamedTuple):
    label: str
    path: str
    type_: str
    content: bytes
    malformed: bool
    query: str = ""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def form(*files: bytes, name: str = "images", fields: dict[bytes, bytes] | None = None) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
    parts = [head + data for data in files]
    for key, value in (fields or {}).items():
        parts.append(b'--b\r\nContent-Disposition: form-data; name="' + key + b'"\r\n\r\n' + value)
    return b"\r\n".join([*parts, b"--b--\r\n"])


GOOD = encoded(photo(0))
GOOD_ITEM = {"image": b64(GOOD)}
THREE = [{"image": b64(encoded(photo(seed)))} for seed in range(3)]
ROWS = [[1.0, 2, 3, 4, 5], [0, 1, 0, 1, 0], [9, 8, 7, 6, 5]]


def every_way(label: str, image: bytes, malformed: bool) -> Iterator[Case]:
    """One bad image through each path that takes images, each time in another way."""
    yield Case(f"{label} raw", "/embed", "image/png", image, malformed)
    items = [GOOD_ITEM, GOOD_ITEM, {"image": b64(image)}]
    yield Case(f"{label} json", "/odd-one-out", JSON, json.dumps({"images": items}).encode(), malformed)
    yield Case(f"{label} form", "/similarity", FORM, form(GOOD, image), malformed)


def truncated() -> Iterator[Case]:
    # Cut anywhere, these files lack pixels: what comes last in each is pixel data (or, in a TIFF, its directory).
    for format_, options in FORMATS:
        whole = encoded(photo(1, (64, 48)), format_, **options)
        for tenth in range(10):
            yield from every_way(f"{format_} {options} {tenth}/10", whole[: len(whole) * tenth // 10], True)


def flipped() -> Iterator[Case]:
    draw = random.Random(0)
    for format_, options in FORMATS:
        whole = encoded(photo(2, (64, 48)), format_, **options)
        for _ in range(25):
            broken = bytearray(whole)
            for _ in range(draw.choice([1, 1, 2, 8])):
                broken[draw.randrange(64)] ^= 1 << draw.randrange(8)
            yield Case(f"{format_} flipped", "/embed", "image/png", bytes(broken), False)


def png(width: int, height: int, data: bytes, depth: int = 1, *extra: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def declaring(side: int) -> Iterator[tuple[str, bytes]]:
    """Files of every format whose headers declare side x side pixels that are not there."""
    yield "PNG", png(side, side, zlib.compress(b""))
    bmp = bytearray(encoded(photo(0), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    yield "BMP", bytes(bmp)
    gif = bytearray(encoded(photo(0), "GIF"))
    gif[6:10] = struct.pack("<HH", min(side, 65535), min(side, 65535))
    frame = gif.index(b"\x2c\0\0\0\0")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", min(side, 65535), min(side, 65535))
    yield "GIF", bytes(gif)
    less_one = min(max(side, 1), 16_384) - 1  # WebP cannot say 0, nor more than 14 bits
    bits = struct.pack("<I", less_one | less_one << 14)
    webp = b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + bits + bytes(5)
    yield "WEBP", b"RIFF" + struct.pack("<I", len(webp)) + webp
    tiff = bytearray(encoded(photo(0), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<H", tag), 8)
        tiff[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    yield "TIFF", bytes(tiff)
    jpeg = bytearray(encoded(photo(0), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", min(side, 65535), min(side, 65535))
    yield "JPEG", bytes(jpeg)


def bombs() -> Iterator[Case]:
    yield from every_way("PNG of 400 million zeros", png(20_000, 20_000, zlib.compress(bytes(20_000 * 2501), 9)), True)
    for side in (0, 15_000, 16_385, 20_000, 65_535, 2**31 - 1):
        for format_, image in declaring(side):
            yield from every_way(f"{format_} declares {side}", image, True)
    text = b"k\0\0" + zlib.compress(bytes(50_000_000), 9)
    row = zlib.compress(bytes(3 * 16))
    yield from every_way("PNG with 50 MB of text", png(16, 16, row, 1, (b"zTXt", text)), True)
    colours = zlib.compress(bytes(60_000_000), 9)
    yield from every_way("PNG with 60 MB of colour profile", png(16, 16, row, 1, (b"iCCP", b"p\0\0" + colours)), False)
    for size in ((1, 1), (15, 15), (15, 400), (400, 15), (16_385, 16), (16, 16_385)):
        for format_ in ("PNG", "BMP", "TIFF"):
            yield from every_way(f"{format_} of {size}", encoded(Image.new("1", size), format_), True)


def not_images() -> Iterator[Case]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>'
    headers = [b"%PDF-1.7\n", svg, b"II*\0" + b"\xff" * 40, b"MM\0*" + bytes(40), b"GIF89a", b"BM", b"\xff\xd8\xff"]
    headers += [
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
        b"\0\0\0\x1cftypavif",
        b"P6 99 99 255\n",
        b"8BPS\0\1",
        bytes(99),
    ]
    whole = encoded(photo(0))
    for i, data in enumerate([b"", b"\0", *headers, whole[1:], b" " + whole, whole[::-1], b64(whole).encode()]):
        yield from every_way(f"no image {i}", data, True)
    for format_ in ("PPM", "TGA", "ICO", "PCX", "JPEG2000", "SGI"):
        stream = io.BytesIO()
        photo(0, (32, 32)).save(stream, format_)
        yield from every_way(format_, stream.getvalue(), True)
    for mode in ("I", "F"):
        yield from every_way(f"TIFF of mode {mode}", encoded(Image.new(mode, (32, 32)), "TIFF"), True)


ROW = "[1,2,3,4,5]"
NO_TEXT = '1 | 1.5 | true | [] | {} | ["x"]'
NO_LIST = '1 | true | "x" | {} | []'
NO_SHARE = '"x" | "" | -0.1 | 1.1 | 1e308 | -99999999999999999999 | [] | {} | "nan" | "inf" | "-inf" | [1] | {"a":1}'
# JSON values that each field must refuse, apart by bars; @ stands for a good image, ROW for a good vector.
FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "model": (PATHS, rf'{NO_TEXT} | "other" | "" | "\u0000" | "toy\u0000" | "TOY"'),
    "space": (PATHS, f'{NO_TEXT} | null | "" | "Aligned" | "both"'),
    "expect_fingerprint": (PATHS, rf'{NO_TEXT} | "" | "00000000000000000000000000000000" | "\u0000"'),
    "unknown": (PATHS, '1 | null | "x" | [] | {}'),
    "": (PATHS, "1 | null"),
    "encoding": (("/embed", "/similarity"), f'{NO_TEXT} | null | "" | "hex" | "FLOAT"'),
    "normalize": (("/embed",), 'null | 2 | -1 | 1.5 | "maybe" | "" | [] | {}'),
    "images": (
        PATHS,
        f'{NO_LIST} | [1] | [null] | ["x"] | [[]] | [{{}}] | [{{"image":1}}] | [{{"image":null}}] | [{{"image":[@]}}]'
        ' | [{"Image":"AAAA"}] | [{"image":"AAAA","x":1}] | [@,1] | [@,null] | [[@]] | {"0":@} | @',
    ),
    "vectors": (
        VECTOR_PATHS,
        f'{NO_LIST} | [1] | [null] | ["x"] | [[]] | [[1]] | [[1,2,3,4]] | [[1,2,3,4,5,6]] | [{{}}] | [[[1,2,3,4,5]]]'
        ' | [["1","2","3","4","5"]] | [[null,null,null,null,null]] | [[true,true,true,true,true]] | [[1,2,3,4,[]]]'
        ' | [[1,2,3,4,{}]] | [[1,2,3,4,1e39]] | [ROW,1] | [ROW,null] | [[ROW]] | {"0":ROW} | [ROW,[-1e308,0,0,0,0]]'
        " | [ROW,[18446744073709551616]] | ROW",
    ),
    "triplets": (
        ("/odd-one-out",),
        f'{NO_LIST} | [1] | [null] | ["012"] | [[]] | [[0,1]] | [[0,1,2,3]] | [[0,1,3]] | [[-1,0,1]] | [[0,0,1]]'
        ' | [[0,1,1.5]] | [[0,1,2.0]] | [[0,1,"2"]] | [[0,1,true]] | [[0,1,null]] | [[0,1,[]]] | [[[0,1,2]]]'
        ' | [[0,1,2147483648]] | [[0,1,9223372036854775808]] | [[0,1,99999999999999999999]] | [{"a":0}] | "[[0,1,2]]"',
    ),
    "min_margin": (("/odd-one-out",), NO_SHARE),
    "max_entropy": (("/odd-one-out",), NO_SHARE),
    "kernel": (("/similarity",), f'{NO_TEXT} | "" | "DOT" | "euclid"'),
    "queries": (
        ("/similarity",),
        f'{NO_LIST} | [@] | {{"images":[]}} | {{"vectors":[]}} | {{"images":[@],"vectors":[ROW]}} | null'
        ' | {"queries":1} | {"vectors":[ROW],"kernel":"dot"} | {"vectors":[[1]]}'
        ' | {"images":[{"image":"x"}]} | {"images":[@,ROW]}',
    ),
}


def wrong_values() -> Iterator[Case]:
    for field, (paths, values) in FIELDS.items():
        for path, value in itertools.product(paths, values.split(" | ")):
            good: dict[str, Any] = {"images": THREE} if path == "/embed" or field == "images" else {"vectors": ROWS}
            good = {"candidates": good} if field == "queries" else good
            good.pop(field, None)
            rest = json.dumps(good)[1:-1] + ("," if good else "")
            bad = value.replace("@", json.dumps(GOOD_ITEM)).replace("ROW", ROW)
            yield Case(f"{field}={value[:40]}", path, JSON, f'{{{rest} "{field}": {bad}}}'.encode(), True)


LITERALS = (
    "NaN nan Infinity -Infinity inf 1e400 -1e400 1e999999999 0x10 1_000 01 .5 1. +1 --1 1e '1' True /**/1 undefined"
)


def wrong_literals() -> Iterator[Case]:
    places = [
        ("/odd-one-out", '{"vectors": [[1,2,3,4,%s],[1,2,3,4,5],[1,2,3,4,5]]}'),
        ("/odd-one-out", '{"vectors": [[1,2,3,4,5],[1,2,3,4,6],[1,2,3,4,7]], "triplets": [[0, 1, %s]]}'),
        ("/odd-one-out", '{"vectors": [[1,2,3,4,5],[1,2,3,4,6],[1,2,3,4,7]], "max_entropy": %s}'),
        ("/similarity", '{"vectors": [[%s,2,3,4,5]]}'),
        ("/similarity", '{"candidates": {"vectors": [[1,2,3,4,5]]}, "queries": {"vectors": [[1,2,%s,4,5]]}}'),
        ("/embed", '{"normalize": %s}'),
    ]
    literals = ["", "1" * 400, "-" + "9" * 5000, "1" * 200_000, *LITERALS.split(" ")]
    for literal, (path, text) in itertools.product(literals, places):
        yield Case(f"literal {literal[:12]}", path, JSON, (text % literal).encode(), True)


BROKEN = '{,} | {"a":} | {"a" 1} | {1:2} | {"a":1,} | null | 1 | "x" | [] | [{}] | {} | true'
NO_UTF8 = (
    b"\xff\xfe",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2(\xa1",
    rb"\ud800",
    rb"\udfff\ud800",
)


def broken_json() -> Iterator[Case]:
    whole = json.dumps({"vectors": ROWS, "model": "toy"})
    cut = [whole[: len(whole) * tenth // 10] for tenth in range(10)]
    near = [
        whole + "x",
        whole * 2,
        "\ufeff" + whole,
        whole.replace('"', "'"),
        "\0" + whole,
        whole.replace("toy", "t\0oy"),
    ]
    opened, nested = "[" * 100_000, "[" * 100_000 + "]" * 100_000
    deep = [opened, nested, '{"a":' * 100_000, f'{{"vectors":{nested}}}', f'{{"images":[{{"image":{nested}}}]}}']
    hollow = ['{"vectors":[' + "[" * depth + "1" + "]" * depth + "]}" for depth in (2, 60, 70, 1000)]
    for text, path in itertools.product([*BROKEN.split(" | "), *cut, *near, *deep, *hollow], PATHS):
        yield Case(f"JSON {text[:20]!r}", path, JSON, text.encode(), True)
    for raw, path, field in itertools.product(NO_UTF8, PATHS, (b"model", b"space", b"expect_fingerprint")):
        yield Case(f"UTF-8 {raw!r} in {field!r}", path, JSON, b'{"' + field + b'": "' + raw + b'"}', True)
        yield Case(f"UTF-8 {raw!r} as a key", path, JSON, b'{"' + raw + b'": 1}', True)
    for encoding in ("utf-16", "utf-32"):
        yield Case(encoding, "/similarity", JSON, whole.encode(encoding), True)
    for path, twice in itertools.product(
        VECTOR_PATHS, ('"model":"x","model":"toy"', '"space":"base","space":"aligned"')
    ):
        yield Case("key twice", path, JSON, f'{{"vectors": {ROWS}, {twice}, "vectors": {ROWS}}}'.encode(), False)


NO_BASE64 = "= a ab abc ab=c a=== AAAA= AA=A é AA-_ %%%% AAA\u200b \0 http://x/y.png file:///etc/passwd ftp://x data:"
NO_DATA_URI = "data:;base64 data:a/b,xx data:a/b;base64 data:a/b;base64,% data:a/b;base64, data:;base64;x,AA"


def wrong_base64() -> Iterator[Case]:
    good = b64(GOOD)
    texts = [
        *NO_BASE64.split(" "),
        *NO_DATA_URI.split(" "),
        good[:-1],
        good + "=",
        good[1:],
        "\ufeff" + good,
        good * 2,
        good + "!",
    ]
    for text, path in itertools.product(texts, PATHS):
        body = json.dumps({"images": [GOOD_ITEM, GOOD_ITEM, {"image": text}]}).encode()
        yield Case(f"base64 {text[:24]!r}", path, JSON, body, True)
    for text, path in itertools.product(texts, VECTOR_PATHS):
        yield Case(f"vector {text[:24]!r}", path, JSON, json.dumps({"vectors": [*ROWS[:2], text]}).encode(), True)


NO_BOUNDARY = (
    "",
    ";;;",
    '; boundary="',
    "; boundary=",
    "; boundary=c",
    "; boundary=B",
    "; boundary=\xe4",
    "; boundary*0=b",
)
CHARSETS = "utf-16 utf-7 idna punycode undefined hex rot13 unicode_escape raw_unicode_escape nonsense"
NO_TRIPLETS = (
    '| \0 | [ | [[0,1,2] | NaN | [[0,1,NaN]] | {} | "x" | 1 | [] | [[0,1,9]] | [[0,1,2.0]] | [[0,1,1]] | ["\\ud800"]'
)


def wrong_forms() -> Iterator[Case]:
    good = form(GOOD, GOOD, GOOD)
    for parameter, path in itertools.product([*NO_BOUNDARY, "; boundary=" + "b" * 300], PATHS):
        yield Case(f"boundary {parameter[:20]!r}", path, "multipart/form-data" + parameter, good, True)
    for tenth, path in itertools.product(range(10), PATHS):
        yield Case(f"form {tenth}/10", path, FORM, good[: len(good) * tenth // 10], True)
    one, many = form(GOOD), form(fields={b"f%d" % i: b"" for i in range(40)})
    bodies = [form(), many, form(b"", b"", b""), form(*[GOOD] * 66), form(*[GOOD] * 70, name="queries"), b"\0" * 500]
    bodies += [form(GOOD, name=name) for name in ("photos", "", "images[]", "IMAGES", "\ud7ff")]
    bodies += [one.replace(b"\r\n\r\n", b"\r\n", 1), one.replace(b"form-data; ", b""), one.replace(b"name=", b"mane=")]
    bodies += [
        one.replace(b"images", b"\xff\xfe"),
        one.replace(b"--b", b"--c"),
        one[1:],
        one[:5] + b"x" * 70_000 + one[5:],
    ]
    bodies += [one[:5] + b"A: b\r\n" * 20_000 + one[5:], one.replace(b"\r\n", b"\n"), b"--c\r\n" * 999]
    for i, (body, path) in enumerate(itertools.product(bodies, PATHS)):
        yield Case(f"form {i} {body[:30]!r}", path, FORM, body, True)
    values = [b"\0", b"toy\0", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 5000, b"y" * 2_000_000, b"{}", b"other"]
    names = [b"model", b"space", b"expect_fingerprint", b"mod\0el", b"\xff", b"images", b"constructor"]
    for value, name, path in itertools.product(values, names, PATHS):
        yield Case(f"field {name!r}={value[:9]!r}", path, FORM, form(GOOD, GOOD, GOOD, fields={name: value}), True)
    for charset, name in itertools.product(
        CHARSETS.split(" "), (rb"\ud800", b"+2AA-", b"xn--a", b"\xff", rb"\N{DASH}")
    ):
        body = form(GOOD, GOOD, GOOD, fields={name: b"\\ud800\xff"})
        yield Case(f"charset {charset} {name!r}", "/odd-one-out", f"{FORM}; charset={charset}", body, True)
    for text in [*NO_TRIPLETS.split(" | "), "[" * 100_000, "[[0,1,2]]" * 2, "9" * 5000]:
        body = form(GOOD, GOOD, GOOD, fields={b"triplets": text.strip("|").encode()})
        yield Case(f"triplets {text[:12]!r}", "/odd-one-out", FORM, body, True)


NO_TYPE = (
    "",
    "text/plain",
    "x",
    ";",
    "application/json2",
    "application/x-www-form-urlencoded",
    "multipart/mixed",
    "\xff",
)
NO_QUERY = (
    "space=x space= normalize=maybe encoding=hex model=x images=x unknown=1 %00=1 space=%FF expect_fingerprint=%00"
)


def noise() -> Iterator[Case]:
    draw = random.Random(1)
    for path in PATHS:
        for type_ in (JSON, FORM, "application/x+json", *(["image/png", "image/x"] if path == "/embed" else [])):
            yield Case(f"empty {type_}", path, type_, b"", True)
            for _ in range(8):
                yield Case(f"noise {type_}", path, type_, draw.randbytes(draw.randrange(1, 3000)), True)
        for type_ in NO_TYPE:
            yield Case(f"type {type_!r}", path, type_, b"{}", True)
    for query in [*NO_QUERY.split(" "), "&".join(f"a{i}=1" for i in range(2000))]:
        yield Case(f"query {query[:20]}", "/embed", "image/png", GOOD, True, query)
        yield Case(
            f"query {query[:20]} of JSON", "/similarity", JSON, json.dumps({"vectors": ROWS}).encode(), True, query
        )


GROUPS = (
    truncated,
    flipped,
    bombs,
    not_images,
    wrong_values,
    wrong_literals,
    broken_json,
    wrong_base64,
    wrong_forms,
    noise,
)


@pytest.mark.filterwarnings("ignore")  # as in production, where a decoder's warning is no error
def test_a_thousand_malformed_inputs_are_4xx_and_the_next_request_is_exactly_right(
    serve: Serve, toy_bundle: Path
) -> None:
    client, golden = serve(raise_bugs=False), read_bundle(toy_bundle).golden
    right, raw = (
        golden.vectors["aligned"][0].tobytes(),
        {"Content-Type": "image/png", "Accept": "application/octet-stream"},
    )
    count, wrong = 0, []
    for case in itertools.chain.from_iterable(group() for group in GROUPS):
        headers = {b"Content-Type": case.type_.encode("latin-1")}
        url = case.path + ("?" + case.query if case.query else "")
        reply = client.post(url, content=case.content, headers=headers)
        canary = client.post("/embed", content=golden.images[0], headers=raw)
        if reply.status_code != 200:
            problem = Problem.model_validate_json(reply.content)
            fits = 400 <= reply.status_code < 500 and TABLE[problem.code].status == problem.status == reply.status_code
        else:
            fits = not case.malformed
        if not fits or canary.content != right:
            wrong.append((case.label, case.path, reply.status_code, canary.status_code))
        count += 1
    assert wrong == [], "\n".join(map(str, wrong))
    assert count >= 1000
    assert client.get("/health/ready").status_code == 200
    assert "alignet_admitted_images 0.0" in client.get("/metrics").text.splitlines()
