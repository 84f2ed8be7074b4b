"""Vectors in Qdrant: python examples/retrieval/qdrant_points.py docs/photos FOLDER_OR_URL docs/photos/cat.jpg.

What you know of a photo is its payload, at the top level of the point, so Qdrant's own filters find it.
"""

import hashlib
import sys
from contextlib import closing
from pathlib import Path

from alignet_client import Client
from alignet_client.retrieval import Embedder, Entry, open_index

folder, place, query = sys.argv[1:]

with Client() as client:
    embedder = Embedder.of(client)
    files = sorted(Path(folder).glob("*.jpg"))
    entries = [Entry(hashlib.sha256(file.read_bytes()).hexdigest(), {"name": file.stem}) for file in files]
    with closing(open_index(f"qdrant:{place}#photos", embedder.space)) as index:
        index.upsert(entries, embedder.embed(files), embedder.space.fingerprint)
        for hit in index.search(embedder.embed([query]), k=3, fingerprint=embedder.space.fingerprint)[0]:
            print(f"{hit.similarity:8.4f}", hit.entry.payload["name"])
