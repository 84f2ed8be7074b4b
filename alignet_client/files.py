"""Photos of a folder, and the files that vectors are written to; the columns are those of `alignet-serve bulk`."""

import contextlib
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Names of files that are taken for photos, in either case."""


@dataclass(frozen=True)
class Row:
    """One photo; `path` is relative to its folder, with `/` between names, and `id` follows from the content."""

    id: str
    path: str
    sha256: str
    bytes: int
    mtime_ns: int


def photos(places: Sequence[Path]) -> list[Path]:
    """Files as given, and the photos in folders with all folders inside, in order. Raises FileNotFoundError."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(f for f in place.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        elif place.exists():
            found.append(place)
        else:
            raise FileNotFoundError(f"{place} is not there")
    if not found:
        raise FileNotFoundError(f"no photo in {', '.join(map(str, places))}; looked for {', '.join(sorted(SUFFIXES))}")
    return found


def row(file: Path, name: str, content: bytes) -> Row:
    """What is written of a photo beside its vector."""
    digest = hashlib.sha256(content).hexdigest()
    # Bytes of a name that are no UTF-8 are written out, as JSON and Parquet hold only text.
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Row(content_id(digest), name, digest, len(content), file.stat().st_mtime_ns)


def content_id(sha256: str) -> str:
    """The id of content with this hash (hex), in every index: a UUID, which all engines take."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"sha256:{sha256}"))


def write(out: Path, rows: Sequence[Row], vectors: NDArray[np.float32], space: dict[str, Any]) -> list[Path]:
    """Write rows and their vectors [n, d], each file whole or not at all; the files.

    Args:
        out: `.parquet` is one file; `.npy` has `.jsonl` and `.space.json` beside it.
        rows: one a vector.
        vectors: float32.
        space: whose vectors they are.

    Raises:
        ValueError: another suffix.
        ImportError: parquet without pyarrow.
    """
    if out.suffix == ".parquet":
        _write_parquet(out, rows, vectors, space)
        return [out]
    if out.suffix != ".npy":
        raise ValueError(f"{out}: expected a name that ends with .parquet or .npy")
    lines, about = out.with_suffix(".jsonl"), out.with_suffix(".space.json")
    with whole(about) as stream:
        stream.write((json.dumps(space, indent=2) + "\n").encode())
    with whole(lines) as stream:
        stream.writelines((json.dumps(asdict(one)) + "\n").encode() for one in rows)
    with whole(out) as stream:
        np.save(stream, vectors, allow_pickle=False)
    return [out, lines, about]


def require(out: Path) -> None:
    """Say before the work that `out` cannot be written. Raises ValueError, FileNotFoundError or ImportError."""
    if out.suffix not in (".parquet", ".npy"):
        raise ValueError(f"{out}: expected a name that ends with .parquet or .npy")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    if out.suffix == ".parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet needs pyarrow; run: pip install 'alignet-serve[client]'") from error
    return pyarrow


def _write_parquet(out: Path, rows: Sequence[Row], vectors: NDArray[np.float32], space: dict[str, Any]) -> None:
    pyarrow = _pyarrow()
    columns = {field.name: [getattr(one, field.name) for one in rows] for field in fields(Row)}
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    table = pyarrow.table(columns | {"vector": lists})
    table = table.replace_schema_metadata({f"alignet.{key}": str(value) for key, value in space.items()})
    with whole(out) as stream:
        pyarrow.parquet.write_table(table, stream)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A stream to write `file` with, which appears whole or not at all."""
    # By chance, not by process: in containers that share a folder every process may be number 1. And not by `tempfile`,
    # whose files nobody else may read.
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    stream = temporary.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
