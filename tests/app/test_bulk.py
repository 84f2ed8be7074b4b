"""`python -m app bulk`: the service's own vectors, each content once, whatever kills the run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app import bulk
from app.engine import OnnxEngine
from tests.running import ROOT
from tests.toy import SIZE, encoded, photo, write_toy_bundle

pyarrow = pytest.importorskip("pyarrow.parquet", reason="the extra `bulk` is not installed")
FORMATS = ["parquet", "npy"]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Seven photos in two folders, one of them twice."""
    (tmp_path / "photos/sub").mkdir(parents=True)
    for seed in range(6):
        (tmp_path / "photos" / ("sub" if seed % 2 else "") / f"{seed}.PNG").write_bytes(encoded(photo(seed)))
    (tmp_path / "photos/again.png").write_bytes(encoded(photo(0)))
    return tmp_path / "photos"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the engine ran, without the warm-up."""
    seen: list[int] = []
    real = bulk.open_engine

    def opened(*arguments: Any, **options: Any) -> OnnxEngine:
        engine = real(*arguments, **options)
        run = engine.embed
        engine.embed = lambda pixels: (seen.append(len(pixels)), run(pixels))[1]  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(bulk, "open_engine", opened)
    return seen


def rows(out: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """Path to (columns, vector), over all parts; a path has one row."""
    found: list[tuple[dict[str, Any], Any]] = []
    for part in sorted(out.glob("part-*.parquet")):
        table = pyarrow.read_table(part).to_pylist()
        found += [(row, np.array(row.pop("vector"), np.float32)) for row in table]
    for part in sorted(out.glob("part-*.jsonl")):
        columns = [json.loads(line) for line in part.read_text().splitlines()]
        found += zip(columns, np.load(part.with_suffix(".npy")), strict=True)
    assert len({row["path"] for row, _ in found}) == len(found)
    return {row["path"]: (row, vector) for row, vector in found}


def run(toy: Path, collection: Path, *more: str) -> int:
    return bulk.main([str(collection), "--out", str(collection.parent / "out"), "--bundle", str(toy), *more])


@pytest.mark.parametrize("kind", FORMATS)
def test_vectors_are_the_services_own(kind: str, toy_bundle: Path, collection: Path, client: TestClient) -> None:
    assert run(toy_bundle, collection, "--format", kind) == 0
    found = rows(collection.parent / "out")
    assert set(found) == {f.relative_to(collection).as_posix() for f in collection.rglob("*.[pP][nN][gG]")}
    accept = {"Content-Type": "image/png", "Accept": "application/octet-stream"}
    for path, (_, vector) in found.items():
        reply = client.post("/embed", content=(collection / path).read_bytes(), headers=accept)
        assert vector.tobytes() == reply.content
    space = json.loads((collection.parent / "out/_space.json").read_text())
    assert (space["fingerprint"], space["size"]) == (reply.headers["X-Space-Fingerprint"], SIZE)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_second_run_embeds_only_content_that_is_new(
    kind: str, toy_bundle: Path, collection: Path, embedded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = collection.parent / "out", ("--format", kind, "--part", "2", "--batch", "1")
    assert run(toy_bundle, collection, *options) == 0
    assert embedded == [1] * 6  # the photo that is there twice, once
    before = rows(out)
    (collection / "0.PNG").rename(collection / "moved.png")
    (collection / "new.png").write_bytes(encoded(photo(9)))
    embedded.clear()
    capsys.readouterr()
    assert run(toy_bundle, collection, *options) == 0
    assert embedded == [1]
    assert "1 embedded, 1 reused, 6 known, 0 refused" in capsys.readouterr().out
    after = rows(out)
    assert after["moved.png"][0]["id"] == before["0.PNG"][0]["id"]
    assert after["moved.png"][1].tobytes() == before["0.PNG"][1].tobytes()


@pytest.mark.parametrize("normalize", [False, True])
def test_another_space_never_mixes_with_what_is_there(
    normalize: bool, toy_bundle: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy_bundle, collection) == 0
    other = toy_bundle if normalize else write_toy_bundle(tmp_path / "other", seed=1)
    before = rows(collection.parent / "out").keys()
    assert run(other, collection, *(["--normalize"] if normalize else [])) == 1
    assert "fingerprint" in capsys.readouterr().err
    assert rows(collection.parent / "out").keys() == before


def test_normalized_vectors_have_length_one(toy_bundle: Path, collection: Path) -> None:
    assert run(toy_bundle, collection, "--normalize") == 0
    for _, vector in rows(collection.parent / "out").values():
        assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-6


def test_files_that_are_no_photos_are_listed_and_the_rest_is_embedded(toy_bundle: Path, collection: Path) -> None:
    (collection / "bad.jpg").write_bytes(b"no photo")
    (collection / "notes.txt").write_bytes(b"not looked at")
    assert run(toy_bundle, collection) == 0
    (line,) = (collection.parent / "out/_errors-000.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "bad.jpg"
    assert "unsupported_image_format" in json.loads(line)["fault"]
    assert len(rows(collection.parent / "out")) == 7


def test_shards_share_the_files_and_meet_in_one_folder(toy_bundle: Path, collection: Path) -> None:
    assert {run(toy_bundle, collection, "--shard", f"{i}/3", "--part", "1") for i in range(3)} == {0}
    assert len(rows(collection.parent / "out")) == 7
    shares = [{f.name for f in bulk.photos(collection, i, 3)} for i in range(3)]
    assert sum(map(len, shares)) == len(set.union(*shares)) == 7


@pytest.mark.parametrize("kind", FORMATS)
def test_after_other_shards_the_row_written_last_counts(
    kind: str, toy_bundle: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {run(toy_bundle, collection, "--format", kind, "--shard", f"{i}/2", "--part", "1") for i in range(2)} == {0}
    other = bulk.photos(collection, 1, 2)[0]
    other.write_bytes(encoded(photo(8)))
    os.utime(other, ns=(0, 0))  # as of a file that was put back from a copy: older than what it replaces
    assert run(toy_bundle, collection, "--format", kind) == 0
    assert "1 embedded, 0 reused, 6 known" in capsys.readouterr().out.splitlines()[-1]
    for quick in ([], ["--quick"]):
        assert run(toy_bundle, collection, "--format", kind, *quick) == 0
        assert "0 embedded, 0 reused, 7 known" in capsys.readouterr().out


def test_quick_reads_no_file_that_did_not_change(
    toy_bundle: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(toy_bundle, collection) == 0
    (collection / "0.PNG").write_bytes(encoded(photo(8)))
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (read.append(self.name), real(self))[1])
    assert run(toy_bundle, collection, "--quick") == 0
    assert [name for name in read if name.lower().endswith(".png")] == ["0.PNG"]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_where_it_stopped(by: signal.Signals, toy_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    slow = encoded(photo(0, (1600, 1200)))  # so that the signal comes long before the end
    for seed in range(100):
        (folder / f"{seed:03d}.png").write_bytes(slow + seed.to_bytes(2))
    command = [sys.executable, "-m", "app", "bulk", str(folder), "--out", str(out), "--bundle", str(toy_bundle)]
    command += ["--part", "5", "--batch", "1", "--decode-threads", "1"]
    first = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("part-*.parquet")):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(by)
    first.wait(60)
    some = len(rows(out))
    assert 0 < some < 100
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"{100 - some} embedded, 0 reused, {some} known" in done.stdout
    assert len(rows(out)) == 100


def test_a_run_that_cannot_be_says_why(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing: Callable[[Path, Path], int] = lambda bundle, folder: run(bundle, folder / "x")  # noqa: E731
    assert missing(toy_bundle, tmp_path) == 1
    assert "is no folder" in capsys.readouterr().err
    assert run(tmp_path, tmp_path) == 1
    assert "NotABundle" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(toy_bundle, tmp_path, "--shard", "3/3")
