"""The programs of examples/retrieval do what they say, on the real engines."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import ROOT

PHOTOS = ROOT / "docs" / "photos"
Run = Callable[..., list[str]]
CAT = PHOTOS / "cat.jpg"


@pytest.fixture
def run(live: str) -> Run:
    def run(name: str, *arguments: str | Path) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "retrieval" / f"{name}.py"), *map(str, arguments)],
            env=os.environ | {"ALIGNET_URL": live},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_the_engines_give_the_same_neighbours(run: Run, postgres: str, tmp_path: Path) -> None:
    faiss = run("faiss_files", PHOTOS, tmp_path / "faiss", CAT)
    qdrant = run("qdrant_points", PHOTOS, tmp_path / "qdrant", CAT)
    pgvector = run("pgvector_table", PHOTOS, postgres, CAT)
    assert len(faiss) == 3
    for others in (qdrant, pgvector):
        names = [Path(line.split()[1]).stem for line in others]
        assert names == [Path(line.split()[1]).stem for line in faiss]
        for line, other in zip(faiss, others, strict=True):
            assert float(line.split()[0]) == pytest.approx(float(other.split()[0]), rel=1e-3)


def test_the_migration(run: Run, tmp_path: Path) -> None:
    old, new = f"qdrant:{tmp_path / 'old'}", f"faiss:{tmp_path / 'new'}"
    fresh = tmp_path / "fresh.jpg"
    fresh.write_bytes((PHOTOS / "cat.jpg").read_bytes() + b"\0")  # another content with the same pixels
    lines = run("migrate", PHOTOS, old, new, tmp_path / "state.json", fresh)
    assert lines[0].startswith("base: ")
    assert lines[1].startswith("aligned: ")
    assert lines[2] == "4 embedded, 5 of 5 moved"


def test_the_docs_quote_the_examples_word_for_word() -> None:
    def words(text: str) -> str:  # the formatter indents both in its own way, and text in quotes has quotes
        return " ".join(text.replace('"', " ").split())

    programs = [words(file.read_text()) for file in (ROOT / "examples" / "retrieval").glob("*.py")]
    blocks = re.findall(r"```(?:python|sql)\n(.*?)```", (ROOT / "docs" / "retrieval.md").read_text(), re.DOTALL)
    quoted = [words(block) for block in blocks if "alignet_client.langchain" not in block]
    assert len(quoted) == 4
    assert all(any(block in program for program in programs) for block in quoted)
