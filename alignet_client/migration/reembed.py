"""Re-embed what an index holds into another, from the photos; what is done is never done again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignet_client.retrieval.index import Entry, Index, Vectors, WrongSpace
from alignet_client.retrieval.photos import FLUSH, Embedder, Refused, Told, contents, embedded

_LOOKED_UP = 500


@dataclass
class Reembedded:
    """What became of the contents of the old index.

    Attributes:
        total: contents of the old index at the start.
        known: of these, in the new index already.
        embedded: embedded and written now.
        refused: photos that were found, but cannot be read, were changed meanwhile, or are not taken.
        missing: hashes of contents without a good photo: the new index lacks them.
    """

    total: int = 0
    known: int = 0
    embedded: int = 0
    refused: list[Refused] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def lacking(old: Index, new: Index) -> list[str]:
    """Hashes of the contents that the old index has and the new one has not."""
    keys = [entry.sha256 for entry in old.entries()]
    out = []
    for start in range(0, len(keys), _LOOKED_UP):
        some = keys[start : start + _LOOKED_UP]
        here = {entry.sha256 for entry in new.entries(some)}
        out += [key for key in some if key not in here]
    return out


def reembed(
    old: Index,
    new: Index,
    embedder: Embedder,
    folder: Path,
    *,
    batch: int = 16,
    concurrency: int = 2,
    flush: int = FLUSH,
    progress: Callable[[int], Told] | None = None,
) -> Reembedded:
    """Bring into `new`, by the embedder, each content of `old` whose photo lies in a folder.

    Contents are known by hash, so photos may have been renamed, and what `new` has is not asked for again: killed at
    any moment, the same call goes on. Payloads are those of `old`. Others may write to both indexes meanwhile, as
    `Dual` does: what they delete stays deleted, and their payloads stay.

    Args:
        old: of any space.
        new: of the embedder's space.
        embedder: gives the vectors.
        folder: searched with all folders inside.
        batch: photos of one request.
        concurrency: requests at once.
        flush: photos after which the index is flushed; FAISS files then write all of it anew.
        progress: told how many contents are to do; gives what is told of each that is done.

    Raises:
        WrongSpace: `new` is not of the embedder's space, or both indexes are of one.
        FileNotFoundError: there is no photo.
        AligNetError: a fault of the service or an index, not of one photo.
    """
    new.space.same_as(embedder.space, new.place)
    if old.space.fingerprint == new.space.fingerprint:
        raise WrongSpace(f"{old.place} and {new.place} are of the same space; there is nothing to migrate")
    done = Reembedded(total=len(old))
    todo = lacking(old, new)
    done.known = done.total - len(todo)
    if not todo:
        return done
    wanted = set(todo)
    photos = [photo for photo in contents(folder, done.refused) if photo.sha256 in wanted]
    told = progress(len(photos)) if progress else lambda _: None
    written: set[str] = set()
    unsaved = 0
    try:
        for good, vectors in embedded(photos, embedder, done.refused, batch=batch, concurrency=concurrency, told=told):
            written |= _write(old, new, [photo.sha256 for photo in good], vectors)
            unsaved += len(good)
            if unsaved >= flush:
                new.flush()
                unsaved = 0
    finally:  # Ctrl-C keeps what is done
        new.flush()
    done.embedded = len(written)
    done.missing = lacking(old, new)
    return done


def _write(old: Index, new: Index, keys: Sequence[str], vectors: Vectors) -> set[str]:
    """Write vectors with the payloads that `old` has now, and once more where it changed meanwhile."""
    rows = dict(zip(keys, vectors, strict=True))
    before: dict[str, Entry] = {}
    written: set[str] = set()
    while True:
        now = {entry.sha256: entry for entry in old.entries(keys)}
        changed = [entry for key, entry in now.items() if before.get(key) != entry]
        if gone := [key for key in before if key not in now]:
            new.delete(gone)
        if not changed:
            return written & set(now)
        new.upsert(changed, [rows[entry.sha256] for entry in changed], new.space.fingerprint)
        written |= {entry.sha256 for entry in changed}
        before = now
