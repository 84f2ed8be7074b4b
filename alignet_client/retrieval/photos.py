"""Photos into an index: what is new by its content is embedded, in batches that each are kept once written."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from alignet_client import files
from alignet_client.client import Client
from alignet_client.images import Image
from alignet_client.results import Embeddings, SpaceName
from alignet_client.retrieval.index import Entry, Index, Space, Vectors

Told = Callable[[int], object]
"""What is told how many more photos are done."""

FLUSH = 1000
"""Photos after which an index is flushed: what a kill can cost with FAISS files; others keep every batch."""

_LOOKED_UP = 500


@dataclass(frozen=True)
class Embedder:
    """A client, and the one space that it is asked for; the service refuses where it has another."""

    client: Client
    space: Space

    @classmethod
    def of(cls, client: Client, name: SpaceName = "aligned", *, normalize: bool = False) -> "Embedder":
        """For a space of the client's model, as its card describes it. Raises AligNetError."""
        return cls(client, Space.of(client.model(), name, normalize=normalize))

    def embed(self, images: Iterable[Image]) -> Vectors:
        """Vectors [n, size] of all images. Raises as `Client.embed`: SpaceMismatch where the model has changed."""
        return self.client.embed(
            images,
            space=cast(SpaceName, self.space.name),
            normalize=self.space.normalized,
            expect_fingerprint=self.space.fingerprint,
        )

    def embed_each(self, images: Iterable[Image]) -> Embeddings:
        """Vectors of the good images, and what is wrong with the others. Raises as `Client.embed_each`."""
        return self.client.embed_each(
            images,
            space=cast(SpaceName, self.space.name),
            normalize=self.space.normalized,
            expect_fingerprint=self.space.fingerprint,
        )


@dataclass(frozen=True)
class Photo:
    """One content, wherever it lies: `paths` are relative to the folder, with `/` between names."""

    sha256: str
    file: Path
    paths: list[str]


@dataclass
class Refused:
    """A photo without a vector."""

    path: str
    code: str
    detail: str


@dataclass
class Added:
    """What became of photos.

    Attributes:
        embedded: contents embedded and written now.
        known: contents that were in the index.
        refused: files that cannot be read or were changed meanwhile, and images that the service does not take.
    """

    embedded: int = 0
    known: int = 0
    refused: list[Refused] = field(default_factory=list)


def contents(folder: Path, refused: list[Refused], told: Told = lambda _: None) -> list[Photo]:
    """The contents of the photos in a folder, or of one photo; unreadable files go to `refused`.

    Raises:
        FileNotFoundError: there is no photo.
    """
    found: dict[str, Photo] = {}
    root = folder if folder.is_dir() else folder.parent
    for file in files.photos([folder]):
        path = file.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            refused.append(Refused(path, "unreadable_file", str(error)))
        else:
            found.setdefault(digest, Photo(digest, file, [])).paths.append(path)
        told(1)
    return list(found.values())


def add_photos(
    index: Index,
    embedder: Embedder,
    folder: Path,
    *,
    batch: int = 16,
    concurrency: int = 2,
    flush: int = FLUSH,
    progress: Callable[[int], Told] | None = None,
) -> Added:
    """Bring the photos of a folder into an index; the same call goes on where a killed one stopped.

    A content is embedded once. Its payload's `paths` are all the places where it was found, now and before.

    Args:
        index: of the embedder's space.
        embedder: gives the vectors.
        folder: searched with all folders inside.
        batch: photos of one request.
        concurrency: requests at once.
        flush: photos after which the index is flushed; FAISS files then write all of it anew.
        progress: told how many contents there are; gives what is told of each that is done.

    Raises:
        WrongSpace: the index is of another space.
        FileNotFoundError: there is no photo.
        AligNetError: a fault of the service or the index, not of one photo.
    """
    index.space.same_as(embedder.space, index.place)
    added = Added()
    photos = contents(folder, added.refused)
    told = progress(len(photos)) if progress else lambda _: None
    new: list[Photo] = []
    for start in range(0, len(photos), _LOOKED_UP):
        some = photos[start : start + _LOOKED_UP]
        here = {entry.sha256: entry for entry in index.entries([photo.sha256 for photo in some])}
        _note_paths(index, [(here[photo.sha256], photo) for photo in some if photo.sha256 in here])
        new += [photo for photo in some if photo.sha256 not in here]
        added.known += len(here)
        told(len(here))
    try:
        unsaved = 0
        for good, vectors in embedded(new, embedder, added.refused, batch=batch, concurrency=concurrency, told=told):
            entries = [Entry(photo.sha256, {"paths": photo.paths}) for photo in good]
            index.upsert(entries, vectors, embedder.space.fingerprint)
            added.embedded += len(good)
            unsaved += len(good)
            if unsaved >= flush:
                index.flush()
                unsaved = 0
    finally:  # Ctrl-C keeps what is done
        index.flush()
    return added


def _note_paths(index: Index, known: list[tuple[Entry, Photo]]) -> None:
    """Write the payloads of contents that lie where they did not before."""
    merged = {}
    for entry, photo in known:
        before = entry.payload.get("paths", [])
        if more := [path for path in photo.paths if path not in before]:
            merged[entry.sha256] = Entry(entry.sha256, {**entry.payload, "paths": [*before, *more]})
    if merged:
        found, vectors = index.fetch(list(merged))
        index.upsert([merged[entry.sha256] for entry in found], vectors, index.space.fingerprint)


def embedded(
    photos: Sequence[Photo],
    embedder: Embedder,
    refused: list[Refused],
    *,
    batch: int,
    concurrency: int,
    told: Told,
) -> Iterator[tuple[list[Photo], Vectors]]:
    """Batches of photos with their vectors [n, size], in order; bad and changed ones go to `refused`.

    Raises:
        AligNetError: a fault of the service, not of one photo.
    """
    batches = (photos[start : start + batch] for start in range(0, len(photos), batch))
    waiting: deque[tuple[Sequence[Photo], Future[_Batch]]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="embed")
    try:
        for some in (*batches, *[()] * concurrency):
            if some:
                waiting.append((some, pool.submit(_Batch.of, some, embedder)))
            if waiting and (not some or len(waiting) > concurrency):
                asked, future = waiting.popleft()
                result = future.result()
                refused += result.refused
                if result.good:
                    yield result.good, result.vectors
                told(len(asked))
    finally:
        # No waiting: the collector of garbage may end a generator inside the start of a thread, which holds the lock
        # that every thread needs to end.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Batch:
    """What became of the photos of one batch: `vectors` [n, size] are those of the good ones, in order."""

    good: list[Photo]
    vectors: Vectors
    refused: list[Refused]

    @classmethod
    def of(cls, photos: Sequence[Photo], embedder: Embedder) -> "_Batch":
        """Read, and embed; raises as `Client.embed_each`."""
        sent: list[Photo] = []
        refused: list[Refused] = []
        # Read one at a time, when it is sent.
        images = (content for photo in photos if (content := _read(photo, sent, refused)) is not None)
        try:
            found = embedder.embed_each(images)
        except ValueError:  # nothing to send
            if sent:
                raise
            return cls([], np.empty((0, embedder.space.size), np.float32), refused)
        refused += [Refused(sent[fault.index or 0].paths[0], fault.code, fault.detail) for fault in found.faults]
        return cls([sent[i] for i in found.indices.tolist()], found.vectors, refused)


def _read(photo: Photo, sent: list[Photo], refused: list[Refused]) -> bytes | None:
    """The content that was hashed, which notes the photo in `sent`; otherwise it goes to `refused`.

    The vector is stored under the hash for ever, so what is sent must be what was hashed, and not what the file holds
    by now.
    """
    try:
        content = photo.file.read_bytes()
    except OSError as error:
        refused.append(Refused(photo.paths[0], "unreadable_file", str(error)))
        return None
    if hashlib.sha256(content).hexdigest() != photo.sha256:
        detail = "the file was changed during the run; run again to take what it holds now"
        refused.append(Refused(photo.paths[0], "changed_file", detail))
        return None
    sent.append(photo)
    return content
