"""report.json read again: what it says, and files that are none, each with what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.evaluate import Estimate
from training.evaluation.report import Report, Section, write_report
from training.evaluation.result import Result, Row
from training.evaluation.stored_report import read_report


def write(folder: Path, **changed: Any) -> Path:
    """A report of two models and one protocol, some of its keys changed; None removes one."""
    rows = [Row("agreement", m, Estimate(0.5, 0.4, 0.6, 9), "g", "dot", seen=m == "b") for m in ("a", "b", "b - a")]
    rows.append(Row("aside", "a", Estimate(0, 0, 0, 1)))
    section = Section("vice", "Odd one out", "Who is odd.", (("agreement", "dot"),), Result(rows), held_out=("*",))
    skipped = Section("levels", "Levels", "Levels.", (), skipped="not here")
    folder.mkdir()
    about = {"a": {"model": "x"}, "b": {"model": "y"}}
    write_report(Report("t", ("a", "b"), about, {}, (), (section, skipped), "evaluate a b"), folder)
    raw = json.loads((folder / "report.json").read_text()) | changed
    (folder / "report.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return folder / "report.json"


def test_the_main_figures_are_read_in_order_from_the_file_or_its_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "r")
    found = read_report(file)
    assert read_report(file.parent) == found
    assert (found.command, list(found.models)) == ("evaluate a b", ["a", "b"])
    assert [(r.model, r.value, r.held_out, r.seen) for r in found.rows] == [
        ("a", 0.5, True, False),
        ("b", 0.5, True, True),
        ("b - a", 0.5, True, False),
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": None}, "is no report of .*its format is None"),
        ({"format": "alignet-bundle"}, "its format is 'alignet-bundle'"),
        ({"format_version": 2}, "of version 2; this release reads 1"),
        ({"protocols": None}, "is damaged: KeyError 'protocols'"),
        ({"models": {}}, "is damaged: KeyError 'a'"),
        ({"order": {"models": ["a", "b"], "protocols": 3}}, "is damaged: TypeError"),
    ],
)
def test_what_is_no_report_is_refused_with_what_is_wrong(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_report(write(tmp_path / "r", **changed))


def test_no_file_and_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no report at .*report\.json"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[1, ")
    with pytest.raises(ValueError, match="is not JSON"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(ValueError, match="its format is None"):
        read_report(tmp_path)
