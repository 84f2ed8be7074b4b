"""An index in a folder of files, searched exactly by FAISS; for up to some hundred thousand photos.

    index.json              the space, and the names of the other two; what it names is the index
    vectors-000003.faiss    IndexFlatIP by number
    entries-000003.jsonl    number, content hash and payload, a line each

Saved whole or not at all: new files are written under new names, and `index.json` then replaced.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from alignet_client.files import whole
from alignet_client.retrieval.index import Entry, Hit, IndexFault, Space, Vectors, asked, checked, unit

try:
    import faiss
except ImportError as error:
    raise ImportError("FAISS files need faiss-cpu; run: pip install 'alignet-serve[retrieval-faiss]'") from error

_TRIES = 20


class FaissIndex:
    """FAISS files in a folder. One process writes; others read what it saved last, and open again to see more.

    Args:
        folder: made if it is not there.
        space: of the vectors; None: that of the index, which must be there.
        write: hold the index for writing.

    Raises:
        WrongSpace: the folder holds vectors of another space.
        IndexFault: there is no index, it is damaged, or another process writes it.
    """

    def __init__(self, folder: Path | str, space: Space | None = None, *, write: bool = True) -> None:
        self.folder = Path(folder)
        self._file = self.folder / "index.json"
        self._held: IO[bytes] | None = None
        self._guard = threading.RLock()
        self._saved = True
        if space is None and not self._file.exists():
            raise IndexFault(f"{self.folder} holds no index: {self._file.name} is not there")
        if write:
            self._held = _held(self.folder)
        try:
            self._open(space)
        except BaseException:
            self._release()
            raise

    @property
    def place(self) -> str:
        """As `open_index` takes it."""
        return f"faiss:{self.folder}"

    @property
    def space(self) -> Space:
        """Of all its vectors."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: ArrayLike, fingerprint: str) -> None:
        """Write vectors [n, d] to memory; `flush` saves them. Raises as `Index.upsert`, and IndexFault if read only."""
        rows, found = checked(self.space, entries, vectors, fingerprint)
        with self._guard:
            self._remove([row.sha256 for row in rows])
            if not rows:
                return
            labels = np.arange(self._next, self._next + len(rows))
            self._faiss.add_with_ids(unit(found) if self.space.similarity == "cosine" else found, labels)
            self._next += len(rows)
            for label, row in zip(labels.tolist(), rows, strict=True):
                self._entries[label], self._labels[row.sha256] = row, label

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """As `Index.search`; exact."""
        queries = asked(self.space, vectors, k, fingerprint)
        if self.space.similarity == "cosine":
            queries = unit(queries)
        with self._guard:
            if not self._entries:
                return [[] for _ in queries]
            values, labels = self._faiss.search(queries, min(k, len(self._entries)))
            return [
                [Hit(self._entries[label], value) for value, label in zip(*row, strict=True)]
                for row in zip(values.tolist(), labels.tolist(), strict=True)
            ]

    def entries(self, sha256s: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Index.entries`."""
        with self._guard:
            labels = self._labels.values() if sha256s is None else self._here(sha256s)
            yield from [self._entries[label] for label in labels]

    def fetch(self, sha256s: Sequence[str]) -> tuple[list[Entry], Vectors]:
        """As `Index.fetch`; of a cosine space, of length 1."""
        with self._guard:
            labels = self._here(sha256s)
            vectors = [self._faiss.reconstruct(label) for label in labels]
            rows = [self._entries[label] for label in labels]
        return rows, np.stack(vectors) if vectors else np.empty((0, self.space.size), np.float32)

    def delete(self, sha256s: Sequence[str]) -> None:
        """As `Index.delete`; `flush` saves it."""
        with self._guard:
            self._remove(sha256s)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._entries)

    def flush(self) -> None:
        """Save, if there is anything new."""
        with self._guard:
            if self._saved or self._held is None:
                return
            self._number += 1
            vectors, lines = self._names()
            with whole(self.folder / vectors) as stream:
                stream.write(faiss.serialize_index(self._faiss).data)
            with whole(self.folder / lines) as stream:
                for label, row in self._entries.items():
                    stream.write((json.dumps([label, row.sha256, row.payload]) + "\n").encode())
            about = json.loads(self.space.written()) | {"number": self._number, "count": len(self), "next": self._next}
            with whole(self._file) as stream:
                stream.write((json.dumps(about, indent=2) + "\n").encode())
            self._saved = True
            for file in (*self.folder.glob("vectors-*.faiss"), *self.folder.glob("entries-*.jsonl")):
                if file.name not in (vectors, lines):
                    file.unlink(missing_ok=True)

    def close(self) -> None:
        """Save, and let others write."""
        try:
            self.flush()
        finally:
            self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()  # which gives up the lock
            self._held = None

    def _open(self, space: Space | None) -> None:
        self._entries: dict[int, Entry] = {}
        self._labels: dict[str, int] = {}
        self._number = self._next = 0
        if not self._file.exists():
            if space is None or self._held is None:
                raise IndexFault(f"{self.folder} holds no index: {self._file.name} is not there")
            self._space = space
            self._faiss: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(space.size))
            self._saved = False
            self.flush()
            return
        for tried in range(_TRIES):
            try:
                self._read(space)
            except FileNotFoundError as error:
                # A writer has replaced the files between our look at index.json and at them.
                if tried == _TRIES - 1:
                    raise IndexFault(f"{error.filename} is not there, but {self._file} names it") from error
            else:
                return

    def _read(self, space: Space | None) -> None:
        text = self._file.read_text()
        self._space = Space.read(text, str(self._file)).same_as(space, str(self.folder))
        about = json.loads(text)
        self._number, self._next = about["number"], about["next"]
        vectors, lines = (self.folder / name for name in self._names())
        content, text = np.frombuffer(vectors.read_bytes(), np.uint8), lines.read_text()
        try:
            self._faiss = faiss.deserialize_index(content)
        except RuntimeError as error:
            raise IndexFault(f"{vectors} is no FAISS index: {error}") from error
        rows = [json.loads(line) for line in text.splitlines()]
        self._entries = {label: Entry(sha256, payload) for label, sha256, payload in rows}
        self._labels = {row.sha256: label for label, row in self._entries.items()}
        found = (len(self._entries), self._faiss.ntotal, self._faiss.d)
        if found != (about["count"], about["count"], self._space.size):
            raise IndexFault(
                f"{self.folder}: {found[0]} entries and {found[1]} vectors of {found[2]} numbers; "
                f"{self._file.name} says {about['count']} of {self._space.size}"
            )

    def _names(self) -> tuple[str, str]:
        return f"vectors-{self._number:06d}.faiss", f"entries-{self._number:06d}.jsonl"

    def _here(self, sha256s: Sequence[str]) -> list[int]:
        return [self._labels[sha256] for sha256 in dict.fromkeys(sha256s) if sha256 in self._labels]

    def _remove(self, sha256s: Sequence[str]) -> None:
        if self._held is None:
            raise IndexFault(f"{self.folder} was opened to be read, or was closed")
        self._saved = False
        labels = self._here(sha256s)
        if labels:
            self._faiss.remove_ids(np.array(labels, np.int64))
        for label in labels:
            del self._labels[self._entries.pop(label).sha256]


def _held(folder: Path) -> IO[bytes]:
    """A lock that ends with the process. Raises IndexFault: another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / ".lock").open("ab")
    with contextlib.suppress(ImportError):  # Windows has no flock
        import fcntl

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise IndexFault(f"another process writes {folder}; FAISS files have one writer") from error
    return stream
