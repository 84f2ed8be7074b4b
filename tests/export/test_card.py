"""The model card: every number in it stands in the manifest."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import read_bundle
from contract.manifest import Figure, Manifest
from export import __main__ as command_line
from export.card import card

ROW = {
    "precision": "int8",
    "one_minus_cosine": 0.00123,
    "flips": 0.0456,
    "entropy_change": 0.789,
    "neighbours": 0.987,
    "batch_difference": 0.0,
    "milliseconds_alone": 6.54,
    "milliseconds_in_batch": 3.21,
    "bytes": 7_600_000,
    "passed": False,
}


def a_figure(name: str, space: str, value: float | None) -> Figure:
    interval: dict[str, Any] = {"low": None, "high": None} if value is None else {"low": value / 2, "high": value * 2}
    return Figure(
        name=name, space=space, value=value, **interval, n=77, unit="nats", note=f"of {name}", command="make it"
    )


@pytest.fixture
def manifest(toy_bundle: Path) -> Manifest:
    figures = [a_figure("KL", "base", 0.25), a_figure("KL", "aligned", 0.125), a_figure("RSA", "aligned", None)]
    data = [{"name": "VICE", "source": "2022", "license": "CC BY"}]
    parity = {"reference": "torch", "photos": 600, "triplets": 5000, "command": "export it", "rows": [ROW]}
    return replace(read_bundle(toy_bundle).manifest, figures=figures, training={"data": data}, parity=parity)


def test_figures_before_and_after_share_a_row_with_their_intervals(manifest: Manifest) -> None:
    lines = card(manifest).splitlines()
    assert "| KL (nats) | 0.250 [0.125, 0.500] | 0.125 [0.062, 0.250] | 77 |" in lines
    assert "| RSA (nats) | none | none | 77 |" in lines
    assert "- KL: of KL." in lines
    assert "Command: `make it`." in lines


def test_parity_shows_every_column_and_whether_it_passes(manifest: Manifest) -> None:
    lines = card(manifest).splitlines()
    assert "| int8 | onnxruntime | 1.2e-03 | 4.56% | 7.9e-01 | 0.987 | 0.0e+00 | 6.5 | 3.2 | 7.6 | no |" in lines
    head = next(line for line in lines if line.startswith("| precision"))
    assert head.count("|") == lines[lines.index(head) + 2].count("|")
    there = card(replace(manifest, parity=manifest.parity | {"rows": [ROW, ROW | {"runtime": "triton"}]}))
    assert "| int8 | triton | 1.2e-03 |" in there
    lengths = card(replace(manifest, parity=manifest.parity | {"rows": [ROW, ROW | {"length_change": 0.0123}]}))
    assert "| max length change |" in lengths and "| 1.2e-03 |  |" in lengths and "| 1.2e-03 | 1.2e-02 |" in lengths
    assert "| yes |" in card(replace(manifest, parity=manifest.parity | {"rows": [ROW | {"passed": True}]}))


def test_spaces_show_their_calibration_and_fingerprint(manifest: Manifest) -> None:
    text = card(manifest)
    for name, space in manifest.spaces.items():
        assert f"Space `{name}`: 5 values, dot similarity, temperature 2 (fitted on nothing real)" in text
        assert f"fingerprint `{space.fingerprint}`" in text
    bare = replace(manifest.spaces["base"], calibrated=False, calibrated_on="")
    assert "(not fitted)" in card(replace(manifest, spaces=manifest.spaces | {"base": bare}))


def test_a_bundle_without_figures_and_training_data_has_a_card_too(toy_bundle: Path) -> None:
    assert card(read_bundle(toy_bundle).manifest).startswith("# Model card: toy\n")


def test_a_figure_of_one_space_alone_has_a_row(manifest: Manifest) -> None:
    alone = replace(manifest, figures=[a_figure("only before", "base", 0.5)])
    assert "| only before (nats) | 0.500 [0.250, 1.000] | none | 77 |" in card(alone)


def test_the_command_refuses_what_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "card", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .* is no bundle"):
        command_line.main()
