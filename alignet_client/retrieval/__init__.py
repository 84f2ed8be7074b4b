"""Indexes of photos on pgvector, Qdrant or FAISS files: the space goes with the vectors, and mixtures are refused."""

from alignet_client.retrieval.index import Entry, Hit, Index, IndexFault, Space, WrongSpace
from alignet_client.retrieval.photos import Added, Embedder, add_photos
from alignet_client.retrieval.places import open_index

__all__ = [
    "Added",
    "Embedder",
    "Entry",
    "Hit",
    "Index",
    "IndexFault",
    "Space",
    "WrongSpace",
    "add_photos",
    "open_index",
]
