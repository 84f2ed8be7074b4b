"""Claims of the paper, and the page for a repository: verdicts by interval, no photo, links that lead somewhere."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.evaluation.test_suites import QUICK
from tests.training.evaluation.worlds import write_models
from tests.training.tiny import write_tiny_data
from training.__main__ import main
from training.evaluate import Estimate
from training.evaluation.claims import OPEN, OPPOSITE, SAME, UNTOLD, verdicts
from training.evaluation.page import table
from training.evaluation.result import Row
from training.evaluation.suites import PROTOCOLS


@pytest.mark.parametrize(
    ("group", "low", "high", "outcome"),
    [
        ("different", 0.1, 0.3, SAME),
        ("different", -0.1, 0.3, OPEN),
        ("different", -0.3, -0.1, OPPOSITE),
        ("same class (intercept)", -0.3, -0.1, SAME),  # of which the paper's sign is minus
        ("same class (intercept)", 0.1, 0.3, OPPOSITE),
    ],
)
def test_a_verdict_is_on_which_side_of_zero_the_interval_lies(
    group: str, low: float, high: float, outcome: str
) -> None:
    estimate = Estimate((low + high) / 2, low, high, 9)
    row = Row("regression of the change", "aligned - base", estimate, group, "mixed effects")
    (found,) = verdicts([row])
    assert found.outcome == outcome


def test_rows_of_other_models_and_settings_answer_to_no_claim() -> None:
    estimate = Estimate(1, 1, 1, 1)
    rows = [
        Row("agreement with VICE", "aligned - other", estimate, "", "dot, strict"),
        Row("agreement with VICE", "aligned - base", estimate, "", "cosine, strict"),
        Row("agreement with VICE", "aligned", estimate, "", "dot, strict"),
    ]
    assert verdicts(rows) == []


def test_parentheses_tell_models_of_one_role_apart_and_seen_concepts_claim_nothing() -> None:
    estimate = Estimate(0.2, 0.1, 0.3, 9)
    name = "aligned (150 steps) - unaligned (150 steps)"
    row = Row("agreement with VICE", name, estimate, "", "dot, strict")
    assert [(one.claim.difference, one.outcome) for one in verdicts([row])] == [("aligned - unaligned", SAME)]
    assert [one.outcome for one in verdicts([replace(row, seen=True)])] == [UNTOLD]


def page(tmp_path: Path, *names: str) -> Path:
    data = tmp_path / "data"
    if not data.exists():
        write_tiny_data(data)
    models = write_models(tmp_path / "models", data, **dict(zip(names, (1e3, 0.1), strict=True)))
    out = ["--report", str(tmp_path / "report"), "--page", str(tmp_path / "page")]
    main(["evaluate", *models, "--suite", "vice,hierarchy,levels", "--data", str(data), *out, *QUICK])
    return tmp_path / "page"


def test_the_page_holds_the_claims_and_its_pictures_and_no_photo(tmp_path: Path) -> None:
    folder = page(tmp_path, "base", "aligned")
    text = (folder / "report.md").read_text()
    assert "| aligned - base | +" in text and SAME in text
    linked = set(re.findall(r"!\[[^]]*\]\(figures/([^)]+)\)", text))
    assert linked == {file.name for file in (folder / "figures").iterdir()} and len(linked) > 3
    assert "- Levels: DATA/levels/responses has no responses" in text
    assert "data:image" not in text and all(PROTOCOLS[name].title in text for name in ("vice", "hierarchy"))
    assert (folder / "report.csv").read_bytes() == (tmp_path / "report/report.csv").read_bytes()
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (folder / "figures").iterdir())


def test_a_page_is_the_same_bytes_again_and_keeps_no_old_picture(tmp_path: Path) -> None:
    folder = page(tmp_path, "base", "aligned")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    (folder / "figures/old.png").write_bytes(b"")
    page(tmp_path, "base", "aligned")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_models_of_other_names_make_no_claim(tmp_path: Path) -> None:
    assert "What the paper says" not in (page(tmp_path, "one", "two") / "report.md").read_text()


def test_differences_have_a_table_of_their_own_and_seen_concepts_a_mark() -> None:
    rows = [Row("agreement", m, Estimate(v, v - 0.1, v + 0.1, 9), seen=m != "a") for m, v in (("a", 0.5), ("b", 0.75))]
    rows.append(Row("agreement", "b - a", Estimate(0.25, 0.25, 0.25, 9), seen=True))
    models, differences = "\n".join(table(rows, ["a", "b"])).strip().split("\n\n")
    assert models.splitlines()[0] == "| figure | a | b |"
    assert models.splitlines()[2] == "| agreement | 0.500 [0.400, 0.600] | 0.750 † [0.650, 0.850] |"
    assert differences.splitlines()[::2] == ["| figure | b - a |", "| agreement | +0.250 † |"]
