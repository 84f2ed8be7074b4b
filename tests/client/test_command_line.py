"""The command `alignet` against the live service."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignet_client import Client, files
from alignet_client.__main__ import main
from alignet_client.duplicates import groups
from app.files import SUFFIXES
from tests.toy import encoded, photo


@pytest.fixture
def folder(tmp_path: Path, live: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six photos, of which 0 and its copy are the same, and a file that is none; the service in ALIGNET_URL."""
    monkeypatch.setenv("ALIGNET_URL", live)
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    for seed in range(5):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encoded(photo(seed)))
    (tmp_path / "photos" / "inner" / "copy.BMP").write_bytes(encoded(photo(0), "BMP"))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("not looked at")
    return tmp_path / "photos"


NAMES = ["0.png", "1.png", "2.png", "3.png", "4.png", "inner/copy.BMP"]


def test_embed_writes_parquet_as_bulk_does(folder: Path, live: str, capsys: Any) -> None:
    import pyarrow.parquet

    out = folder.parent / "vectors.parquet"
    assert main(["embed", str(folder), "--out", str(out), "--normalize", "--json"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert [Path(one["photo"]).name for one in answer["refused"]] == ["bad.jpg"]
    assert "bad.jpg: unsupported_image_format" in said.err
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["id", "path", "sha256", "bytes", "mtime_ns", "vector"]
    assert table["path"].to_pylist() == NAMES
    with Client(live) as client:
        expected = client.embed([folder / name for name in NAMES], normalize=True)
        assert answer["fingerprint"] == client.model().spaces["aligned"].fingerprint_normalized
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), expected)
    assert table.schema.metadata[b"alignet.fingerprint"].decode() == answer["fingerprint"]


def test_embed_writes_numpy_with_the_names_and_the_space_beside_it(folder: Path, live: str, capsys: Any) -> None:
    out = folder.parent / "vectors.npy"
    assert main(["embed", str(folder), "--out", str(out), "--space", "base"]) == 0
    assert "6 of 7 photos embedded" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == NAMES
    space = json.loads(out.with_suffix(".space.json").read_text())
    assert (space["space"], space["size"], space["normalized"]) == ("base", 5, False)
    with Client(live) as client:
        np.testing.assert_array_equal(np.load(out), client.embed([folder / name for name in NAMES], space="base"))
    assert len(list(folder.parent.iterdir())) == 4  # nothing half written beside


@pytest.mark.parametrize("out", ["v.txt", "gone/v.npy"])
def test_what_cannot_be_written_is_said_before_the_work(folder: Path, out: str, capsys: Any) -> None:
    assert main(["embed", str(folder), "--out", str(folder / out), "--url", "http://127.0.0.1:1"]) == 1
    assert out.split("/")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("embed PHOTOS --out NEW.npy", "interrupted; no vectors were written"),
        ("odd a b c", "interrupted"),
        ("models", "interrupted"),
        ("index PHOTOS --to faiss:NEW", "interrupted; what was embedded stays in the index, the same command goes on"),
        (
            "migrate PHOTOS --from faiss:OLD --to faiss:NEW",
            "interrupted; what was embedded stays in the new index, the same command goes on",
        ),
        ("bridge PHOTOS --from base --to aligned --out NEW.npz", "interrupted; no bridge was written"),
        (
            "map --from faiss:OLD --bridge OLD.npz --to faiss:NEW",
            "interrupted; the new index may hold a part, the same command maps all again",
        ),
    ],
)
def test_an_interrupted_command_says_what_is_kept(
    command: str, said: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "__init__", interrupted)
    monkeypatch.setattr("alignet_client.__main__._vectors", interrupted)
    monkeypatch.setattr("alignet_client.migration.Bridge.load", interrupted)
    names = {"PHOTOS": str(folder), "NEW.npy": str(folder.parent / "v.npy")}
    assert main([names.get(word, word) for word in command.split()]) == 130
    assert capsys.readouterr().err == f"alignet: {said}\n"


def test_an_interrupted_index_keeps_what_it_says(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("alignet_client.retrieval.faiss_file").FaissIndex
    real, command = faiss.upsert, ["index", str(folder), "--to", f"faiss:{folder.parent / 'index'}", "--batch", "2"]

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss, "upsert", interrupted)
    assert main(command) == 130
    monkeypatch.setattr(faiss, "upsert", real)
    assert main(command) == 0
    assert "2 known" in capsys.readouterr().out


def test_odd(folder: Path, live: str, capsys: Any) -> None:
    images = [str(folder / name) for name in NAMES[:3]]
    assert main(["odd", *images, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    with Client(live) as client:
        result = client.odd_one_out(images).results[0]
    assert answer["position"] == result.odd_one_out
    assert answer["odd_one_out"] == images[answer["position"]]
    assert answer["probabilities"] == list(result.probabilities)
    assert main(["odd", *images]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("odd  ")]
    assert len(marked) == 1
    assert marked[0].endswith(images[answer["position"]])


def test_similar_ranks_by_the_kernel_and_leaves_the_query_out(
    folder: Path, live: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignet_client.__main__._BLOCK", 2)  # several requests
    assert main(["similar", str(folder / "0.png"), str(folder), "--top", "3", "--kernel", "cosine", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    with Client(live) as client:
        row = client.similarity([folder / name for name in ["0.png", "1.png", "2.png", "3.png"]], kernel="cosine")
    assert [Path(results[0]["photo"]).name, len(results)] == ["copy.BMP", 3]
    assert results[0]["similarity"] == pytest.approx(1)
    by_name = {Path(one["photo"]).name: one["similarity"] for one in results[1:]}
    for i, name in enumerate(NAMES[1:4], 1):
        if name in by_name:
            assert by_name[name] == pytest.approx(float(row.matrix[0, i]), abs=1e-6)
    assert [one["similarity"] for one in results] == sorted((one["similarity"] for one in results), reverse=True)


def test_a_query_that_is_no_photo(folder: Path, capsys: Any) -> None:
    assert main(["similar", str(folder / "bad.jpg"), str(folder)]) == 1
    assert "bad.jpg" in capsys.readouterr().err


def test_dedupe(folder: Path, capsys: Any) -> None:
    assert main(["dedupe", str(folder), "--threshold", "0.99999", "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert [Path(one["photo"]).name for one in group] == ["0.png", "copy.BMP"]
    assert group[1]["cosine_with_first"] == pytest.approx(1)
    assert main(["dedupe", str(folder), "--threshold", "-1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 groups, 5 photos more than one of each, of 6"


def test_groups_are_joined_by_chains_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.radians([0, 90, 8, 180, 16, 91])  # 0, 8 and 16 degrees are a chain
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    for rows in (1, 2, 1024):
        monkeypatch.setattr("alignet_client.duplicates._ROWS", rows)
        assert groups(vectors, float(np.cos(np.radians(10)))) == [[0, 2, 4], [1, 5]]
        assert groups(vectors, 0.9999999) == []


def test_models(folder: Path, capsys: Any) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "toy: random weights"


def test_faults_are_one_line_and_exit_1(folder: Path, capsys: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in (["odd", "a", "b", "c"], ["dedupe", str(empty)], ["models", "--url", "nonsense"]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("alignet: ")
        assert said.count("\n") == 1


def test_as_a_program_of_its_own_it_loads_nothing_of_the_service(folder: Path) -> None:
    script = "import sys, alignet_client.__main__; print(*{n.partition('.')[0] for n in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"app", "contract", "fastapi", "pydantic", "onnxruntime", "PIL", "tqdm", "pyarrow"} & set(loaded)
    command = [sys.executable, "-m", "alignet_client", "models", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout)["models"][0]["name"] == "toy"


def test_folders_are_searched_as_bulk_does() -> None:
    assert files.SUFFIXES == SUFFIXES
