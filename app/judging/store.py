"""Sessions, trials and choices in one SQLite file: what is acknowledged is on the disk.

Every change is one transaction, with a write-ahead log and a sync of the disk before it returns (`synchronous=FULL`).
So a choice that was acknowledged outlives `kill -9` and a power cut. Several processes may use one file of a local
disk; a network file system does not lock as SQLite needs it.

A session is known by a digest of the token that the participant's browser holds: who can read the file, or an export,
cannot go on in anybody's name. Days are stored, not times of day; a trial has the time at which it was handed out only
until it is answered.
"""

import datetime
import hashlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app.judging.choosing import Chosen, Key, Kind

SCHEMA = 1
"""Version of the tables, as `PRAGMA user_version` has it."""

CLOCK_MS = 2000.0
"""By how much the clocks of browser and server may differ over one trial."""

BUSY_SECONDS = 10.0
"""How long a transaction waits for another process's."""

_TABLES = """
CREATE TABLE items (
    item INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, path TEXT NOT NULL
) STRICT;
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, day TEXT NOT NULL, consent_sha256 TEXT NOT NULL,
    code TEXT
) STRICT;
CREATE TABLE trials (
    trial TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions (session) ON DELETE CASCADE,
    number INTEGER NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL,
    item_0 INTEGER NOT NULL REFERENCES items (item), view_0 INTEGER NOT NULL,
    item_1 INTEGER NOT NULL REFERENCES items (item), view_1 INTEGER NOT NULL,
    item_2 INTEGER NOT NULL REFERENCES items (item), view_2 INTEGER NOT NULL,
    p_0 REAL, p_1 REAL, p_2 REAL, entropy REAL, expected INTEGER, fingerprint TEXT NOT NULL,
    handed REAL, looks INTEGER NOT NULL DEFAULT 1,
    answered INTEGER NOT NULL DEFAULT 0, odd INTEGER, rt_ms REAL, server_ms REAL, input TEXT,
    UNIQUE (session, number)
) STRICT, WITHOUT ROWID;
"""


class StoreError(RuntimeError):
    """A database that is not this program's, or of a newer one."""


class SessionsFull(RuntimeError):
    """The study has as many sessions as it takes."""


class NoSuchTrial(LookupError):
    """No trial of that id in that session."""


class AnotherChoice(ValueError):
    """The trial has an answer already, and it is another one."""


class ImpossibleTime(ValueError):
    """A choice that took longer than its trial has been out, by more than two clocks may differ."""


@dataclass(frozen=True)
class Session:
    """One participant: `number` counts from 0, `session` is the digest of the token."""

    number: int
    session: str
    day: str
    consent_sha256: str
    code: str | None


@dataclass(frozen=True)
class Answer:
    """What came of a trial.

    Attributes:
        odd: position 0, 1, 2 from left to right; None if time was over.
        rt_ms: from the onset of the photos to the choice, by the browser's clock.
        server_ms: from handing the trial out to the choice, by the server's: never less, but for its own clock.
        input: key or pointer.
    """

    odd: int | None
    rt_ms: float
    server_ms: float
    input: str


@dataclass(frozen=True)
class Trial:
    """One trial of a session; `looks` is how often it was handed out, more than 1 where the page was loaded again."""

    trial: str
    session: str
    number: int
    kind: Kind
    chosen: Chosen
    fingerprint: str
    handed: float | None = None
    looks: int = 1
    answer: Answer | None = None

    @property
    def right(self) -> bool | None:
        """Whether the answer is the obvious one; None where nothing is."""
        expected = self.chosen.expected
        return None if expected is None or self.answer is None else self.answer.odd == expected


def digest(token: str) -> str:
    """How a session's token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


class Store:
    """The database of one study. All calls come from one thread at a time.

    Args:
        file: made if it is not there, in a folder that is.
        write: False opens an existing file for reading only.

    Raises:
        StoreError: another program's file, or of a newer version.
    """

    def __init__(self, file: Path, *, write: bool = True) -> None:
        if not write and not file.is_file():
            raise StoreError(f"there is no database at {file}; nothing has been collected.")
        self._file = file
        mode = "rwc" if write else "rw"  # the log beside the file is read with a lock, which writes
        self._db = sqlite3.connect(
            f"file:{quote(str(file.resolve()))}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        try:
            self._prepare(write)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StoreError(f"{file} is no database of this program: {error}.") from error
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _prepare(self, write: bool) -> None:
        db = self._db
        db.execute("PRAGMA foreign_keys = ON")
        if write:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")  # what a participant takes back is overwritten
        with self._change() if write else self.reading():
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if write and version == 0 and tables == 0:
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise StoreError(f"{self._file} has tables of version {version}; this program knows version {SCHEMA}.")
        if write:
            db.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when the block ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What is read inside is of one moment, whatever is stored meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def register(self, photos: Sequence[tuple[str, str]]) -> list[int]:
        """The number of each photo (path, sha256); new contents get the next numbers, which never change."""
        with self._change() as db:
            for path, sha256 in photos:
                db.execute(
                    "INSERT INTO items SELECT coalesce(max(item) + 1, 0), ?, ? FROM items WHERE true "
                    "ON CONFLICT (sha256) DO UPDATE SET path = excluded.path WHERE path != excluded.path",
                    (sha256, path),
                )
            known: dict[str, int] = dict(db.execute("SELECT sha256, item FROM items"))
        return [known[sha256] for _, sha256 in photos]

    def items(self) -> list[tuple[int, str, str]]:
        """(number, sha256, path) of every photo that was ever registered, by number."""
        return list(self._db.execute("SELECT item, sha256, path FROM items ORDER BY item"))

    def begin(self, token: str, consent_sha256: str, code: str | None, most: int) -> Session:
        """A new session. Raises SessionsFull: there are `most` already."""
        with self._change() as db:
            count, number = db.execute("SELECT count(*), coalesce(max(number) + 1, 0) FROM sessions").fetchone()
            if count >= most:
                raise SessionsFull(f"the study has {count} sessions, and takes {most}.")
            day = datetime.datetime.now(datetime.UTC).date().isoformat()
            session = Session(number, digest(token), day, consent_sha256, code)
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (number, session.session, day, consent_sha256, code)
            )
        return session

    def session(self, token: str) -> Session | None:
        """The session of a token."""
        row = self._db.execute("SELECT * FROM sessions WHERE session = ?", (digest(token),)).fetchone()
        return Session(*row) if row else None

    def sessions(self) -> list[Session]:
        """All of them, the oldest first."""
        return [Session(*row) for row in self._db.execute("SELECT * FROM sessions ORDER BY number")]

    def withdraw(self, session: Session) -> int:
        """Delete a session with all its trials; how many had been answered."""
        with self._change() as db:
            query = "SELECT count(*) FROM trials WHERE session = ? AND answered"
            answered: int = db.execute(query, (session.session,)).fetchone()[0]
            db.execute("DELETE FROM sessions WHERE session = ?", (session.session,))
        return answered

    def add(self, trial: Trial) -> Trial:
        """Keep a trial before it is shown; if the session has one of that number already, that one is given."""
        c = trial.chosen
        p = c.probabilities or (None, None, None)
        shown = [value for pair in zip(c.items, c.views, strict=True) for value in pair]
        with self._change() as db:
            db.execute(
                "INSERT INTO trials (trial, session, number, kind, source, item_0, view_0, item_1, view_1, item_2, "
                "view_2, p_0, p_1, p_2, entropy, expected, fingerprint, handed) VALUES "
                "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session, number) DO NOTHING",
                (trial.trial, trial.session, trial.number, trial.kind, c.source, *shown, *p, c.entropy, c.expected,
                 trial.fingerprint, time.time()),
            )  # fmt: skip
        return self._one("session = ? AND number = ?", (trial.session, trial.number))

    def look(self, session: Session) -> Trial | None:
        """The trial that waits for an answer, counted as handed out once more; None if there is none."""
        with self._change() as db:
            found = db.execute(
                "UPDATE trials SET looks = looks + 1, handed = ? WHERE session = ? AND NOT answered RETURNING trial",
                (time.time(), session.session),
            ).fetchall()
        return self._one("trial = ?", found[0]) if found else None

    def trial(self, trial: str) -> Trial | None:
        """The trial of an id."""
        try:
            return self._one("trial = ?", (trial,))
        except NoSuchTrial:
            return None

    def choose(self, session: Session, trial: str, odd: int | None, rt_ms: float, by: str) -> tuple[Trial, bool]:
        """Store a choice, on the disk when this returns.

        Returns:
            the trial, and whether the choice is new: the same choice may come again, where its reply was lost.

        Raises:
            NoSuchTrial: not in this session.
            AnotherChoice: the trial has another answer already; the first one counts.
            ImpossibleTime: the trial was handed out later than the choice says; it is still to be answered.
        """
        with self._change() as db:
            kept = self._one("trial = ? AND session = ?", (trial, session.session))
            if kept.answer is not None:
                if kept.answer.odd != odd:
                    raise AnotherChoice("this trial has another answer already; the first one counts.")
                return kept, False
            elapsed = (time.time() - (kept.handed or 0.0)) * 1000
            if rt_ms > elapsed + CLOCK_MS:
                raise ImpossibleTime(f"rt_ms is {rt_ms:.0f}, but the trial was handed out {elapsed:.0f} ms ago.")
            db.execute(
                "UPDATE trials SET answered = 1, odd = ?, rt_ms = ?, server_ms = ?, input = ?, handed = NULL "
                "WHERE trial = ?",
                (odd, rt_ms, elapsed, by, trial),
            )
        return self._one("trial = ?", (trial,)), True

    def trials(self, session: Session | None = None) -> list[Trial]:
        """The trials of a session, or of all, in order."""
        query = f"SELECT {_COLUMNS} FROM trials JOIN sessions USING (session)"  # noqa: S608 - constants
        query += "" if session is None else " WHERE session = ?"
        query += " ORDER BY sessions.number, trials.number"
        return [_trial(row) for row in self._db.execute(query, () if session is None else (session.session,))]

    def answered(self, session: Session) -> int:
        """How many trials of a session have been answered, in time or not."""
        query = "SELECT count(*) FROM trials WHERE session = ? AND answered"
        return int(self._db.execute(query, (session.session,)).fetchone()[0])

    def seen(self, session: Session) -> set[Key]:
        """The triplets that a session has been shown in trials that count, sorted each."""
        query = "SELECT item_0, item_1, item_2 FROM trials WHERE session = ? AND kind = 'main'"
        return {_sorted(row) for row in self._db.execute(query, (session.session,))}

    def judged(self) -> Counter[Key]:
        """How often each triplet has been judged, by its sorted numbers."""
        query = "SELECT item_0, item_1, item_2 FROM trials WHERE kind = 'main' AND odd IS NOT NULL"
        return Counter(_sorted(row) for row in self._db.execute(query))

    def _one(self, where: str, values: Sequence[object]) -> Trial:
        query = f"SELECT {_COLUMNS} FROM trials WHERE {where}"  # noqa: S608 - constants
        row = self._db.execute(query, tuple(values)).fetchone()
        if row is None:
            raise NoSuchTrial("this session has no such trial.")
        return _trial(row)


_COLUMNS = (
    "trial, session, trials.number, kind, source, item_0, item_1, item_2, view_0, view_1, view_2, p_0, p_1, p_2, "
    "entropy, expected, fingerprint, handed, looks, answered, odd, rt_ms, server_ms, input"
)


def _trial(row: tuple[object, ...]) -> Trial:
    values: list[object] = list(row)
    trial, session, number, kind, source = values[:5]
    items, views, p = (tuple(values[i : i + 3]) for i in (5, 8, 11))
    entropy, expected, fingerprint, handed, looks, answered, odd, rt_ms, server_ms, by = values[14:]
    known = None if p[0] is None else p
    chosen = Chosen(items, views, source, known, entropy, expected)  # type: ignore[arg-type]  # STRICT tables
    answer = Answer(odd, rt_ms, server_ms, by) if answered else None  # type: ignore[arg-type]
    return Trial(trial, session, number, kind, chosen, fingerprint, handed, looks, answer)  # type: ignore[arg-type]


def _sorted(row: tuple[int, int, int]) -> Key:
    a, b, c = sorted(row)
    return a, b, c
