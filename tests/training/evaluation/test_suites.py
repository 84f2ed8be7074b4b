"""`evaluate` from the command line: report, resuming, before and after, and refusals."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.training.evaluation.worlds import write_models
from tests.training.tiny import TINY, TINY_MODEL, write_tiny_data
from training.__main__ import main
from training.evaluation import suites
from training.evaluation.report import LOWER_IS_BETTER
from training.evaluation.subjects import Split, Subject
from training.evaluation.suites import PROTOCOLS, SUITES, protocols_of
from training.evaluation.transfer import UNTRAINED
from training.models import MODELS
from training.run import read_data, split_concepts
from training.run import run as run_recipe

QUICK = ["--repetitions", "5", "--triplets", "500", "--draws", "2"]


def run(tmp_path: Path, *more: str, suite: str = "vice,rsa-vice,uncertainty,classification", **noise: float) -> Path:
    data = tmp_path / "data"
    if not data.exists():
        write_tiny_data(data)
    models = write_models(tmp_path / "models", data, **(noise or {"before": 1e3, "after": 0.1}))
    out = tmp_path / "report"
    main(["evaluate", *models, "--suite", suite, "--data", str(data), "--report", str(out), *QUICK, *more])
    return out


class Sources(HTMLParser):
    """Everything that a browser would fetch, and the tags that are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_says_before_after_and_difference_in_three_files(tmp_path: Path) -> None:
    out = run(tmp_path)
    found = json.loads((out / "report.json").read_text())
    rows = found["protocols"]["vice"]["rows"]
    with (out / "report.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    value = {
        r["model"]: r["value"] for r in rows if (r["figure"], r["setting"]) == ("agreement with VICE", "dot, strict")
    }
    assert value["after - before"] == pytest.approx(value["after"] - value["before"]) and value["after - before"] > 0.3
    assert len(lines) == sum(len(p.get("rows", ())) for p in found["protocols"].values())
    assert {line["protocol"] for line in lines} == {"vice", "rsa-vice", "uncertainty", "classification"}


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = (run(tmp_path) / "report.html").read_text()
    page = Sources()
    page.feed(text)
    assert page.open == []
    assert len(page.found) > 5
    assert all(source.startswith(("data:", "#")) for source in page.found)
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert str(tmp_path) not in text


def test_what_is_done_is_not_done_again_and_changes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(tmp_path, suite="vice,rsa-vice")
    first = (out / "report.html").read_bytes()
    times: list[str] = []
    for name in ("vice", "rsa-vice"):
        own = PROTOCOLS[name]
        counted = suites.Protocol(
            own.title, own.about, lambda s, r=own.run, n=name: (times.append(n), r(s))[1], own.headline
        )
        monkeypatch.setitem(PROTOCOLS, name, counted)
    assert (run(tmp_path, suite="vice,rsa-vice") / "report.html").read_bytes() == first
    assert times == []
    (out / "protocols/vice.json").unlink()  # as a kill before its end leaves it
    assert (run(tmp_path, suite="vice,rsa-vice") / "report.html").read_bytes() == first
    assert times == ["vice"]
    run(tmp_path, suite="vice", before=1e3, after=0.2)
    assert times == ["vice", "vice"]


def test_a_protocol_whose_data_is_not_there_is_left_out_with_its_reason(tmp_path: Path) -> None:
    out = run(tmp_path, suite="vice,levels")
    assert "no responses" in json.loads((out / "report.json").read_text())["protocols"]["levels"]["skipped"]
    assert "Left out" in (out / "report.html").read_text()


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nothing in .* to evaluate by levels"):
        run(tmp_path, suite="levels")


@pytest.mark.parametrize("suite", ["human", "transfer", "all"])
def test_suites_name_protocols_that_are_there_once(suite: str) -> None:
    assert protocols_of(f"{suite},vice,vice").count("vice") == 1
    assert set(SUITES[suite]) <= set(PROTOCOLS)


def test_unknown_suites_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no suite 'humans'; suites: human, .*protocols: choices"):
        protocols_of("humans")


def test_two_models_of_one_name_and_of_two_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two models are called a"):
        suites.evaluate([Subject("a", {}), Subject("a", {})], "vice", tmp_path, tmp_path / "out")
    both = [Subject("a", {}, split=Split(0.3, 0)), Subject("b", {}, split=Split(0.3, 1))]
    with pytest.raises(ValueError, match=r"different splits.*a has 0, b has 1"):
        suites.evaluate(both, "vice", tmp_path, tmp_path / "out")


def test_figures_of_which_less_is_better_are_figures(tmp_path: Path) -> None:
    rows = json.loads((run(tmp_path) / "report.json").read_text())["protocols"]
    figures = {row["figure"] for protocol in rows.values() for row in protocol.get("rows", ())}
    assert {"KL from VICE", "Brier score", "expected calibration error"} <= figures & LOWER_IS_BETTER


def test_features_of_other_photos_are_refused(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.float32))
    argv = [
        "evaluate",
        str(tmp_path / "short.npy"),
        "--suite",
        "vice",
        "--data",
        str(data),
        "--report",
        str(tmp_path / "r"),
    ]
    with pytest.raises(SystemExit, match=r"has 3 rows, of other images than the 68"):
        main(argv)


def test_all_splits_are_pooled_and_each_is_judged_on_its_own_concepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    run_recipe(TINY, write_tiny_data(tmp_path / "data"), tmp_path / "run")

    def value(*splits: str) -> dict[str, float]:
        words = [f"base={tmp_path / 'run'}@base", *[f"aligned={tmp_path / 'run'}@{split}" for split in splits]]
        out = tmp_path / f"report-{splits[0]}"
        main(["evaluate", *words, "--suite", "vice", "--data", str(tmp_path / "data"), "--report", str(out), *QUICK])
        rows = json.loads((out / "report.json").read_text())["protocols"]["vice"]["rows"]
        named = ("agreement with VICE", "dot, strict")
        return {r["model"]: r["value"] for r in rows if (r["figure"], r["setting"]) == named}

    both, first, second = value("all"), value("0"), value("1")
    assert set(both) == {"base", "aligned", "aligned - base"}
    assert all(both[name] == pytest.approx((first[name] + second[name]) / 2) for name in both)
    assert first["aligned"] != second["aligned"]
    with pytest.raises(SystemExit, match="b is of one split and aligned of all"):
        words = [f"aligned={tmp_path / 'run'}@all", f"b={tmp_path / 'run'}@0"]
        main(["evaluate", *words, "--suite", "vice", "--data", str(tmp_path / "data"), "--report", str(tmp_path / "x")])


def test_the_differences_asked_for_are_those_reported(tmp_path: Path) -> None:
    noise = {"a": 1e3, "b": 1.0, "c": 0.1}
    out = run(tmp_path, "--difference", "c:b", suite="vice", **noise)
    rows = json.loads((out / "report.json").read_text())["protocols"]["vice"]["rows"]
    assert {row["model"] for row in rows if " - " in row["model"]} == {"c - b"}
    with pytest.raises(SystemExit, match="no model is called 'd'; models are a, b, c"):
        run(tmp_path, "--difference", "c:d", suite="vice", **noise)
    with pytest.raises(SystemExit, match="expected the names of two models"):
        run(tmp_path, "--difference", "c-b", suite="vice", **noise)


def test_figures_on_concepts_trained_on_are_marked_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data, folder = write_tiny_data(tmp_path / "data"), tmp_path / "run"
    run_recipe(TINY, data, folder)
    words = [f"base={folder}@base", f"split={folder}@0", f"final={folder}"]
    out = tmp_path / "report"
    main(["evaluate", *words, "--suite", "vice,classification", "--data", str(data), "--report", str(out), *QUICK])
    found = json.loads((out / "report.json").read_text())
    seen = {
        (name, row["figure"] == UNTRAINED, row["model"]): row["seen"]
        for name, protocol in found["protocols"].items()
        for row in protocol["rows"]
    }
    models = ("base", "split", "final", "split - base", "final - base")
    marked = {(k, m) for k in (("vice", False), ("classification", True)) for m in ("final", "final - base")}
    assert {(key[:2], key[2]) for key, value in seen.items() if value} == marked
    assert {key[2] for key in seen} >= set(models)
    assert "final was trained on all concepts" in found["notes"][0] and "†" in (out / "report.html").read_text()
    with (out / "report.csv").open() as stream:
        assert {line["model"] for line in csv.DictReader(stream) if line["seen"]} == {"final", "final - base"}


def test_the_report_says_its_command_and_which_concepts_were_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data, folder, out = write_tiny_data(tmp_path / "data"), tmp_path / "run", tmp_path / "report"
    run_recipe(TINY, data, folder)
    main(["evaluate", f"a={folder}@all", "--suite", "vice", "--data", str(data), "--report", str(out), *QUICK])
    found = json.loads((out / "report.json").read_text())
    concepts = read_data(data).photos.concepts
    for seed, one in enumerate(found["splits"]):
        held_out = split_concepts(concepts, TINY.held_out, seed)[1].tolist()
        assert one == {"split": seed, "held_out": 0.5, "concepts": held_out, "of": len(concepts)}
    assert len(found["splits"]) == 2
    assert found["command"].startswith(f"python -m training evaluate a={folder}@all --suite vice ")
