"""Photos in FAISS files: python examples/retrieval/faiss_files.py docs/photos index/ docs/photos/cat.jpg."""

import sys
from contextlib import closing
from pathlib import Path

from alignet_client import Client
from alignet_client.retrieval import Embedder, add_photos, open_index

folder, place, query = sys.argv[1:]

with Client() as client:
    embedder = Embedder.of(client)  # the aligned space; Embedder.of(client, "base") for the other
    with closing(open_index(f"faiss:{place}", embedder.space)) as index:
        add_photos(index, embedder, Path(folder))
        vectors = embedder.embed([query])
        for hit in index.search(vectors, k=3, fingerprint=embedder.space.fingerprint)[0]:
            print(f"{hit.similarity:8.4f}", *hit.entry.payload["paths"])
