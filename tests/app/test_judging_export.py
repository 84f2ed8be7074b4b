"""What a study has collected, in the layout of THINGS: numbers from 0, the odd one last."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.judging.choosing import Chosen
from app.judging.export import Rule, main
from app.judging.photos import read_photos
from app.judging.store import Session, Store, Trial
from app.judging.study import Study
from contract.pixels import PixelLimits
from tests.running import ROOT
from tests.study import write_study


class Collected:
    """A database filled by hand: `said(items, odd)` is one trial of one session."""

    def __init__(self, file: Path) -> None:
        self.study, self.file = Study.read(file), file
        self.study.data.mkdir(exist_ok=True)
        self.store = Store(self.study.database)
        found, _ = read_photos(self.study.photos, self.study.data, PixelLimits(), lambda *_: None)
        self.store.register([(photo.path, photo.sha256) for photo in found])
        self.sessions: dict[str, Session] = {}
        self.numbers: dict[str, int] = {}

    def said(self, who: str, items: tuple[int, int, int], odd: int | None, kind: Any = "main", **chosen: Any) -> None:
        session = self.sessions.setdefault(who, self.store.session(who) or self.store.begin(who, "consent", None, 99))
        number = self.numbers[who] = self.numbers.get(who, -1) + 1
        made = Chosen(items, (0, 0, 0), "unsure", **({"probabilities": (0.2, 0.5, 0.3), "entropy": 1.03} | chosen))
        self.store.add(Trial(f"{who}-{number}", session.session, number, kind, made, "print"))
        self.store.choose(session, f"{who}-{number}", odd, 1500.0 if odd is not None else 0.0, "key")

    def out(self, *options: str) -> Path:
        folder = self.file.parent / "out"
        assert main([str(self.file), "--out", str(folder), *options]) == 0
        return folder


def matrix(file: Path) -> list[list[int]]:
    return [[int(cell) for cell in line.split(" ")] for line in file.read_text().splitlines()]


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    return Collected(write_study(tmp_path))


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.judging.store.CLOCK_MS", 1e9)  # choices of the tests are older than their trials


def test_the_odd_one_is_last_and_the_others_stand_as_they_were_shown(collected: Collected) -> None:
    for odd in range(3):
        collected.said("ann", (7, 0, 3), odd)
    out = collected.out()
    assert (out / "triplets.txt").read_text() == "0 3 7\n7 3 0\n7 0 3\n"
    rows = table(out / "responses.csv")
    assert [(r["image_0"], r["image_1"], r["image_2"], r["odd_position"]) for r in rows] == [
        ("7", "0", "3", str(odd)) for odd in range(3)
    ]
    assert (rows[0]["p_odd_1"], rows[0]["entropy"], rows[0]["rt_ms"], rows[0]["status"]) == (
        "0.5",
        "1.03",
        "1500.0",
        "counts",
    )


def test_row_i_of_the_photos_is_object_i_and_its_path_leads_to_it(collected: Collected) -> None:
    collected.said("ann", (0, 1, 2), 0)
    out = collected.out()
    rows = table(out / "photos.csv")
    assert [row["item"] for row in rows] == [str(i) for i in range(8)]
    paths = [(out / row["path"]).resolve() for row in rows]
    assert paths == [collected.study.photos / f"secret-names/person-{i:02d}.png" for i in range(8)]


def test_a_triplet_is_in_train_or_in_test_with_all_of_its_choices(collected: Collected) -> None:
    every = [(a, b, c) for a in range(8) for b in range(a) for c in range(b)]
    for who in ("ann", "ben"):
        for i, items in enumerate(every):
            collected.said(who, items if who == "ann" else items[::-1], i % 3)
    out = collected.out()
    train, test = ([tuple(sorted(row)) for row in matrix(out / name)] for name in ("train_90.txt", "test_10.txt"))
    assert len(train) + len(test) == 112 == len(matrix(out / "triplets.txt")) and 0 < len(test) < 30
    assert not set(train) & set(test) and all(test.count(key) == 2 for key in test)
    held_out = table(out / "choices.csv")
    assert len(held_out) == len(test)
    assert all((out / row["image_0"]).is_file() and row["odd_position"] in "012" for row in held_out)


def test_practice_catch_and_unanswered_trials_are_told_and_do_not_count(collected: Collected) -> None:
    collected.said("ann", (0, 0, 1), 2, "practice", expected=2)
    collected.said("ann", (0, 1, 0), 1, "catch", expected=1)
    collected.said("ann", (0, 1, 2), None)
    collected.said("ann", (0, 1, 2), 2)
    out = collected.out()
    assert matrix(out / "triplets.txt") == [[0, 1, 2]]
    assert [row["status"] for row in table(out / "responses.csv")] == ["practice", "catch", "unanswered", "counts"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trials"] == {"catch": 1, "counts": 1, "practice": 1, "unanswered": 1}
    assert (summary["odd_one"], summary["numbers_from"], summary["choices"]) == ("last", 0, 1)


def test_sessions_that_fail_the_rule_of_levels_are_left_out(collected: Collected) -> None:
    for i in range(10):  # nine of ten right is 90 %, which is enough; eight is not
        collected.said("nine", (0, 0, 1), 2 if i else 1, "catch", expected=2)
        collected.said("eight", (0, 0, 1), 2 if i > 1 else 0, "catch", expected=2)
    collected.said("once", (0, 0, 1), 0, "catch", expected=2)  # a single miss is forgiven
    for who in ("nine", "eight", "none", "once"):
        collected.said(who, (0, 1, 2), 0)
    for who, silent in (("ten", 10), ("eleven", 11)):
        for i in range(silent + 1):
            collected.said(who, (1, 2, 3), 0 if i == silent else None)
    out = collected.out()
    excluded = json.loads((out / "summary.json").read_text())["sessions_excluded"]
    assert sorted(excluded.values()) == ["catch: 8 of 10 right", "unanswered: 11"]
    assert len(matrix(out / "triplets.txt")) == 4
    assert len(matrix(collected.out("--min-catch", "0.8", "--max-unanswered", "11") / "triplets.txt")) == 6
    assert len(matrix(collected.out("--min-median-ms", "1501") / "triplets.txt")) == 0
    assert len(matrix(collected.out("--finished") / "triplets.txt")) == 2


def test_choices_of_a_photo_that_was_removed_are_left_out_and_the_others_numbered_without_gap(
    collected: Collected,
) -> None:
    collected.said("ann", (0, 1, 2), 0)
    collected.said("ann", (1, 5, 7), 1)
    (collected.study.photos / "secret-names/person-00.png").unlink()
    (collected.study.photos / "secret-names/person-04.png").write_bytes(b"another content")
    out = collected.out()
    assert matrix(out / "triplets.txt") == [[0, 5, 3]]  # of six photos left: 1, 2, 3, 5, 6, 7
    assert [row["status"] for row in table(out / "responses.csv")] == ["photo removed", "counts"]


def test_files_appear_whole_and_the_summary_last(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    collected.said("ann", (0, 1, 2), 0)
    out = collected.out()
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.name != "summary.json"}
    collected.said("ann", (1, 2, 3), 0)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    assert main([str(collected.file), "--out", str(out)]) == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before, "no summary: the folder is not whole"


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    command = [sys.executable, "-m", "app", "judgments", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "nothing has been collected" in done.stderr
    assert main([str(tmp_path / "no.toml"), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_the_rule_of_a_session_without_answers_breaks_nothing() -> None:
    assert Rule().broken_by([], 10) == ""
