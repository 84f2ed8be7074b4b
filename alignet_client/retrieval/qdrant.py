"""An index in a Qdrant collection, of a server or of a local folder."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alignet_client.retrieval.index import Entry, Hit, IndexFault, Space, Vectors, asked, checked

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ImportError as error:
    raise ImportError("Qdrant needs qdrant-client; run: pip install 'alignet-serve[retrieval-qdrant]'") from error

_DISTANCES = {"dot": models.Distance.DOT, "cosine": models.Distance.COSINE}
"""By the space's similarity. Qdrant scales the vectors of a cosine collection to length 1."""

_OURS = "alignet"
"""Key of a payload that holds content hash and fingerprint; the others are the caller's."""

_PAGE = 1000


class QdrantIndex:
    """A collection whose metadata state the space.

    Qdrant does not refuse vectors of another space by itself. So every point carries its fingerprint, and a search
    asks only for points with that of the index: what another program wrote is never compared.

    Args:
        location: URL of a server (Qdrant 1.16 or newer), or a folder, which one process at a time may open.
        collection: made if it is not there.
        space: of the vectors; None: that of the collection, which must be there.
        api_key: of the server.

    Raises:
        WrongSpace: the collection holds vectors of another space.
        IndexFault: there is no such collection, it is none of ours, or another process has the folder open.
    """

    def __init__(
        self, location: str, collection: str = "photos", space: Space | None = None, *, api_key: str | None = None
    ) -> None:
        self._location, self._name = str(location), collection
        self._local = not self._location.startswith(("http://", "https://"))
        self._guard = threading.RLock()
        try:
            if self._local:
                self._client = QdrantClient(path=self._location, force_disable_check_same_thread=True)
            else:
                # What it asks of a server, the metadata, is seen below; its own check warns from a thread of its own.
                self._client = QdrantClient(self._location, api_key=api_key, check_compatibility=False)
        except RuntimeError as error:
            raise IndexFault(f"{self.place}: {error}") from error
        try:
            with self._asked():
                self._space = self._made(space)
        except BaseException:
            self._client.close()
            raise
        self._mine = models.Filter(
            must=[
                models.FieldCondition(
                    key=f"{_OURS}.fingerprint", match=models.MatchValue(value=self._space.fingerprint)
                )
            ]
        )

    @property
    def place(self) -> str:
        """As `open_index` takes it."""
        return f"qdrant:{self._location}#{self._name}"

    @property
    def space(self) -> Space:
        """Of all its vectors."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: ArrayLike, fingerprint: str) -> None:
        """As `Index.upsert`; the key `alignet` of a payload is taken. Raises ValueError where one has it."""
        rows, found = checked(self.space, entries, vectors, fingerprint)
        if any(_OURS in row.payload for row in rows):
            raise ValueError(f"a payload has the key {_OURS!r}, which is kept for content hash and fingerprint")
        points = [
            models.PointStruct(
                id=row.id,
                vector=vector.tolist(),
                payload={**row.payload, _OURS: {"sha256": row.sha256, "fingerprint": fingerprint}},
            )
            for row, vector in zip(rows, found, strict=True)
        ]
        if points:
            with self._asked():
                self._client.upsert(self._name, points, wait=True)

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """As `Index.search`; exact in a folder, approximate on a server."""
        queries = asked(self.space, vectors, k, fingerprint)
        requests = [
            models.QueryRequest(query=one.tolist(), limit=k, filter=self._mine, with_payload=True) for one in queries
        ]
        with self._asked():
            answers = self._client.query_batch_points(self._name, requests)
        return [[Hit(_entry(point.payload), point.score) for point in answer.points] for answer in answers]

    def entries(self, sha256s: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Index.entries`."""
        if sha256s is not None:
            for point in self._retrieve(sha256s, vectors=False):
                yield _entry(point.payload)
            return
        offset = None
        while True:
            with self._asked():
                points, offset = self._client.scroll(self._name, self._mine, limit=_PAGE, offset=offset)
            for point in points:
                yield _entry(point.payload)
            if offset is None:
                return

    def fetch(self, sha256s: Sequence[str]) -> tuple[list[Entry], Vectors]:
        """As `Index.fetch`; of a cosine space, of length 1."""
        points = self._retrieve(sha256s, vectors=True)
        vectors = np.array([point.vector for point in points], np.float32).reshape(-1, self.space.size)
        return [_entry(point.payload) for point in points], vectors

    def delete(self, sha256s: Sequence[str]) -> None:
        """As `Index.delete`."""
        if len(sha256s):
            ids: list[Any] = [Entry(sha256).id for sha256 in sha256s]
            with self._asked():
                self._client.delete(self._name, models.PointIdsList(points=ids), wait=True)

    def __len__(self) -> int:
        """How many there are."""
        with self._asked():
            return int(self._client.count(self._name, self._mine, exact=True).count)

    def flush(self) -> None:
        """Nothing to do: every write was waited for."""

    def close(self) -> None:
        """Close the connection, or give up the folder."""
        self._client.close()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """One thread at a time. Raises IndexFault where the server refuses or cannot be reached."""
        with self._guard:
            try:
                yield
            except ApiException as error:
                raise IndexFault(f"{self.place}: {str(error).strip()}") from error

    def _retrieve(self, sha256s: Sequence[str], *, vectors: bool) -> list[Any]:
        ids = [Entry(sha256).id for sha256 in sha256s]
        with self._asked():
            points = self._client.retrieve(self._name, ids, with_payload=True, with_vectors=vectors) if ids else []
        mark = self.space.fingerprint
        return [point for point in points if (point.payload or {}).get(_OURS, {}).get("fingerprint") == mark]

    def _made(self, space: Space | None) -> Space:
        """The space of the collection, which is made if it is not there."""
        if not self._client.collection_exists(self._name):
            if space is None:
                raise IndexFault(f"{self.place}: there is no collection of this name")
            self._client.create_collection(
                self._name,
                models.VectorParams(size=space.size, distance=_DISTANCES[space.similarity]),
                metadata=json.loads(space.written()),
            )
            if not self._local:  # a folder has no payload indexes
                self._client.create_payload_index(self._name, f"{_OURS}.fingerprint", models.PayloadSchemaType.KEYWORD)
        about = self._client.get_collection(self._name).config.metadata
        return Space.read(json.dumps(about), f"collection {self._name}").same_as(space, f"collection {self._name}")


def _entry(payload: dict[str, Any] | None) -> Entry:
    payload = dict(payload or {})
    ours = payload.pop(_OURS)
    return Entry(ours["sha256"], payload)
