"""Where an index is, in one line: `faiss:FOLDER`, `qdrant:FOLDER_OR_URL#COLLECTION`, `pgvector:DSN#TABLE`."""

import os

from alignet_client.retrieval.index import Index, Space

PLACES = "faiss:FOLDER, qdrant:FOLDER_OR_URL#COLLECTION or pgvector:postgresql://USER@HOST/DATABASE#TABLE"

NAME = "photos"
"""Of a collection or table that the place does not name."""


def open_index(place: str, space: Space | None = None, *, write: bool = True) -> Index:
    """The index at a place; its library is loaded only now.

    Args:
        place: `faiss:FOLDER`, `qdrant:FOLDER#COLLECTION`, `qdrant:http://HOST:6333#COLLECTION` (with the key in
            QDRANT_API_KEY), or `pgvector:postgresql://USER@HOST/DATABASE#TABLE`; `#photos` if left out.
        space: make it if it is not there, and refuse it if it holds another space; None: it must be there.
        write: False leaves FAISS files to another process that writes them.

    Raises:
        WrongSpace: it holds vectors of another space.
        IndexFault: it is not there, damaged, or none of ours.
        ValueError: the place is none.
        ImportError: the engine's library is missing; the message names the extra.
    """
    kind, _, rest = place.partition(":")
    location, _, name = rest.partition("#")
    if location and kind == "faiss":
        from alignet_client.retrieval.faiss_file import FaissIndex

        return FaissIndex(rest, space, write=write)
    if location and kind == "qdrant":
        from alignet_client.retrieval.qdrant import QdrantIndex

        return QdrantIndex(location, name or NAME, space, api_key=os.environ.get("QDRANT_API_KEY"))
    if location and kind == "pgvector":
        from alignet_client.retrieval.pgvector import PgVectorIndex

        if set(name) & set("@/#="):  # not repeated: it may be half of a password
            raise ValueError(
                "what follows the first # is no name of a table; expected "
                "pgvector:postgresql://USER@HOST/DATABASE#TABLE, with %23 for a # of a password"
            )
        return PgVectorIndex(location, name or NAME, space)
    raise ValueError(f"{place!r} is no place of an index; expected {PLACES}")
