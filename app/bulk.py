"""`alignet-serve bulk FOLDER --out OUT`: the vectors of a collection of photos, for an index, without a server.

    _space.json           model, space, size and fingerprint: whose vectors these are
    part-000-000000.parquet   a row a file: id, path, sha256, bytes, mtime_ns, vector; or
    part-000-000000.npy       the vectors alone, with .jsonl beside it for the other columns
    _errors-000.jsonl     files of the last run that are no image the model takes, with the reason

A run that is killed loses at most one part; the same command goes on where it stopped. What counts is the
content: a file that is known by its SHA-256 is never embedded again, whatever it is called; a file whose
content changed is. `id` is a UUID made of the content, so writing a row twice into an index changes nothing.
Several processes or machines share the work by `--shard I/N`: one command each, one OUT.
"""

import argparse
import functools
import hashlib
import json
import sys
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine import EngineUnavailable, OnnxEngine, cpu_quota, inference_slots, open_engine
from app.files import photos_under
from app.settings import Settings
from contract.ahead import ahead
from contract.bundle import Bundle, BundleError, read_bundle
from contract.files import whole
from contract.manifest import space_fingerprint
from contract.pixels import ImageError, PixelLimits, PixelSpec, load_pixels


@dataclass(frozen=True)
class Row:
    """One file of the collection; `path` is relative to its folder, with `/` between names."""

    id: str
    path: str
    sha256: str
    bytes: int
    mtime_ns: int


class BulkError(ValueError):
    """The run cannot be done as asked."""


class Parts:
    """The rows in a folder, read once at the start, and the writer of new ones.

    Args:
        folder: OUT.
        space: the content of `_space.json`.
        kind: parquet or npy.
        shard: number of this process; its parts carry it in their names.
        size: rows of one part.

    Raises:
        BulkError: the folder holds vectors of another space.
    """

    def __init__(self, folder: Path, space: dict[str, Any], *, kind: str, shard: int, size: int) -> None:
        self.folder, self._space, self._kind, self._shard, self._size = folder, space, kind, shard, size
        folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        self.by_path: dict[str, Row] = {}
        self._where: dict[str, tuple[Path, int]] = {}  # content to the part and row that has its vector
        self._open: tuple[Path, NDArray[np.float32]] | None = None
        self._rows: list[Row] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._pending: dict[str, NDArray[np.float32]] = {}
        # The row that was written last counts, whichever shard wrote it: a file may fall to another one now. Its time
        # of change does not say that, as a file that was put back from a copy is older than what it replaced.
        for part in sorted(folder.glob(f"part-*.{'parquet' if kind == 'parquet' else 'jsonl'}"), key=_written):
            for i, row in enumerate(self._read_rows(part)):
                self.by_path[row.path] = row
                self._where.setdefault(row.sha256, (part, i))
        self._next = max((_written(part)[0] for part in folder.glob("part-[0-9][0-9][0-9]-*")), default=-1) + 1

    def has(self, sha256: str) -> bool:
        """Whether the vector of this content is here already."""
        return sha256 in self._pending or sha256 in self._where

    def vector(self, sha256: str) -> NDArray[np.float32] | None:
        """The vector [size] of content that is here already."""
        if sha256 in self._pending:
            return self._pending[sha256]
        if sha256 not in self._where:
            return None
        part, row = self._where[sha256]
        if self._open is None or self._open[0] != part:
            self._open = (part, self._read_vectors(part))
        vector: NDArray[np.float32] = self._open[1][row]
        return vector

    def add(self, row: Row, vector: NDArray[np.float32]) -> None:
        """Keep a row; every `size` rows become a part."""
        self._rows.append(row)
        self._vectors.append(vector)
        self._pending[row.sha256] = vector
        if len(self._rows) == self._size:
            self.flush()

    def flush(self) -> None:
        """Write what is kept as a part, which appears whole or not at all."""
        if not self._rows:
            return
        stem = self.folder / f"part-{self._shard:03d}-{self._next:06d}"
        vectors = np.stack(self._vectors)
        if self._kind == "parquet":
            part = stem.with_suffix(".parquet")
            self._write_parquet(part, vectors)
        else:
            part = stem.with_suffix(".jsonl")  # the part counts once this is there, so it comes last
            with whole(stem.with_suffix(".npy")) as stream:
                np.save(stream, vectors, allow_pickle=False)
            with whole(part) as stream:
                stream.writelines(_line(asdict(row)) for row in self._rows)
        for i, row in enumerate(self._rows):
            self.by_path[row.path] = row
            self._where.setdefault(row.sha256, (part, i))
        self._rows, self._vectors, self._pending, self._next = [], [], {}, self._next + 1

    def write_errors(self, errors: list[dict[str, str]]) -> None:
        """The files that this run could not embed, in place of the last run's."""
        with whole(self.folder / f"_errors-{self._shard:03d}.jsonl") as stream:
            stream.writelines(map(_line, errors))

    def _claim(self) -> None:
        file = self.folder / "_space.json"
        if not file.exists():
            with whole(file) as stream:
                stream.write((json.dumps(self._space, indent=2) + "\n").encode())
        stored = json.loads(file.read_text())
        if changed := [key for key in self._space if stored.get(key) != self._space[key]]:
            raise BulkError(
                f"{self.folder} holds vectors with another {' and '.join(changed)} "
                f"({', '.join(str(stored.get(key)) for key in changed)}); choose another --out."
            )

    def _read_rows(self, part: Path) -> list[Row]:
        names = list(Row.__dataclass_fields__)
        if self._kind == "parquet":
            import pyarrow.parquet

            return [Row(**row) for row in pyarrow.parquet.read_table(part, columns=names).to_pylist()]
        return [Row(**json.loads(line)) for line in part.read_text().splitlines()]

    def _read_vectors(self, part: Path) -> NDArray[np.float32]:
        if self._kind == "parquet":
            import pyarrow.parquet

            column = pyarrow.parquet.read_table(part, columns=["vector"])["vector"].combine_chunks()
            flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(len(column), -1)
        return np.asarray(np.load(part.with_suffix(".npy"), mmap_mode="r", allow_pickle=False), np.float32)

    def _write_parquet(self, part: Path, vectors: NDArray[np.float32]) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {name: [getattr(row, name) for row in self._rows] for name in Row.__dataclass_fields__}
        lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
        table = pyarrow.table(columns | {"vector": lists}).replace_schema_metadata(
            {f"alignet.{key}": str(value) for key, value in self._space.items()}
        )
        with whole(part) as stream:
            pyarrow.parquet.write_table(table, stream)


def _written(part: Path) -> tuple[int, int]:
    """(number, shard) of a part: a run's numbers are above those of all parts that it found, of any shard."""
    _, shard, number = part.stem.split("-")
    return int(number), int(shard)


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def photos(folder: Path, shard: int, shards: int) -> list[Path]:
    """The photos under `folder` that fall to one of `shards`, in order of their paths.

    A file's shard follows from its path, so new files leave the others' shards as they are.
    """
    found = photos_under(folder)
    if shards == 1:
        return found
    return [
        f for f in found if int.from_bytes(hashlib.sha256(_name(folder, f).encode()).digest()[:8]) % shards == shard
    ]


def _name(folder: Path, file: Path) -> str:
    """The relative path; bytes that are no UTF-8 are written out, as JSON and Parquet hold only text."""
    return file.relative_to(folder).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class _Read:
    """One file as a thread read it; `pixels` is None where its vector is known already, or it is refused."""

    row: Row
    pixels: NDArray[Any] | None = None
    fault: str = ""


def _read(
    folder: Path, parts: Parts, spec: PixelSpec, limits: PixelLimits, quick: bool, file: Path
) -> _Read | OSError | None:
    """One file as a thread reads it; None where it is known and unchanged, the error where it cannot be read."""
    try:
        name, stat = _name(folder, file), file.stat()
        known = parts.by_path.get(name)
        if quick and known and (known.bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return None
        content = file.read_bytes()
    except OSError as error:
        return error
    digest = hashlib.sha256(content).hexdigest()
    if known and known.sha256 == digest:
        return None
    row = Row(str(uuid.uuid5(uuid.NAMESPACE_OID, f"sha256:{digest}")), name, digest, len(content), stat.st_mtime_ns)
    if parts.has(digest):
        return _Read(row)
    try:
        return _Read(row, load_pixels(content, spec, limits))
    except ImageError as error:
        return _Read(row, fault=f"{error.fault}: {error}")


def embed_folder(
    folder: Path, parts: Parts, bundle: Bundle, engine: OnnxEngine, options: argparse.Namespace, slots: int
) -> str:
    """Embed what is new under `folder` into `parts`, `slots` batches side by side; a sentence of what was done."""
    from tqdm import tqdm

    spec, limits = bundle.manifest.pixels, Settings().pixel_limits
    read = functools.partial(_read, folder, parts, spec, limits, options.quick)
    batch: list[tuple[Row, NDArray[Any]]] = []
    errors: list[dict[str, str]] = []
    counts = {"embedded": 0, "reused": 0, "known": 0}
    files = photos(folder, *options.shard)

    def infer(pixels: list[NDArray[Any]]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = engine.embed(np.stack(pixels))[options.space]
        if not options.normalize:
            return vectors
        wide = vectors.astype(np.float64)
        unit: NDArray[np.float32] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)
        return unit.astype(np.float32)

    inferred: deque[tuple[list[Row], Future[NDArray[np.float32]]]] = deque()

    def begin() -> None:
        inferred.append(([row for row, _ in batch], inference.submit(infer, [pixels for _, pixels in batch])))
        batch.clear()
        if len(inferred) > slots:
            finish()

    def finish() -> None:
        rows, vectors = inferred.popleft()
        for row, vector in zip(rows, vectors.result(), strict=True):
            parts.add(row, vector)
        counts["embedded"] += len(rows)

    inference = ThreadPoolExecutor(slots, thread_name_prefix="inference")
    try:
        with (
            ahead(read, files, threads=options.decode_threads, depth=4 * options.batch, name="decode") as contents,
            tqdm(total=len(files), unit="photo", disable=None) as bar,
        ):
            for file, item in zip(files, contents, strict=True):
                bar.update()
                if isinstance(item, OSError):
                    errors.append({"path": _name(folder, file), "fault": f"unreadable: {item.strerror}"})
                elif item is None:
                    counts["known"] += 1
                elif item.fault:
                    errors.append({"path": item.row.path, "fault": item.fault})
                elif (vector := parts.vector(item.row.sha256)) is not None:
                    parts.add(item.row, vector)
                    counts["reused"] += 1
                elif item.pixels is not None:
                    batch.append((item.row, item.pixels))
                    if len(batch) == options.batch:
                        begin()
        if batch:
            begin()
        while inferred:
            finish()
    finally:  # Ctrl-C keeps what is done
        inference.shutdown(wait=False, cancel_futures=True)
        parts.flush()
        parts.write_errors(errors)
    done = ", ".join(f"{n} {what}" for what, n in counts.items())
    return f"{len(files)} photos: {done}, {len(errors)} refused (see _errors-*.jsonl)"


def main(arguments: list[str]) -> int:
    """The command; 0 when every photo is in OUT or listed as refused, 1 where it cannot run, 130 if interrupted."""
    options = parser().parse_args(arguments)
    settings = Settings()
    options.decode_threads = options.decode_threads or cpu_quota()
    try:
        if missing := [m for m in ("tqdm", "pyarrow")[: 1 + (options.format == "parquet")] if not find_spec(m)]:
            raise BulkError(f"{' and '.join(missing)} is missing; run: pip install 'alignet-serve[cpu,bulk]'.")
        if not options.folder.is_dir():
            raise BulkError(f"{options.folder} is no folder.")
        bundle = read_bundle(options.bundle)
        if options.space not in bundle.manifest.spaces:
            raise BulkError(f"the bundle has no space {options.space!r}; it has {', '.join(bundle.manifest.spaces)}.")
        parts = Parts(
            options.out, _space(bundle, options), kind=options.format, shard=options.shard[0], size=options.part
        )
        slots = inference_slots(options.device, settings.inference_slots, settings.inference_threads)
        engine = open_engine(
            bundle,
            device=options.device,
            slots=slots,
            max_batch=options.batch or settings.max_batch,
            allow_cpu_fallback=settings.allow_cpu_fallback,
            graph_cache=settings.graph_cache,
        )
        options.batch = engine.max_batch
        print(embed_folder(options.folder, parts, bundle, engine, options, slots.inferences))
    except (BulkError, BundleError, EngineUnavailable) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _space(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """What `_space.json` says: enough to make an index, and to know later whose vectors are in it."""
    manifest = bundle.manifest
    space = manifest.spaces[options.space]
    return {
        "model": manifest.name,
        "space": options.space,
        "fingerprint": space_fingerprint(manifest, options.space, normalize=options.normalize),
        "size": space.size,
        "normalized": options.normalize or space.normalized,
        "similarity": space.similarity,
        "format": options.format,
    }


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 0 to N - 1, such as 0/4")
    return int(shard), int(shards)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """All that `alignet-serve bulk` takes."""
    settings = Settings()
    parser = argparse.ArgumentParser(
        prog="alignet-serve bulk",
        description="Embed every photo of a folder; the same command resumes. Threads, limits and devices that are "
        "no option here are the ALIGNET_ variables of the service.",
    )
    parser.add_argument("--version", action="version", version=f"alignet-serve {version('alignet-serve')}")
    parser.add_argument("folder", type=Path, help="photos, searched with all folders inside")
    parser.add_argument("--out", type=Path, required=True, help="folder of the vectors, made if it is not there")
    parser.add_argument("--bundle", type=Path, default=settings.bundles[0], help="default: the service's (%(default)s)")
    parser.add_argument("--space", choices=("aligned", "base"), default="aligned")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1: a space of its own")
    parser.add_argument("--format", choices=("parquet", "npy"), default="parquet")
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="this process's share of the files")
    parser.add_argument("--part", type=_positive, default=4096, metavar="ROWS", help="rows of a part (%(default)s)")
    parser.add_argument("--batch", type=int, default=0, help="images in one inference; 0: as the service")
    parser.add_argument("--decode-threads", type=int, default=0, help="0: one for each CPU")
    parser.add_argument("--device", choices=("cpu", "cuda", "tensorrt"), default=settings.device)
    parser.add_argument(
        "--quick", action="store_true", help="do not read files whose size and time of change are those of last time"
    )
    return parser
