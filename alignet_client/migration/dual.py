"""Both indexes of a migration at once: every write goes to both, and one file says which is read."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike

from alignet_client.files import whole
from alignet_client.migration.bridge import Bridged
from alignet_client.migration.reembed import lacking
from alignet_client.retrieval.index import Entry, Hit, Index, IndexFault, Space, WrongSpace, checked

Side = Literal["old", "new"]


class NotComplete(IndexFault):
    """The new index lacks contents of the old one, so it cannot be switched to."""


class Dual:
    """The old and the new index of a migration, until the old one is given up.

    Every program that writes must write through this, from before the re-embedding starts. Programs on several
    machines share the state file, or each is told by its own; it is replaced whole, and looked at with every call.

    Args:
        old: read until the switch.
        new: of another space.
        state: JSON file; made if it is not there.
        bridged: answers queries of the new space until the switch, across a bridge.

    Raises:
        WrongSpace: both are of one space, `bridged` answers others than the new one's, or the file is of two other
            spaces.
        IndexFault: the file is no such state.
    """

    def __init__(self, old: Index, new: Index, state: Path | str, *, bridged: Bridged | None = None) -> None:
        self.old, self.new, self._state, self._bridged = old, new, Path(state), bridged
        if old.space.fingerprint == new.space.fingerprint:
            raise WrongSpace(f"{old.place} and {new.place} are of the same space; there is nothing to migrate")
        if bridged is not None and bridged.space.fingerprint != new.space.fingerprint:
            raise WrongSpace(
                f"the bridge answers queries of {bridged.space.fingerprint!r}; "
                f"expected those of the new index, {new.space.fingerprint!r}"
            )
        self._seen: tuple[int, int] | None = None
        self._reads: Side = "old"
        if not self._state.exists():
            self._write("old")
        for side, index in (("old", old), ("new", new)):
            if self._stored()[side] != index.space.fingerprint:
                raise WrongSpace(
                    f"{self._state} is of a migration whose {side} space is {self._stored()[side]!r}; "
                    f"{index.place} holds {index.space.fingerprint!r}"
                )

    @property
    def reads(self) -> Side:
        """Which index is read now."""
        status = self._state.stat()
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            self._reads = self._stored()["reads"]
            self._seen = seen
        return self._reads

    @property
    def space(self) -> Space:
        """Of the index that is read now: embed queries in this one."""
        return (self.old if self.reads == "old" else self.new).space

    def upsert(self, entries: Sequence[Entry], vectors: Mapping[str, ArrayLike]) -> None:
        """Write to both indexes. After an error either may have it; write it again.

        Args:
            entries: one a row.
            vectors: by fingerprint, [n, d] of each of the two spaces.

        Raises:
            WrongSpace: not vectors of exactly these two spaces.
            ValueError: not a vector an entry, another size, or not finite.
        """
        sides = (self.new, self.old)  # in this order whatever is in the old one is in the new one, for the switch
        wanted = {index.space.fingerprint for index in sides}
        if set(vectors) != wanted:
            raise WrongSpace(f"vectors of {sorted(vectors)} were given; expected {sorted(wanted)}")
        rows = [
            checked(index.space, entries, vectors[mark], mark) for index in sides for mark in [index.space.fingerprint]
        ]
        for index, (some, found) in zip(sides, rows, strict=True):
            index.upsert(some, found, index.space.fingerprint)

    def delete(self, sha256s: Sequence[str]) -> None:
        """Remove contents from both; from the old one first, as re-embedding looks there."""
        self.old.delete(sha256s)
        self.new.delete(sha256s)

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """As `Index.search`, in the index whose space the queries are of.

        A query of the old space is answered after the switch too, so one that was embedded just before it is not
        lost. One of the new space is answered by the bridge before the switch.

        Raises:
            WrongSpace: the queries are of neither space, or of the new one before the switch without a bridge.
        """
        if fingerprint == self.new.space.fingerprint:
            if self.reads == "new":
                return self.new.search(vectors, k, fingerprint)
            if self._bridged is not None:
                return self._bridged.search(vectors, k, fingerprint)
            raise WrongSpace(
                f"the query is of the new space {fingerprint!r}, whose index is not complete; embed it in the old one "
                f"{self.old.space.fingerprint!r} (`Dual.space` says which), or give a bridge"
            )
        return self.old.search(vectors, k, fingerprint)

    def switch(self, *, without: int = 0) -> None:
        """Read the new index from now on.

        Args:
            without: contents that it may lack, because their photos are lost.

        Raises:
            NotComplete: it lacks more.
        """
        self.new.flush()
        lack = lacking(self.old, self.new)
        if len(lack) > without:
            raise NotComplete(
                f"{self.new.place} lacks {len(lack)} of {len(self.old)} contents, the first {lack[0]}; "
                f"re-embed them, or switch without them (without={len(lack)})"
            )
        self._write("new")

    def back(self) -> None:
        """Read the old index again; it has had every write."""
        self._write("old")

    def _stored(self) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = json.loads(self._state.read_text())
            if stored["format"] != "alignet-migration" or stored["reads"] not in ("old", "new"):
                raise ValueError(f"format {stored['format']!r}, reads {stored['reads']!r}")
            _ = stored["old"], stored["new"]
        except (ValueError, KeyError, TypeError) as error:
            raise IndexFault(f"{self._state} is no state of a migration: {error!r}") from error
        return stored

    def _write(self, reads: Side) -> None:
        state = {
            "format": "alignet-migration",
            "reads": reads,
            "old": self.old.space.fingerprint,
            "new": self.new.space.fingerprint,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": os.getpid(),
        }
        with whole(self._state) as stream:
            stream.write((json.dumps(state, indent=2) + "\n").encode())
