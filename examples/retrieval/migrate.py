"""From the base space to the aligned one while in use.

    python examples/retrieval/migrate.py PHOTOS OLD NEW STATE NEW_PHOTO

OLD and NEW are places as `alignet index` takes them, STATE a file. NEW_PHOTO arrives in the middle.
"""

import hashlib
import sys
from contextlib import closing
from pathlib import Path

from alignet_client import Client
from alignet_client.migration import Dual, reembed
from alignet_client.retrieval import Embedder, Entry, add_photos, open_index

photos, old_place, new_place, state, new_photo = sys.argv[1:]

with Client() as client:
    before, after = Embedder.of(client, "base"), Embedder.of(client, "aligned")
    embedders = {one.space.fingerprint: one for one in (before, after)}
    with closing(open_index(old_place, before.space)) as old, closing(open_index(new_place, after.space)) as new:
        add_photos(old, before, Path(photos))  # the index that you have
        dual = Dual(old, new, state)

        def write(file: str) -> None:  # from now on every writer writes to both
            entry = Entry(hashlib.sha256(Path(file).read_bytes()).hexdigest(), {"paths": [file]})
            dual.upsert([entry], {mark: one.embed([file]) for mark, one in embedders.items()})

        def nearest(file: str) -> str:  # and every reader asks in the space that is read now
            mark = dual.space.fingerprint
            hits = dual.search(embedders[mark].embed([file]), k=1, fingerprint=mark)[0]
            return f"{dual.space.name}: {hits[0].entry.payload['paths'][0]}"

        print(nearest(new_photo))
        write(new_photo)
        done = reembed(old, new, after, Path(photos))  # as often as it takes
        dual.switch()
        print(nearest(new_photo))
        print(f"{done.embedded} embedded, {len(new)} of {len(old)} moved")
