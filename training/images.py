"""Where images come from: folders, CSV manifests, Hugging Face data sets, webdataset shards.

`open_images` reads the source's name:

    PATH or folder:PATH           every image file under a folder, by sorted path; first folder = label, if all have one
    FILE.csv or csv:FILE          column `path`, relative to the file; column `label`, if there
    hf:PATH or hf:NAME[:SPLIT]    a data set of the `datasets` library, on disk or by name; its first image column
    wds:SHARDS                    tar files of webdataset, as a.tar, a-{000000..000009}.tar, or several joined by ::

Every source gives the encoded bytes of any row at any time, so that a killed run reads nothing twice and ranks need
not agree on anything but row numbers.
"""

import csv
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.pixels import ImageError, PixelLimits, PixelSpec, load_pixels
from training.tables import read_rows

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

MISSING = -1
"""Size of an image that is known not to be there."""

LIMITS = PixelLimits(max_bytes=2**28, max_pixels=89_000_000, min_side=1, max_side=2**16)
"""One's own photos may be larger and smaller than a server accepts; pixels stay below Pillow's own warning."""


class UnreadableImage(ValueError):
    """One image that is missing or does not decode; the message begins with where it is."""


class Images(Protocol):
    """Images in a fixed order."""

    @property
    def names(self) -> Sequence[str]:
        """One an image, unique if the source's are."""
        ...

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Encoded bytes [n]; `MISSING` where the image is known to be missing."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """Class names [n], or None where the source has no classes."""
        ...

    def __len__(self) -> int:
        """How many images."""
        ...

    def where(self, row: int) -> str:
        """What an error message calls the image."""
        ...

    def read(self, row: int) -> bytes:
        """Encoded bytes. Raises OSError; safe to call from several threads."""
        ...


def load_image(images: Images, row: int, spec: PixelSpec) -> NDArray[Any]:
    """Pixels of one row, decoded by the server's own code.

    Raises:
        UnreadableImage: naming the image and the fault.
    """
    try:
        return load_pixels(images.read(row), spec, LIMITS)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{images.where(row)}: no such file.") from error
    except (ImageError, OSError) as error:
        raise UnreadableImage(f"{images.where(row)}: {error}") from error


def digest_of(images: Images) -> str:
    """sha256 over names and sizes, in order: what can be told of the images without reading them."""
    digest = hashlib.sha256()
    for name, size in zip(images.names, images.sizes.tolist(), strict=True):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def require_present(images: Images, source: str) -> None:
    """Raises ValueError counting the images that are known to be missing and naming the first."""
    absent = np.flatnonzero(images.sizes == MISSING)
    if len(absent):
        first = images.names[absent[0]]
        raise ValueError(f"{source}: {len(absent)} of {len(images)} files do not exist, the first is {first!r}.")


def open_images(source: str) -> Images:
    """The images that `source` names, as the module docstring says.

    Raises:
        ValueError: no such source, one without images, or one that is broken; named.
    """
    kind, _, rest = source.partition(":")
    readers = {"folder": read_folder, "csv": read_manifest}
    images: Images
    if kind == "hf":
        images = read_hugging_face(rest)
    elif kind == "wds":
        images = read_webdataset(rest)
    elif kind in readers:
        images = readers[kind](Path(rest))
    elif Path(source).is_dir():
        images = read_folder(Path(source))
    elif Path(source).suffix == ".csv" and Path(source).is_file():
        images = read_manifest(Path(source))
    else:
        raise ValueError(
            f"{source!r} is no folder and no CSV file that is there; expected one of them, hf:NAME[:SPLIT] or "
            "wds:SHARDS.tar."
        )
    if not len(images):
        raise ValueError(f"{source} has no images.")
    return images


def optional(module: str) -> Any:
    """A library of the extra `hub`. Raises ValueError saying how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"this needs {module}; install it with: pip install 'alignet-serve[hub]'.") from error


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileImages:
    """Files under `root`, by relative path."""

    root: Path
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """See `Images`."""
        return np.array([_size(self.root / name) for name in self.names], np.int64)

    def where(self, row: int) -> str:
        """See `Images`."""
        return str(self.root / self.names[row])

    def read(self, row: int) -> bytes:
        """See `Images`."""
        return (self.root / self.names[row]).read_bytes()


def _size(file: Path) -> int:
    try:
        status = file.stat()
    except OSError:
        return MISSING
    return MISSING if file.is_dir() else status.st_size


def read_folder(folder: Path) -> FileImages:
    """Files with an image suffix under a folder, links followed, hidden ones left out; ImageNet's layout is one.

    Raises:
        ValueError: no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    names = []
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(path).relative_to(folder)
        names += [
            (inside / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    names.sort()
    labels = tuple(name.partition("/")[0] for name in names) if all("/" in name for name in names) else None
    return FileImages(folder, tuple(names), labels)


def read_manifest(file: Path) -> FileImages:
    """The column `path`, relative to the file, and `label` where there is one.

    Raises:
        ValueError: no such file, or one without the column `path`, or a row that is cut short.
    """
    if not file.is_file():
        raise ValueError(f"no manifest at {file}.")
    with file.open(newline="") as stream:
        header = next(csv.reader(stream), [])
    rows = read_rows(file, ("path", "label") if "label" in header else ("path",))
    labels = tuple(row["label"] for row in rows) if "label" in header else None
    return FileImages(file.parent, tuple(row["path"] for row in rows), labels)


# --- Hugging Face ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class HuggingFaceImages:
    """One image column of a `datasets.Dataset`, its bytes as they are stored.

    Names are the stored file names where every row has its own, row numbers otherwise.
    """

    source: str
    rows: Any
    column: str
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    labels: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.names)

    def where(self, row: int) -> str:
        """See `Images`."""
        return f"{self.source}, row {row} ({self.names[row]})"

    def read(self, row: int) -> bytes:
        """See `Images`."""
        cell = self.rows[row][self.column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        return Path(cell.get("path") or "").read_bytes()


def read_hugging_face(source: str) -> HuggingFaceImages:
    """A data set saved to disk, a folder that `load_dataset` understands, or a name on the hub, and its split.

    Raises:
        ValueError: not there, no image column, or several splits and none chosen; what there is, is listed.
    """
    datasets = optional("datasets")
    path, split = (source, "") if Path(source).exists() else (source.partition(":")[0], source.partition(":")[2])
    saved = Path(path).is_dir() and any((Path(path) / f).is_file() for f in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, split=split or None)
    except Exception as error:  # the library and the hub's client raise two dozen types
        raise ValueError(f"hf:{source} cannot be opened: {type(error).__name__}: {error}") from error
    if isinstance(found, dict):
        splits = sorted(found)
        if (not split and len(splits) > 1) or (split and split not in splits):
            raise ValueError(f"hf:{source} has the splits {splits}; write hf:{path}:SPLIT.")
        found = found[split or splits[0]]
    elif saved and split:
        raise ValueError(f"hf:{source} was saved without splits; write hf:{path}.")
    columns: list[str] = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"hf:{source} has no image column; its columns are {sorted(found.features)}.")
    column = columns[0]
    rows = found.cast_column(column, datasets.Image(decode=False))
    paths, sizes = _stored(rows, column)
    if Path(path).is_dir():
        root = f"{Path(path).resolve().as_posix()}/"
        paths = [name.removeprefix(root) for name in paths]
    numbers = tuple(f"{row:08d}" for row in range(len(rows)))
    names: tuple[str, ...] = tuple(paths) if all(paths) and len(set(paths)) == len(paths) else numbers
    return HuggingFaceImages(f"hf:{source}", rows, column, names, sizes, _class_names(datasets, found))


def _stored(rows: Any, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """(file name or "" of each row, bytes of each row), without loading the bytes."""
    compute = import_module("pyarrow.compute")
    paths: list[str] = []
    sizes: list[int] = []
    for table in rows.select_columns([column]).with_format("arrow").iter(1000):
        cells = table[column].combine_chunks()
        given = [path or "" for path in compute.struct_field(cells, "path").to_pylist()]
        lengths = compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
        pairs = zip(given, lengths, strict=True)
        sizes += [_size(Path(path)) if length is None else length for path, length in pairs]
        paths += given
    return paths, np.array(sizes, np.int64)


def _class_names(datasets: Any, rows: Any) -> tuple[str, ...] | None:
    """Names of the first column of classes, or None."""
    for name, kind in rows.features.items():
        if isinstance(kind, datasets.ClassLabel):
            return tuple("" if value is None else kind.int2str(value) for value in rows[name])
    return None


# --- webdataset -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarImages:
    """Image members of uncompressed tar files, found by their offset."""

    shards: tuple[Path, ...]
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    labels: None = None

    def __len__(self) -> int:
        return len(self.names)

    def where(self, row: int) -> str:
        """See `Images`."""
        return f"{self.shards[self.shard[row]]}, {self.names[row]}"

    def read(self, row: int) -> bytes:
        """See `Images`."""
        with self.shards[self.shard[row]].open("rb") as stream:
            stream.seek(int(self.offset[row]))
            data: bytes = stream.read(int(self.sizes[row]))
        return data


def read_webdataset(source: str) -> TarImages:
    """Every image of every shard; names are those of the members. Shards are local and not compressed.

    The library reads shards from front to back only, so its rules name the shards and tarfile finds the members.

    Raises:
        ValueError: a shard that is missing, compressed or cut short, by name.
    """
    shardlists = optional("webdataset.shardlists")
    shards = tuple(Path(url) for url in shardlists.expand_urls(source))
    if absent := [str(shard) for shard in shards if not shard.is_file()]:
        raise ValueError(f"wds:{source}: {len(absent)} of {len(shards)} shards do not exist, the first is {absent[0]}.")
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                members = [(m.name, m.size, m.offset_data) for m in tar if m.isreg()]
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no whole, uncompressed tar file: {error}.") from error
        for name, size, offset in members:
            if name.lower().endswith(SUFFIXES) and not Path(name).name.startswith("."):
                names.append(name)
                places.append((size, number, offset))
    columns = np.array(places, np.int64).reshape(-1, 3)
    return TarImages(shards, tuple(names), columns[:, 0], columns[:, 1], columns[:, 2])
