"""Cards with the figures of an evaluation: before, after and difference, and whose figures may stand on whose card."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import read_bundle
from export import __main__ as command_line
from export.report_figures import figures_of
from tests.export.conftest import Run
from tests.training.tiny import write_tiny_data
from training.__main__ import main
from training.evaluation.stored_report import read_report

QUICK = ["--repetitions", "5", "--triplets", "500", "--draws", "2"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Path:
    """Of the toy bundle against its base space."""
    place = tmp_path_factory.mktemp("evaluated")
    data = write_tiny_data(place / "data")
    words = [f"before={toy_bundle}@base", f"after={toy_bundle}"]
    main(["evaluate", *words, "--suite", "vice,rsa-vice", "--data", str(data), "--report", str(place / "r"), *QUICK])
    return place / "r/report.json"


def run(monkeypatch: pytest.MonkeyPatch, *argv: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, argv)])
    command_line.main()


def changed(report: Path, out: Path, **models: Any) -> Path:
    """The report with other words on what its models are made of."""
    raw = json.loads(report.read_text())
    raw["models"] |= models
    out.write_text(json.dumps(raw))
    return out


def test_a_card_has_the_reports_figures_and_command(
    report: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "card", toy_bundle, "--report", report)
    text = capsys.readouterr().out
    rows = json.loads(report.read_text())["protocols"]["vice"]["rows"]
    value = {r["model"]: r for r in rows if (r["figure"], r["setting"]) == ("agreement with VICE", "dot, strict")}
    cells = [f"{value[m]['value']:.3f} [{value[m]['low']:.3f}, {value[m]['high']:.3f}]" for m in ("before", "after")]
    assert f"| {' | '.join(cells)} | " in text
    assert "| figure | before (base) | after (aligned) | difference, paired | n |" in text
    assert "Command: `python -m training evaluate before=" in text
    assert "RSA with VICE" in text and "(concepts trained on)" in text  # its manifest does not say what it has seen


def test_names_choose_the_models_and_held_out_concepts_are_counted(report: Path, tmp_path: Path) -> None:
    raw = json.loads(report.read_text())
    raw["models"] = {"before": {}, "after": {}}  # no bundles
    raw["splits"] = [{"split": k, "held_out": 0.3, "concepts": [1, 2], "of": 7} for k in (0, 4)]
    for protocol in raw["protocols"].values():
        protocol["rows"] = [row | {"seen": False} for row in protocol["rows"]]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    found = figures_of(read_report(tmp_path), "after:before")
    assert {f.space for f in found} == {"base", "aligned", "aligned - base"}
    assert all("splits 0, 4, 2 of 7 concepts" in f.note for f in found)
    assert {f.space for f in figures_of(read_report(tmp_path), "before")} == {"aligned"}


def test_a_report_of_another_bundle_and_names_that_are_not_there_are_refused(
    report: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    graph = read_bundle(toy_bundle).manifest.files["model.onnx"].sha256
    found = read_report(report)
    with pytest.raises(ValueError, match="has no model 'nobody'; expected AFTER or AFTER:BEFORE, two of before, after"):
        figures_of(found, "nobody", graph)
    with pytest.raises(ValueError, match=r"has no model that is this bundle.*--report-model.*before, after"):
        figures_of(found, None, "0" * 64)
    with pytest.raises(ValueError, match=r"after is a bundle of another graph .* than this one \(0000"):
        figures_of(found, "after", "0" * 64)
    with pytest.raises(ValueError, match="one that is still to be made"):
        figures_of(found, "after:before")
    empty = read_report(changed(report, tmp_path / "report.json", third={}))
    with pytest.raises(ValueError, match="no model 'third'"):  # not in its order of models
        figures_of(empty, "third", graph)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--report", "{}/none.json"), "no report at"),
        (("--report-model", "after"), "give --report too"),
        (("--report", "{}/manifest.json"), "is no report of"),
    ],
)
def test_the_card_command_says_what_is_wrong(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        run(monkeypatch, "card", toy_bundle, *[word.format(toy_bundle) for word in argv])


def test_a_bundle_is_made_with_the_reports_figures_in_place_of_the_runs(
    report: Path, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(report, tmp_path / "report.json", before={}, after={})  # as of runs, which have no bundle
    words = ("bundle", tiny_run.folder, "--data", tiny_run.data, "--out", tmp_path / "b", "--precision", "fp32")
    with pytest.raises(SystemExit, match="--report needs --report-model"):
        run(monkeypatch, *words, "--report", file)
    run(monkeypatch, *words, "--report", file, "--report-model", "after:before")
    assert read_bundle(tmp_path / "b").manifest.figures == figures_of(read_report(file), "after:before")
