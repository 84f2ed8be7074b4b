"""An index moves to another space while it is used: re-embedding, dual writes, and the switch."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignet_client import Client
from alignet_client.__main__ import main
from alignet_client.migration import Bridged, Dual, NotComplete, fit, lacking, map_documents, reembed
from alignet_client.retrieval import Embedder, Entry, Index, IndexFault, Space, WrongSpace, add_photos, open_index
from tests.toy import encoded, photo

Place = Callable[[str], str]
OLD = Space("0" * 32, 4, "dot", "toy", "base")
NEW = Space("1" * 32, 4, "dot", "toy", "aligned")
N = 12


@pytest.fixture
def folder(tmp_path: Path, live: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNET_URL", live)
    (tmp_path / "photos").mkdir()
    for seed in range(N):
        (tmp_path / "photos" / f"{seed:02}.png").write_bytes(encoded(photo(seed)))
    return tmp_path / "photos"


@pytest.fixture
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


@pytest.fixture
def both(place: Place) -> Iterator[tuple[Index, Index]]:
    """An empty index of each of two toy spaces."""
    with ExitStack() as stack:
        old, new = (stack.enter_context(closing(open_index(place(s.name), s))) for s in (OLD, NEW))
        yield old, new


def entry(name: str) -> Entry:
    return Entry(hashlib.sha256(name.encode()).hexdigest(), {"name": name})


def two(n: int) -> dict[str, Any]:
    """Vectors of each space."""
    rng = np.random.default_rng(n)
    return {space.fingerprint: rng.normal(size=(n, space.size)).astype(np.float32) for space in (OLD, NEW)}


def snapshot(index: Index) -> dict[str, Any]:
    """Payload and vector by content."""
    found, rows = index.fetch([entry.sha256 for entry in index.entries()])
    return {one.sha256: (one.payload, row.tolist()) for one, row in zip(found, rows, strict=True)}


KILLED = """
import os, signal, sys
from contextlib import closing
from pathlib import Path
from alignet_client import Client
from alignet_client.migration import reembed
from alignet_client.retrieval import Embedder, open_index

done = 0
def told(n):
    global done
    done += n
    if done >= 6:
        os.kill(os.getpid(), signal.SIGKILL)
url, old, new, folder = sys.argv[1:]
embedder = Embedder.of(Client(url))
reembed(open_index(old, write=False), open_index(new, embedder.space), embedder, Path(folder), batch=2, flush=2,
        progress=lambda total: told)
"""


def test_a_killed_re_embedding_goes_on_to_the_same_index(place: Place, folder: Path, client: Client, live: str) -> None:
    base, aligned = Embedder.of(client, "base"), Embedder.of(client)
    with closing(open_index(place("old"), base.space)) as old:
        add_photos(old, base, folder)
        old.upsert([Entry(one.sha256, {**one.payload, "price": 7}) for one in old.entries()][:1],
                   old.fetch([next(iter(old.entries())).sha256])[1], base.space.fingerprint)  # fmt: skip
    command = [sys.executable, "-c", KILLED, live, place("old"), place("new"), str(folder)]
    assert subprocess.run(command, timeout=120).returncode == -9
    (folder / "00.png").rename(folder / "renamed.png")
    with closing(open_index(place("old"))) as old, closing(open_index(place("new"))) as new:
        kept = len(new)
        assert 4 <= kept < N
        done = reembed(old, new, aligned, folder)
        assert (done.total, done.known, done.embedded, done.missing) == (N, kept, N - kept, [])
        with closing(open_index(place("straight"), aligned.space)) as straight:
            reembed(old, straight, aligned, folder)
            assert snapshot(new) == snapshot(straight)
        assert {k: v[0] for k, v in snapshot(new).items()} == {k: v[0] for k, v in snapshot(old).items()}


def test_lost_and_bad_photos_are_named_and_hold_up_the_switch(
    place: Place, folder: Path, client: Client, tmp_path: Path
) -> None:
    base, aligned = Embedder.of(client, "base"), Embedder.of(client)
    with closing(open_index(place("old"), base.space)) as old, closing(open_index(place("new"), aligned.space)) as new:
        add_photos(old, base, folder)
        (folder / "03.png").unlink()
        (folder / "other.png").write_bytes(encoded(photo(99)))  # not of the index, so not of the migration
        done = reembed(old, new, aligned, folder)
        (lost,) = done.missing
        assert [one.payload["paths"] for one in old.entries([lost])] == [["03.png"]]
        assert (done.embedded, len(new)) == (N - 1, N - 1)
        dual = Dual(old, new, tmp_path / "state.json")
        with pytest.raises(NotComplete, match=f"lacks 1 of {N} contents, the first {lost}"):
            dual.switch()
        assert dual.reads == "old"
        dual.switch(without=1)
        assert dual.reads == "new"


def test_a_photo_that_changes_while_it_moves_is_missing_and_not_taken_for_another(
    folder: Path, client: Client, tmp_path: Path
) -> None:
    def meanwhile(count: int) -> Callable[[int], object]:
        (folder / "03.png").write_bytes(encoded(photo(99)))
        return lambda done: done

    base, aligned = Embedder.of(client, "base"), Embedder.of(client)
    old, new = (open_index(f"faiss:{tmp_path / one.space.name}", one.space) for one in (base, aligned))
    with closing(old), closing(new):
        add_photos(old, base, folder)
        done = reembed(old, new, aligned, folder, progress=meanwhile)
        (missing,) = old.entries(done.missing)
        assert missing.payload["paths"] == ["03.png"]
        assert [(one.path, one.code) for one in done.refused] == [("03.png", "changed_file")]
        assert (done.embedded, len(new)) == (N - 1, N - 1)


def test_a_migration_to_the_same_space_is_none(place: Place, folder: Path, client: Client, tmp_path: Path) -> None:
    base, aligned = Embedder.of(client, "base"), Embedder.of(client)
    with closing(open_index(place("a"), base.space)) as a, closing(open_index(place("b"), base.space)) as b:
        with pytest.raises(WrongSpace, match="nothing to migrate"):
            reembed(a, b, base, folder)
        with pytest.raises(WrongSpace, match="nothing to migrate"):
            Dual(a, b, tmp_path / "state.json")
        with pytest.raises(WrongSpace, match="aligned of toy"):
            reembed(a, b, aligned, folder)


def test_writes_reach_both_and_queries_the_index_of_their_space(both: tuple[Index, Index], tmp_path: Path) -> None:
    old, new = both
    dual = Dual(old, new, tmp_path / "state.json")
    rows = two(3)
    names = [entry(name) for name in "abc"]
    dual.upsert(names, rows)
    with pytest.raises(WrongSpace, match="expected"):
        dual.upsert(names, {OLD.fingerprint: rows[OLD.fingerprint]})
    with pytest.raises(ValueError, match="3 entries"):
        dual.upsert(names, rows | {OLD.fingerprint: rows[OLD.fingerprint][:2]})
    assert dual.space == OLD
    with pytest.raises(WrongSpace, match="embed it in the old one"):
        dual.search(rows[NEW.fingerprint], 1, NEW.fingerprint)
    dual.switch()
    assert dual.space == NEW
    for space in (OLD, NEW):  # a query embedded just before the switch is answered too
        found = dual.search(rows[space.fingerprint], 3, space.fingerprint)
        assert {hit.entry.payload["name"] for hit in found[0]} == set("abc")
    dual.delete([names[0].sha256])
    assert (len(old), len(new)) == (2, 2)
    dual.back()
    assert (Dual(old, new, tmp_path / "state.json").reads, dual.space) == ("old", OLD)


def test_nothing_is_lost_and_every_search_is_answered_while_it_moves(
    place: Place, folder: Path, client: Client, tmp_path: Path
) -> None:
    base, aligned = Embedder.of(client, "base"), Embedder.of(client)
    spaces = {one.space.fingerprint: one for one in (base, aligned)}
    fresh = [encoded(photo(100 + i)) for i in range(4)]
    rows = {mark: one.embed(fresh) for mark, one in spaces.items()}
    queries = {mark: one.embed(fresh[:1]) for mark, one in spaces.items()}
    faults: list[BaseException] = []
    answered: set[str] = set()
    over = threading.Event()
    with closing(open_index(place("old"), base.space)) as old, closing(open_index(place("new"), aligned.space)) as new:
        add_photos(old, base, folder)
        gone = hashlib.sha256((folder / "05.png").read_bytes()).hexdigest()
        dual = Dual(old, new, tmp_path / "state.json")

        def ask() -> None:
            try:
                while not over.is_set() or len(answered) < 2:
                    mark = dual.space.fingerprint
                    assert len(dual.search(queries[mark], 3, mark)[0]) == 3
                    answered.add(mark)
            except BaseException as error:
                faults.append(error)

        def write(total: int) -> Callable[[int], None]:
            def told(n: int, steps: Iterator[int] = iter(range(N))) -> None:  # noqa: B008
                step = next(steps)  # between the batches of the re-embedding
                if step < 4:
                    one = Entry(hashlib.sha256(fresh[step]).hexdigest(), {"fresh": step})
                    dual.upsert([one], {mark: found[step : step + 1] for mark, found in rows.items()})
                if step == 2:
                    dual.delete([gone])

            return told

        thread = threading.Thread(target=ask)
        thread.start()
        reembed(old, new, aligned, folder, batch=3, progress=write)
        dual.switch()
        over.set()
        thread.join(60)
        assert (faults, answered) == ([], set(spaces))
        assert set(snapshot(old)) == set(snapshot(new))
        assert len(new) == N + 4 - 1
        assert {one.payload.get("fresh") for one in new.entries()} == {None, 0, 1, 2, 3}


def test_what_was_deleted_while_it_was_embedded_stays_deleted(
    both: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignet_client.migration import reembed as moving

    module = sys.modules[moving.__module__]
    old, new = both
    names = [entry(name) for name in "abc"]
    old.upsert(names, two(3)[OLD.fingerprint], OLD.fingerprint)
    write = new.upsert

    def slow(*arguments: Any) -> None:
        write(*arguments)
        old.delete([names[0].sha256])
        if names[1].payload == {"name": "b"}:
            names[1] = Entry(names[1].sha256, {"name": "changed"})
            old.upsert([names[1]], two(3)[OLD.fingerprint][:1], OLD.fingerprint)

    monkeypatch.setattr(new, "upsert", slow)
    module._write(old, new, [one.sha256 for one in names], two(3)[NEW.fingerprint])
    assert {one.payload["name"] for one in new.entries()} == {"changed", "c"}
    assert lacking(old, new) == []


def test_before_the_switch_a_bridge_answers_queries_of_the_new_space(tmp_path: Path) -> None:
    rows = two(80)
    x, y = rows[OLD.fingerprint], rows[OLD.fingerprint] * 2 + 1
    bridge = fit(x, y, OLD, NEW)
    with ExitStack() as stack:
        old, new, mapped = (
            stack.enter_context(closing(open_index(f"faiss:{tmp_path / name}", space)))
            for name, space in (("old", OLD), ("new", NEW), ("mapped", bridge.space))
        )
        old.upsert([entry(str(i)) for i in range(80)], x, OLD.fingerprint)
        map_documents(old, bridge, mapped)
        dual = Dual(old, new, tmp_path / "state.json", bridged=Bridged(mapped, bridge))
        found = dual.search(y[:1], 1, NEW.fingerprint)
        assert found[0][0].entry == entry(str(int(np.argmax(y @ y[0]))))
        new.upsert([entry("0")], y[:1], NEW.fingerprint)
        with pytest.raises(WrongSpace, match="the bridge answers"):
            Dual(old, new, tmp_path / "other.json", bridged=Bridged(new, bridge))


def test_another_process_sees_the_switch_and_a_wrong_state_is_refused(
    both: tuple[Index, Index], tmp_path: Path
) -> None:
    old, new = both
    state = tmp_path / "state.json"
    one, other = Dual(old, new, state), Dual(old, new, state)
    one.switch()
    assert other.reads == "new"
    stored = json.loads(state.read_text())
    state.write_text(json.dumps(stored | {"old": "another"}))
    with pytest.raises(WrongSpace, match="another"):
        Dual(old, new, state)
    state.write_text("{}")
    with pytest.raises(IndexFault, match="no state of a migration"):
        Dual(old, new, state)


def test_the_commands_migrate_bridge_and_map(folder: Path, tmp_path: Path, capsys: Any) -> None:
    for seed in range(N, 60):
        (folder / f"{seed}.png").write_bytes(encoded(photo(seed)))
    old, new, mapped = (f"faiss:{tmp_path / name}" for name in ("old", "new", "mapped"))
    bridge = str(tmp_path / "bridge.npz")
    state = tmp_path / "state.json"
    assert main(["index", str(folder), "--to", old, "--space", "base"]) == 0
    assert main(["bridge", str(folder), "--from", "base", "--to", "toy/aligned", "--out", bridge, "-k", "5"]) == 0
    assert "recall@5 among 12 held-out photos" in capsys.readouterr().out
    assert main(["map", "--from", old, "--bridge", bridge, "--to", mapped]) == 0
    assert main(["migrate", str(folder), "--from", old, "--to", new, "--switch", str(state)]) == 0
    assert "60 photos embedded, 0 done before, of 60; 0 have no good photo" in capsys.readouterr().out
    assert json.loads(state.read_text())["reads"] == "new"
    results = []
    for place, more in ((new, []), (mapped, ["--bridge", bridge])):
        assert main(["search", str(folder / "07.png"), "--in", place, "--json", *more]) == 0
        results.append([one["paths"] for one in json.loads(capsys.readouterr().out)["results"]])
    assert results[0] == results[1]  # the toy's aligned space is an affine map of its base space
