"""An index in a PostgreSQL table, searched by pgvector."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import numpy as np
from numpy.typing import ArrayLike

from alignet_client.retrieval.index import Entry, Hit, IndexFault, Space, Vectors, asked, checked

try:
    import psycopg
    from psycopg import conninfo, pq, sql
    from psycopg.types.json import Jsonb
except ImportError as error:
    raise ImportError("pgvector needs psycopg; run: pip install 'alignet-serve[retrieval-pgvector]'") from error

_OPERATORS: dict[str, tuple[LiteralString, LiteralString]] = {
    "dot": ("<#>", "vector_ip_ops"),
    "cosine": ("<=>", "vector_cosine_ops"),
}
"""Distance operator and operator class by the space's similarity; `<#>` is the dot product with its sign changed."""

MOST_INDEXED = 2000
"""Numbers of a vector that pgvector's HNSW takes; longer ones are compared with every row."""

_MOST_EF = 1000
_ITERATIVE = "hnsw.iterative_scan"


class PgVectorIndex:
    """A table `(id, sha256, payload, fingerprint, embedding)` with an HNSW index.

    The database itself refuses a mixture: the column `fingerprint` has a CHECK for the one value. The space is the
    table's comment, so whoever finds the table finds whose vectors it holds.

    Args:
        dsn: as libpq takes it: `postgresql://user@host/database`, or `host=... dbname=...`.
        table: made if it is not there; a table of the search path, or SCHEMA.TABLE.
        space: of the vectors; None: that of the table, which must be there.
        ef_search: candidates that HNSW keeps, at least; more finds more and takes longer.

    Raises:
        WrongSpace: the table holds vectors of another space.
        IndexFault: there is no such table, it is none of ours, or the database cannot be reached or has no pgvector,
            or one before 0.8.
    """

    def __init__(self, dsn: str, table: str = "photos", space: Space | None = None, *, ef_search: int = 100) -> None:
        self._name, self._ef = table, ef_search
        self._place = f"pgvector:{_without_secrets(dsn)}#{table}"
        self._table = sql.Identifier(*table.split("."))
        try:
            self._connection = psycopg.connect(dsn, autocommit=True)
        except psycopg.OperationalError as error:
            raise IndexFault(f"{self.place}: {str(error).strip()}") from error
        self._guard = threading.RLock()
        try:
            self._space = self._made(space)
            self._require_iterative_scans()
        except BaseException:
            self._connection.close()
            raise

    @property
    def place(self) -> str:
        """As `open_index` takes it, in the form `host=... dbname=...`, without passwords."""
        return self._place

    @property
    def space(self) -> Space:
        """Of all its vectors."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: ArrayLike, fingerprint: str) -> None:
        """As `Index.upsert`, in one transaction."""
        rows, found = checked(self.space, entries, vectors, fingerprint)
        values = [
            (row.id, row.sha256, Jsonb(row.payload), fingerprint, vector.tolist())
            for row, vector in zip(rows, found, strict=True)
        ]
        values.sort(key=lambda row: str(row[0]))  # writers that lock rows in one order never wait for each other
        query = self._sql(
            "INSERT INTO {table} (id, sha256, payload, fingerprint, embedding) VALUES (%s, %s, %s, %s, %s::real[]) "
            "ON CONFLICT (id) DO UPDATE SET payload = EXCLUDED.payload, embedding = EXCLUDED.embedding"
        )
        with self._asked() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(query, values)

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """As `Index.search`; approximate, as HNSW is."""
        queries = asked(self.space, vectors, k, fingerprint)
        operator = sql.SQL(_OPERATORS[self.space.similarity][0])
        query = self._sql(
            "SELECT sha256, payload, embedding {operator} %(query)s::real[]::vector AS distance FROM {table} "
            "ORDER BY embedding {operator} %(query)s::real[]::vector LIMIT %(k)s",
            operator=operator,
        )
        # Without these two, HNSW gives at most 40 rows, however many are asked for.
        ef = f"SET LOCAL hnsw.ef_search = {min(max(self._ef, k), _MOST_EF)}".encode()
        with self._asked() as connection, connection.transaction():
            connection.execute(ef)
            connection.execute(f"SET LOCAL {_ITERATIVE} = strict_order".encode())
            answers = [connection.execute(query, {"query": one.tolist(), "k": k}).fetchall() for one in queries]
        base = 1.0 if self.space.similarity == "cosine" else 0.0
        return [[Hit(Entry(key, payload), base - distance) for key, payload, distance in rows] for rows in answers]

    def entries(self, sha256s: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Index.entries`."""
        with self._asked() as connection:
            if sha256s is None:
                rows = connection.execute(self._sql("SELECT sha256, payload FROM {table}")).fetchall()
            else:
                ids = [Entry(sha256).id for sha256 in sha256s]
                query = self._sql("SELECT sha256, payload FROM {table} WHERE id = ANY(%s::uuid[])")
                rows = connection.execute(query, (ids,)).fetchall()
        yield from (Entry(*row) for row in rows)

    def fetch(self, sha256s: Sequence[str]) -> tuple[list[Entry], Vectors]:
        """As `Index.fetch`, as they were given."""
        query = self._sql("SELECT sha256, payload, embedding::real[] FROM {table} WHERE id = ANY(%s::uuid[])")
        with self._asked() as connection:
            rows = connection.execute(query, ([Entry(sha256).id for sha256 in sha256s],)).fetchall()
        vectors = np.array([row[2] for row in rows], np.float32).reshape(-1, self.space.size)
        return [Entry(*row[:2]) for row in rows], vectors

    def delete(self, sha256s: Sequence[str]) -> None:
        """As `Index.delete`."""
        ids = [Entry(sha256).id for sha256 in sha256s]
        with self._asked() as connection:
            connection.execute(self._sql("DELETE FROM {table} WHERE id = ANY(%s::uuid[])"), (ids,))

    def __len__(self) -> int:
        """How many there are."""
        with self._asked() as connection:
            row = connection.execute(self._sql("SELECT count(*) FROM {table}")).fetchone()
        return int(row[0]) if row else 0

    def flush(self) -> None:
        """Nothing to do: every write was committed."""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _asked(self) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
        """The connection, for one thread at a time. Raises IndexFault where it breaks."""
        with self._guard:
            try:
                yield self._connection
            except psycopg.OperationalError as error:
                raise IndexFault(f"{self.place}: {str(error).strip()}; open the index again") from error

    def _sql(self, text: LiteralString, **more: Any) -> sql.Composed:
        return sql.SQL(text).format(table=self._table, **more)

    def _made(self, space: Space | None) -> Space:
        """The space of the table, which is made if it is not there."""
        with self._connection.transaction():
            # Two processes that start at once must not both make it.
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"alignet {self._name}",))
            name = self._table.as_string(self._connection)
            row = self._connection.execute(
                "SELECT to_regclass(%s)::oid, obj_description(to_regclass(%s), 'pg_class')", (name, name)
            ).fetchone()
            if row is not None and row[0] is not None:
                return Space.read(row[1] or "null", f"table {self._name}").same_as(space, f"table {self._name}")
            if space is None:
                raise IndexFault(f"{self.place}: there is no table of this name")
            try:
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error as error:
                raise IndexFault(f"{self.place}: no pgvector in this database: {str(error).strip()}") from error
            for statement in self._statements(space):
                self._connection.execute(statement)
        return space

    def _require_iterative_scans(self) -> None:
        """Raises IndexFault where pgvector has none.

        The database itself says so at a search only in some sessions: until it has loaded the library, it takes any
        setting.
        """
        loaded = f"SELECT '[0]'::vector IS NULL, current_setting('{_ITERATIVE}', true)".encode()
        try:
            row = self._connection.execute(loaded).fetchone()
        except psycopg.Error as error:
            raise IndexFault(f"{self.place}: no pgvector on the search path: {str(error).strip()}") from error
        if row is None or row[1] is None:
            query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            (version,) = self._connection.execute(query).fetchone() or ("of no version",)
            raise IndexFault(f"{self.place}: pgvector {version}; expected 0.8 or newer, update it in the database")

    def _statements(self, space: Space) -> Iterator[sql.Composed]:
        yield self._sql(
            "CREATE TABLE {table} (id uuid PRIMARY KEY, sha256 text NOT NULL, payload jsonb NOT NULL, "
            "fingerprint text NOT NULL CHECK (fingerprint = {mark}), embedding vector({size}) NOT NULL)",
            mark=sql.Literal(space.fingerprint),
            size=sql.Literal(space.size),
        )
        if space.size <= MOST_INDEXED:
            classes = sql.SQL(_OPERATORS[space.similarity][1])
            yield self._sql("CREATE INDEX ON {table} USING hnsw (embedding {classes})", classes=classes)
        yield self._sql("COMMENT ON TABLE {table} IS {about}", about=sql.Literal(space.written()))


def _without_secrets(dsn: str) -> str:
    """A connection string with what libpq itself would show alone. Raises IndexFault, which does not repeat it."""
    try:
        options = pq.Conninfo.parse(dsn.encode())
    except psycopg.Error:
        raise IndexFault(
            "pgvector: libpq cannot read the connection string; expected postgresql://USER@HOST/DATABASE, with @ : / # "
            "in a password written %40 %3A %2F %23, or host=HOST user=USER dbname=DATABASE"
        ) from None
    shown = {one.keyword.decode(): one.val.decode() for one in options if one.val is not None and one.dispchar == b""}
    return conninfo.make_conninfo("", **shown)
