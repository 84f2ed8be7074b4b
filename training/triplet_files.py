"""Files of labelled triplets in AligNet's layout: written, read, and their images found.

One file is `{root}/{transform}/{split}_{sampling}.npz` with three arrays:

    filenames     (n, 3) str, the images; the most similar pair first, the odd one last
    similarities  (n, 3) float, of the pairs 01, 02, 12: not probabilities, their softmax is
    indices       (n, 3) int, row numbers in the maker's own list of images

A sharded set is the folder `{root}/{transform}/{split}_{sampling}/` of files of the same three arrays, named by
their first triplet; together, in order of name, they are the single file.

Images are found by FILE NAME and never by index: the published indices follow TFDS, whose order is not that of
any folder. Both splits that were published draw from ImageNet's TRAIN images.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract.files import whole

KEYS = {"filenames": "SU", "similarities": "f", "indices": "iu"}
"""The arrays of a file and the numpy kinds that each may be of."""

ROWS = 100_000
"""Triplets held at once while a file is read."""

SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Chunk:
    """Consecutive triplets of a file.

    Attributes:
        where: the file.
        start: row of the first one in that file.
        filenames: [t, 3]; empty strings where names were not asked for.
        similarities: float32 [t, 3] in the order of `contract.triplets.PAIRS`.
        indices: [t, 3].
    """

    where: Path
    start: int
    filenames: NDArray[np.str_]
    similarities: NDArray[np.float32]
    indices: NDArray[np.int64]


@dataclass
class Names:
    """File names to row numbers, exactly or, where the wanted name has no folder, by the last part."""

    names: NDArray[np.str_]
    where: str
    _exact: dict[str, int] = field(init=False)
    _last: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._exact, self._last = {}, {}
        for row, name in enumerate(self.names.tolist()):
            if name in self._exact:
                raise ValueError(f"{self.where}, row {row}: {name!r} is there twice.")
            self._exact[name] = row
            last = name.rpartition("/")[2]
            self._last[last] = -2 if last in self._last else row

    def rows(self, chunk: Chunk) -> NDArray[np.int32]:
        """Row numbers [t, 3] of a chunk's images.

        Raises:
            ValueError: a name is not there, or has no folder and stands for several; file and row are given.
        """
        wanted = chunk.filenames.ravel().tolist()
        found = [self._exact.get(name, -1) for name in wanted]
        if -1 in found:
            found = [self._last.get(n, -1) if r == -1 else r for n, r in zip(wanted, found, strict=True)]
        rows = np.array(found, np.int32).reshape(-1, 3)
        if (rows < 0).any():
            at = int((rows < 0).argmax())
            kind = "is not among" if rows.flat[at] == -1 else "stands for several of"
            where = f"{chunk.where}, row {chunk.start + at // 3}"
            raise ValueError(f"{where}: {wanted[at]!r} {kind} the {len(self.names)} images of {self.where}.")
        return rows


def read_names(path: Path) -> NDArray[np.str_]:
    """File names in order: of an .npy of strings, of a text file with one a line, or of the files under a folder.

    Those of a folder are relative to it, sorted.

    Raises:
        ValueError: no names, or an .npy of something else.
    """
    if path.is_dir():
        found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        names = np.array(found, dtype=np.str_)
    elif path.suffix == ".npy":
        names = np.load(path, allow_pickle=False)
        if names.ndim != 1 or names.dtype.kind not in "SU":
            raise ValueError(f"{path} is {names.dtype} {names.shape}; expected one file name an image.")
        names = names.astype(np.str_)
    else:
        names = np.array(path.read_text(encoding="utf-8").splitlines(), dtype=np.str_)
    if not len(names):
        raise ValueError(f"{path} has no file names.")
    return names


def digest(array: NDArray[Any]) -> str:
    """sha256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def synsets(filenames: NDArray[np.str_], where: str, start: int = 0) -> NDArray[np.str_]:
    """The WordNet number, n and eight digits, that the last part of each ImageNet file name begins with.

    Raises:
        ValueError: a name begins otherwise; its row is given, counted from `start`.
    """
    last = filenames
    if (np.strings.find(filenames, "/") >= 0).any():
        last = np.strings.rpartition(filenames, "/")[2]
    heads = last.astype("U9")
    different = np.unique(heads)
    if bad := [head for head in different.tolist() if not SYNSET.fullmatch(head)]:
        at = int((heads == bad[0]).argmax())
        row = start + at // (filenames.shape[-1] if filenames.ndim > 1 else 1)
        name = str(filenames.flat[at])
        raise ValueError(
            f"{where}, row {row}: {name!r} does not begin with a WordNet number, n########. For images of other names, "
            "give the class of each: --groups to make triplets, --classes to read them."
        )
    return heads


def write_shard(
    file: Path, filenames: NDArray[np.str_], similarities: NDArray[np.float32], indices: NDArray[np.int64]
) -> None:
    """Write one file of the layout, whole or not at all.

    Raises:
        ValueError: the arrays are not all (n, 3).
    """
    shapes = {filenames.shape, similarities.shape, indices.shape}
    if len(shapes) != 1 or filenames.shape[1:] != (3,):
        raise ValueError(f"{file}: filenames, similarities, indices are {sorted(shapes)}; expected all (n, 3).")
    with whole(file) as stream:
        np.savez(stream, filenames=filenames, similarities=similarities, indices=indices)


def join(folder: Path, file: Path) -> None:
    """Write all shards of `folder` as one file, holding one shard at a time."""
    shards = _shards(folder)
    heads = [_heads(shard) for shard in shards]
    n = sum(head["filenames"][0] for head in heads)
    with whole(file) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for key in tqdm(KEYS, desc=f"join {file.name}", unit="array"):
            dtype = np.result_type(*(head[key][1] for head in heads))
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, 3)}
                np.lib.format.write_array_header_1_0(member, header)
                for shard in tqdm(shards, desc=key, unit="shard", leave=False):
                    with np.load(shard, allow_pickle=False) as arrays:
                        member.write(np.ascontiguousarray(arrays[key], dtype).view(np.uint8).data)


def read(path: Path, *, rows: int = ROWS, with_names: bool = True) -> Iterator[Chunk]:
    """Triplets of a file, or of a folder of shards, at most `rows` at a time.

    Raises:
        ValueError: a file is cut short, is no npz, or lacks an array or has it in another shape or kind; named.
        FileNotFoundError: there is no such file or folder.
    """
    for file in _shards(path) if path.is_dir() else [path]:
        n = _heads(file)["filenames"][0]
        try:
            with ExitStack() as stack:
                archive = stack.enter_context(zipfile.ZipFile(file))
                streams = {}
                for key in KEYS:
                    if with_names or key != "filenames":
                        streams[key] = stack.enter_context(archive.open(f"{key}.npy"))
                dtypes = {key: _head(stream, file)[2] for key, stream in streams.items()}
                for start in range(0, n, rows):
                    count = min(rows, n - start)
                    part = {key: _take(stream, dtypes[key], count) for key, stream in streams.items()}
                    yield Chunk(
                        file,
                        start,
                        part["filenames"].astype(np.str_) if with_names else np.zeros((count, 3), np.str_),
                        part["similarities"].astype(np.float32),
                        part["indices"].astype(np.int64),
                    )
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{file} is cut short or damaged ({error}); remove it and make it again.") from error


def _shards(folder: Path) -> list[Path]:
    """Shards in order. Raises ValueError naming a gap: a shard is named by its first triplet."""
    shards = sorted(folder.glob("[0-9]*.npz"))
    if not shards:
        raise ValueError(f"{folder} holds no shards, files named by their first triplet.")
    expected = 0
    for shard in shards:
        if int(shard.stem) != expected:
            missing = folder / f"{expected:010d}.npz"
            raise ValueError(
                f"{missing} is missing: the next shard is {shard.name}; make the triplets again to fill it."
            )
        expected += _heads(shard)["filenames"][0]
    return shards


def _heads(file: Path) -> dict[str, tuple[int, np.dtype[Any]]]:
    """(rows, dtype) of each array of a file, from its headers alone."""
    out = {}
    try:
        with zipfile.ZipFile(file) as archive:
            if missing := [key for key in KEYS if f"{key}.npy" not in archive.namelist()]:
                raise ValueError(f"{file} lacks {', '.join(missing)}; it has {', '.join(archive.namelist())}.")
            for key, kinds in KEYS.items():
                with archive.open(f"{key}.npy") as stream:
                    shape, fortran, dtype = _head(stream, file)
                if len(shape) != 2 or shape[1] != 3 or fortran or dtype.kind not in kinds:
                    raise ValueError(f"{file}: {key} is {dtype} {shape}; expected (n, 3) of kind {' or '.join(kinds)}.")
                out[key] = (shape[0], dtype)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is cut short or no npz ({error}); remove it and make it again.") from error
    if len({rows for rows, _ in out.values()}) != 1:
        counts = {key: rows for key, (rows, _) in out.items()}
        raise ValueError(f"{file}: its arrays have different numbers of rows, {counts}.")
    return out


def _head(stream: IO[bytes], file: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype) of an npy stream, which then stands at its data."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"{file}: npy version {version}; expected 1.0 or 2.0.")


def _take(stream: IO[bytes], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The next `count` triplets of an npy stream."""
    data = stream.read(count * 3 * dtype.itemsize)
    if len(data) < count * 3 * dtype.itemsize:
        raise EOFError("its data end early")
    return np.frombuffer(data, dtype).reshape(count, 3)
