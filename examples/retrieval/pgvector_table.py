"""Photos in PostgreSQL: python examples/retrieval/pgvector_table.py docs/photos postgresql://... docs/photos/cat.jpg.

The table is an ordinary one: join it, and search it in SQL.
"""

import sys
from contextlib import closing
from pathlib import Path

import psycopg

from alignet_client import Client
from alignet_client.retrieval import Embedder, add_photos, open_index

folder, dsn, query = sys.argv[1:]

with Client() as client:
    embedder = Embedder.of(client)
    with closing(open_index(f"pgvector:{dsn}#photos", embedder.space)) as index:
        add_photos(index, embedder, Path(folder))
    vector = embedder.embed([query])[0].tolist()

with psycopg.connect(dsn) as connection:
    nearest = connection.execute(
        "SELECT payload->'paths'->>0, -(embedding <#> %(v)s::real[]::vector) FROM photos "
        "ORDER BY embedding <#> %(v)s::real[]::vector LIMIT 3",
        {"v": vector},
    )
    for path, similarity in nearest:
        print(f"{similarity:8.4f}", path)
