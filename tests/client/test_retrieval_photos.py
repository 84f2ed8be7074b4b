"""Photos into an index and out of it, against the live service; and the commands `alignet index` and `search`."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignet_client import Client, SpaceMismatch
from alignet_client.__main__ import main
from alignet_client.retrieval import Embedder, Space, WrongSpace, add_photos, open_index
from tests.toy import encoded, photo

Place = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path, live: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five photos, a copy of the first, and a file that is none."""
    monkeypatch.setenv("ALIGNET_URL", live)
    inner = tmp_path / "photos" / "inner"
    inner.mkdir(parents=True)
    for seed in range(5):
        (inner.parent / f"{seed}.png").write_bytes(encoded(photo(seed)))
    (inner / "copy.png").write_bytes(encoded(photo(0)))
    (inner.parent / "bad.jpg").write_bytes(b"no image")
    return inner.parent


@pytest.fixture
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


def test_an_index_answers_as_the_service_judges(place: Place, folder: Path, client: Client) -> None:
    embedder = Embedder.of(client)
    told: list[int] = []
    with closing(open_index(place("photos"), embedder.space)) as index:
        added = add_photos(index, embedder, folder, batch=2, progress=lambda n: told.append(n) or told.append)
        assert (added.embedded, added.known, [one.path for one in added.refused]) == (5, 0, ["bad.jpg"])
        assert (told[0], sum(told[2:])) == (6, 6)
        assert {"paths": ["0.png", "inner/copy.png"]} in [entry.payload for entry in index.entries()]
        (hits,) = index.search(embedder.embed([folder / "0.png"]), 3, embedder.space.fingerprint)
        stored = {hit.entry.payload["paths"][0]: hit.similarity for hit in hits}
    expected = client.similarity(queries=[folder / "0.png"], candidates=[folder / name for name in sorted(stored)])
    np.testing.assert_allclose([stored[name] for name in sorted(stored)], expected.matrix[0], rtol=1e-4)


def test_what_is_known_is_not_asked_for_again_and_new_names_are_noted(
    place: Place, folder: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder.of(client)
    (folder / "bad.jpg").unlink()
    with closing(open_index(place("photos"), embedder.space)) as index:
        add_photos(index, embedder, folder)
        (folder / "1.png").rename(folder / "renamed.png")
        monkeypatch.setattr(client, "embed_each", None)  # asking would fail
        added = add_photos(index, embedder, folder)
        assert (added.embedded, added.known) == (0, 5)
        paths = sorted(entry.payload["paths"] for entry in index.entries())
        assert paths[1] == ["1.png", "renamed.png"]
        assert len(paths) == 5


@pytest.mark.parametrize("batch", [1, 16])
def test_a_file_that_changes_once_it_is_hashed_never_has_its_vector_under_the_old_hash(
    batch: int, folder: Path, client: Client, tmp_path: Path
) -> None:
    def meanwhile(count: int) -> Callable[[int], object]:
        (folder / "0.png").write_bytes(encoded(photo(9)))
        (folder / "1.png").unlink()
        return lambda done: done

    embedder = Embedder.of(client)
    with closing(open_index(f"faiss:{tmp_path / 'index'}", embedder.space)) as index:
        added = add_photos(index, embedder, folder, batch=batch, progress=meanwhile)
        refused = {one.path: one.code for one in added.refused}
        assert (refused["0.png"], refused["1.png"]) == ("changed_file", "unreadable_file")
        assert (added.embedded, len(index)) == (3, 3)
        assert add_photos(index, embedder, folder).embedded == 2  # what it holds now, and the copy of what it held
        for name in ("0.png", "inner/copy.png"):
            (entry,), rows = index.fetch([hashlib.sha256((folder / name).read_bytes()).hexdigest()])
            assert entry.payload["paths"] == [name]
            np.testing.assert_array_equal(rows, embedder.embed([folder / name]))


def test_another_space_never_reaches_the_index(place: Place, folder: Path, client: Client) -> None:
    aligned, base = Embedder.of(client), Embedder.of(client, "base")
    with closing(open_index(place("photos"), aligned.space)) as index:
        with pytest.raises(WrongSpace, match="base of toy"):
            add_photos(index, base, folder)
        # The model behind the URL was changed since: the service itself refuses.
        stale = Space("0" * 32, aligned.space.size, "dot", "toy", "aligned")
        with pytest.raises(SpaceMismatch):
            Embedder(client, stale).embed([folder / "0.png"])
        assert len(index) == 0


def test_the_normalized_space_is_one_of_its_own(client: Client) -> None:
    plain, normalized = Embedder.of(client), Embedder.of(client, normalize=True)
    assert plain.space.fingerprint != normalized.space.fingerprint
    rows = normalized.embed([encoded(photo(0))])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def test_index_and_search_as_commands(folder: Path, place: Place, capsys: Any) -> None:
    assert main(["index", str(folder), "--to", place("photos")]) == 0
    said = capsys.readouterr()
    assert "5 photos embedded, 0 known, 1 refused" in said.out
    assert "bad.jpg: unsupported_image_format" in said.err
    assert main(["search", str(folder / "inner/copy.png"), "--in", place("photos"), "-k", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kernel"], len(answer["results"])) == ("dot", 3)
    assert ["0.png", "inner/copy.png"] in [one["paths"] for one in answer["results"]]
    assert main(["index", str(folder), "--to", place("photos"), "--space", "base"]) == 1
    assert "holds vectors of the space" in capsys.readouterr().err


def test_faults_of_the_commands_are_one_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    for arguments in (
        ["search", "a.png", "--in", f"faiss:{tmp_path / 'none'}"],
        ["index", str(folder), "--to", "nowhere"],
        ["bridge", str(folder), "--from", "base", "--to", "aligned", "--out", str(tmp_path / "b.npz")],
        ["bridge", str(folder), "--from", "other", "--to", "aligned", "--out", str(tmp_path / "b.npz")],
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("alignet: ")
