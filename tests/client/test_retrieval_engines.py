"""The same of every engine: PostgreSQL with pgvector, Qdrant in a folder, FAISS files."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignet_client.retrieval import Entry, IndexFault, Space, WrongSpace, open_index

SIZE = 8
SPACE = Space("f" * 32, SIZE, "dot", "toy", "aligned")
OTHER = Space("e" * 32, SIZE, "dot", "toy", "base")
Place = Callable[[str], str]


def key(name: int) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def entries(*names: int) -> list[Entry]:
    return [Entry(key(name), {"paths": [f"{name}.jpg"], "n": name}) for name in names]


def vectors(n: int, seed: int = 0, size: int = SIZE) -> Any:
    return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32) * 3


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_nearest_by_the_spaces_own_measure_come_first(place: Place, similarity: str) -> None:
    space = Space("a" * 32, SIZE, similarity, "toy", "aligned")
    stored, queries = vectors(60), vectors(3, 1)
    with closing(open_index(place("photos"), space)) as index:
        index.upsert(entries(*range(60)), stored, space.fingerprint)
        found = index.search(queries, 7, space.fingerprint)
    if similarity == "cosine":
        stored, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (stored, queries))
    expected = queries @ stored.T
    for row, hits in zip(expected, found, strict=True):
        best = np.argsort(-row)[:7]
        assert [hit.entry.payload["n"] for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit.similarity for hit in hits], row[best], rtol=1e-4)


def test_a_mixed_space_is_refused(place: Place) -> None:
    with closing(open_index(place("photos"), SPACE)) as index:
        index.upsert(entries(0, 1), vectors(2), SPACE.fingerprint)
        with pytest.raises(WrongSpace, match=r"eeee.*the index holds 'ffff"):
            index.upsert(entries(2, 3), vectors(2), OTHER.fingerprint)
        with pytest.raises(WrongSpace, match="eeee"):
            index.search(vectors(1), 1, OTHER.fingerprint)
        assert len(index) == 2
    with pytest.raises(WrongSpace, match=r"base of toy"):
        open_index(place("photos"), OTHER)
    with closing(open_index(place("photos"), SPACE)) as index:
        assert len(index) == 2


def test_what_was_written_is_there_when_it_is_opened_again(place: Place) -> None:
    stored = vectors(5)
    with closing(open_index(place("photos"), SPACE)) as index:
        index.upsert(entries(*range(5)), stored, SPACE.fingerprint)
    with closing(open_index(place("photos"))) as index:
        assert index.space == SPACE
        assert {entry.sha256 for entry in index.entries()} == {key(n) for n in range(5)}
        found, rows = index.fetch([key(3), key(1), key(77)])
        assert sorted(entry.payload["n"] for entry in found) == [1, 3]
        np.testing.assert_array_equal(rows, stored[[entry.payload["n"] for entry in found]])
        assert list(index.entries([key(4), key(99)])) == entries(4)


def test_any_course_of_writes_and_deletions_is_that_of_a_dictionary(place: Place) -> None:
    rng = np.random.default_rng(0)
    model: dict[str, tuple[int, Any]] = {}
    with closing(open_index(place("photos"), SPACE)) as index:
        for step in range(25):
            names = rng.integers(0, 12, rng.integers(0, 6)).tolist()
            if step % 3 == 2:
                index.delete([key(name) for name in names])
                for name in names:
                    model.pop(key(name), None)
            else:
                rows = vectors(len(names), step)
                index.upsert(
                    [Entry(key(name), {"step": step, "i": i}) for i, name in enumerate(names)], rows, SPACE.fingerprint
                )
                model |= {key(name): (i + 100 * step, rows[i]) for i, name in enumerate(names)}
            assert len(index) == len(model)
        found, rows = index.fetch(list(model))
        assert {e.sha256: e.payload["i"] + 100 * e.payload["step"] for e in found} == {
            k: v[0] for k, v in model.items()
        }
        for entry, row in zip(found, rows, strict=True):
            np.testing.assert_array_equal(row, model[entry.sha256][1])


def test_wrong_vectors_change_nothing(place: Place) -> None:
    with closing(open_index(place("photos"), SPACE)) as index:
        for wrong in (vectors(1), vectors(2, size=7), np.full((2, SIZE), np.nan)):
            with pytest.raises(ValueError, match="vector"):
                index.upsert(entries(0, 1), wrong, SPACE.fingerprint)
        with pytest.raises(ValueError, match="k is 0"):
            index.search(vectors(1), 0, SPACE.fingerprint)
        assert len(index) == 0
        assert index.search(vectors(2), 3, SPACE.fingerprint) == [[], []]


def test_threads_share_an_index(place: Place) -> None:
    faults: list[BaseException] = []
    with closing(open_index(place("photos"), SPACE)) as index:

        def work(first: int) -> None:
            try:
                for n in range(first, first + 8):
                    index.upsert(entries(n), vectors(1, n), SPACE.fingerprint)
                    assert index.search(vectors(1, n), 1, SPACE.fingerprint)[0]
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (faults, len(index)) == ([], 32)


def test_an_index_that_is_not_there(place: Place) -> None:
    with pytest.raises(IndexFault, match="there"):
        open_index(place("nothing"))


@pytest.mark.parametrize("place", ["photos", "faiss:", "redis:localhost", "qdrant:#photos"])
def test_what_is_no_place_of_an_index(place: str) -> None:
    with pytest.raises(ValueError, match="expected faiss:FOLDER"):
        open_index(place, SPACE)


@pytest.mark.parametrize(
    ("place", "library", "module"),
    [
        ("faiss:x", "faiss", "faiss_file"),
        ("qdrant:x", "qdrant_client", "qdrant"),
        ("pgvector:postgresql:///x", "psycopg", "pgvector"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    place: str, library: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"alignet_client.retrieval.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"run: pip install 'alignet-serve\[retrieval-"):
        open_index(place, SPACE)


def test_no_engine_is_loaded_before_it_is_asked_for() -> None:
    script = "import sys, alignet_client.__main__, alignet_client.migration; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"faiss", "qdrant_client", "psycopg", "langchain_core", "llama_index", "PIL", "tqdm"} & set(loaded)


def test_a_space_that_no_engine_compares_by() -> None:
    with pytest.raises(ValueError, match="pearson"):
        Space("a", 4, "pearson", "toy", "base")


# --- pgvector ---------------------------------------------------------------------------------------


def test_the_database_itself_refuses_a_row_of_another_space(postgres: str) -> None:
    import psycopg

    with closing(open_index(f"pgvector:{postgres}#strict", SPACE)) as index:
        index.upsert(entries(0), vectors(1), SPACE.fingerprint)
    write = "INSERT INTO strict SELECT gen_random_uuid(), 'x', '{}', %s, embedding FROM strict LIMIT 1"
    with psycopg.connect(postgres) as connection:
        connection.execute(write, (SPACE.fingerprint,))
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(write, (OTHER.fingerprint,))


def test_hnsw_gives_as_many_as_are_asked_for(postgres: str) -> None:
    import psycopg

    with closing(open_index(f"pgvector:{postgres}#many", SPACE)) as index:
        index.upsert(entries(*range(400)), vectors(400), SPACE.fingerprint)
        index._connection.execute("SET enable_seqscan = off")  # type: ignore[attr-defined]
        (hits,) = index.search(vectors(1, 5), 150, SPACE.fingerprint)
        index._connection.execute("SELECT pg_stat_force_next_flush()")  # type: ignore[attr-defined]
        best = np.argsort(-(vectors(400) @ vectors(1, 5)[0]))[:150]
    assert len({hit.entry.sha256 for hit in hits}) == 150
    assert len({hit.entry.payload["n"] for hit in hits} & set(best.tolist())) > 140
    with psycopg.connect(postgres) as connection:
        (scans,) = connection.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes JOIN pg_indexes ON indexname = indexrelname "
            "WHERE indexdef ~ 'USING hnsw .embedding vector_ip_ops' AND tablename = 'many'"
        ).fetchone() or (0,)
    assert scans == 1


def test_vectors_too_long_for_hnsw_are_compared_with_every_row(postgres: str) -> None:
    space = Space("b" * 32, 2001, "cosine", "toy", "base")
    stored = vectors(5, size=2001)
    with closing(open_index(f"pgvector:{postgres}#long", space)) as index:
        index.upsert(entries(*range(5)), stored, space.fingerprint)
        assert index.search(stored[3:4], 1, space.fingerprint)[0][0].entry == entries(3)[0]


def test_a_connection_that_broke_is_said(postgres: str) -> None:
    import psycopg

    with closing(open_index(f"pgvector:{postgres}#broken", SPACE)) as index:
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        with pytest.raises(IndexFault, match="open the index again"):
            len(index)


def test_a_table_of_somebody_else_is_left_alone(postgres: str) -> None:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (id int)")
    with pytest.raises(IndexFault, match="customers says nothing of its space"):
        open_index(f"pgvector:{postgres}#customers", SPACE)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:secret@127.0.0.1:1/db",
        "postgresql://me@127.0.0.1:1/db?password=secret",
        "host=127.0.0.1 port=1 user=me dbname=db password=secret",
        "host=127.0.0.1 port=1 user=me dbname=db sslpassword='secret'",
    ],
)
def test_a_database_that_cannot_be_reached_and_a_password_that_is_not_said(dsn: str) -> None:
    with pytest.raises(IndexFault) as caught:
        open_index(f"pgvector:{dsn}", SPACE)
    for word in ("user=me", "host=127.0.0.1", "port=1", "dbname=db", "#photos"):
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["host=db password=my secret", "postgresql://me:my#secret@db/x"])
def test_a_connection_string_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises((IndexFault, ValueError), match="%23") as caught:
        open_index(f"pgvector:{dsn}", SPACE)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_place_of_an_index_opens_it_again(postgres: str) -> None:
    with closing(open_index(f"pgvector:{postgres}#placed", SPACE)) as index:
        place = index.place
    with closing(open_index(place)) as again:
        assert again.space == SPACE


def test_a_pgvector_without_iterative_scans_is_refused(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignet_client.retrieval import pgvector

    open_index(f"pgvector:{postgres}#old", SPACE).close()
    monkeypatch.setattr(pgvector, "_ITERATIVE", "hnsw.not_yet")  # as before 0.8
    for space in (SPACE, None):
        with pytest.raises(IndexFault, match=r"pgvector 0\.\d.*expected 0\.8 or newer"):
            open_index(f"pgvector:{postgres}#old", space)


# --- Qdrant -----------------------------------------------------------------------------------------


def test_a_point_that_another_program_wrote_is_never_compared(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient, models

    place = f"qdrant:{tmp_path / 'q'}"
    with closing(open_index(place, SPACE)) as index:
        index.upsert(entries(0), vectors(1), SPACE.fingerprint)
    with closing(QdrantClient(path=str(tmp_path / "q"))) as other:
        for n, payload in enumerate(({}, {"alignet": {"fingerprint": OTHER.fingerprint, "sha256": "x"}})):
            other.upsert("photos", [models.PointStruct(id=n, vector=[9.0] * SIZE, payload=payload)])
    with closing(open_index(place)) as index:
        (hits,) = index.search(np.ones((1, SIZE)), 5, SPACE.fingerprint)
        assert ([hit.entry for hit in hits], len(index)) == (entries(0), 1)


def test_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(IndexFault, match=r"qdrant:http://127.0.0.1:1#photos"):
        open_index("qdrant:http://127.0.0.1:1", SPACE)


@pytest.mark.filterwarnings("ignore")  # qdrant-client leaves the lock's file open where it is refused
def test_a_folder_that_is_open_elsewhere(tmp_path: Path) -> None:
    with closing(open_index(f"qdrant:{tmp_path}", SPACE)), pytest.raises(IndexFault, match="already accessed"):
        open_index(f"qdrant:{tmp_path}", SPACE)


# --- FAISS files ------------------------------------------------------------------------------------


def test_a_save_that_is_cut_off_anywhere_leaves_the_index_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"faiss:{tmp_path}"
    with closing(open_index(place, SPACE)) as index:
        index.upsert(entries(0), vectors(1), SPACE.fingerprint)
    for cut in range(3):
        index = open_index(place, SPACE)
        index.upsert(entries(cut + 1), vectors(1), SPACE.fingerprint)
        replaced: list[Path] = []

        def fail(file: Path, target: Path, cut: int = cut, replaced: list[Path] = replaced) -> None:
            if len(replaced) == cut:
                raise OSError("killed here")
            replaced.append(target)
            file.rename(target)

        with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
            patched.setattr(Path, "replace", fail)
            index.close()
        with closing(open_index(place)) as again:
            assert list(again.entries()) == entries(0)


def test_one_process_writes_and_others_read_what_was_saved(tmp_path: Path) -> None:
    place = f"faiss:{tmp_path}"
    with closing(open_index(place, SPACE)) as index:
        with pytest.raises(IndexFault, match="one writer"):
            open_index(place, SPACE)
        index.upsert(entries(0), vectors(1), SPACE.fingerprint)
        with closing(open_index(place, write=False)) as reader:
            assert len(reader) == 0
            with pytest.raises(IndexFault, match="opened to be read"):
                reader.upsert(entries(1), vectors(1), SPACE.fingerprint)
        index.flush()
        with closing(open_index(place, write=False)) as reader:
            assert len(reader) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".lock", "entries-000002.jsonl", "index.json", "vectors-000002.faiss",
    ]  # fmt: skip


def test_damage_is_named(tmp_path: Path) -> None:
    with closing(open_index(f"faiss:{tmp_path}", SPACE)) as index:
        index.upsert(entries(0, 1), vectors(2), SPACE.fingerprint)
    lines = tmp_path / "entries-000002.jsonl"
    content = lines.read_text()
    lines.write_text(content.splitlines()[0] + "\n")
    with pytest.raises(IndexFault, match="1 entries and 2 vectors"):
        open_index(f"faiss:{tmp_path}")
    lines.unlink()
    with pytest.raises(IndexFault, match=r"entries-000002.jsonl is not there"):
        open_index(f"faiss:{tmp_path}")
    lines.write_text(content)
    (tmp_path / "vectors-000002.faiss").write_bytes(b"nothing")
    with pytest.raises(IndexFault, match="no FAISS index"):
        open_index(f"faiss:{tmp_path}")
    about = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(about | {"alignet": {}}))
    with pytest.raises(IndexFault, match="says nothing of its space"):
        open_index(f"faiss:{tmp_path}")
