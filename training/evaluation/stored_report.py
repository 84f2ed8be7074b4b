"""report.json, read again: by whoever takes figures from it. Needs neither torch nor any library of the protocols."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT, FORMAT_VERSION = "alignet-evaluation", 1
"""The version is raised when a reader of the old would misread the new."""
FILE = "report.json"
EVERY = "*"
"""Stands for all figures of a protocol, where it says which of them need held-out concepts."""


@dataclass(frozen=True)
class StoredRow:
    """One main figure of one model, or of the difference `B - A` of two.

    Attributes:
        figure, group, setting: what is measured.
        model: name in the report.
        value, low, high: with its 95 % interval.
        n: items behind it.
        unit: fraction, Spearman, nats...
        about: what the protocol does, a sentence.
        held_out: whether only concepts that no model of a split was trained on are behind it.
        seen: whether a model of the row was trained on them all the same, or may have been.
    """

    figure: str
    group: str
    setting: str
    model: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    about: str
    held_out: bool
    seen: bool


@dataclass(frozen=True)
class StoredReport:
    """What one evaluation found.

    Attributes:
        file: report.json.
        command: that made it; empty where it was no command.
        models: name to what it is made of, the reference first.
        splits: each with `split`, its number; `concepts`, held out, of `of` that have photos.
        rows: the figures of every protocol's headline.
    """

    file: Path
    command: str
    models: dict[str, dict[str, Any]]
    splits: tuple[dict[str, Any], ...]
    rows: tuple[StoredRow, ...]


def read_report(place: Path) -> StoredReport:
    """Read report.json, or that of a folder of `evaluate`.

    Raises:
        ValueError: it is not there, no JSON, no report, of another version, or lacks something; the message says which.
    """
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise ValueError(f"no report at {file}; `python -m training evaluate ... --report DIR` writes DIR/{FILE}.")
    try:
        raw = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    given = (raw.get("format"), raw.get("format_version")) if isinstance(raw, dict) else (None, None)
    if given[0] != FORMAT:
        raise ValueError(
            f"{file} is no report of `python -m training evaluate`: its format is {given[0]!r}, not {FORMAT!r}. "
            "One of an older release says none: run the same command again."
        )
    if given[1] != FORMAT_VERSION:
        raise ValueError(
            f"{file} is a report of version {given[1]!r}; this release reads {FORMAT_VERSION}. Run its command again, "
            "or install the release that wrote it."
        )
    try:
        models = {name: raw["models"][name] for name in raw["order"]["models"]}
        parts = [raw["protocols"][name] for name in raw["order"]["protocols"]]
        rows = tuple(row for part in parts if "rows" in part for row in _headline(part))
        return StoredReport(file, str(raw["command"]), models, tuple(raw["splits"]), rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} {error}. Run its command again.") from error


def _headline(part: dict[str, Any]) -> list[StoredRow]:
    """A protocol's main figures, in the order of its headline."""
    own = set(part["held_out"])
    return [
        StoredRow(
            figure=row["figure"],
            group=row["group"],
            setting=row["setting"],
            model=row["model"],
            value=float(row["value"]),
            low=float(row["low"]),
            high=float(row["high"]),
            n=int(row["n"]),
            unit=row["unit"],
            about=part["about"],
            held_out=EVERY in own or row["figure"] in own,
            seen=bool(row["seen"]),
        )
        for figure, setting in part["headline"]
        for row in part["rows"]
        if (row["figure"], row["setting"]) == (figure, setting)
    ]
