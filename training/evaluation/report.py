"""The report: report.json, report.csv, and report.html, which needs no other file and no network."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from contract.files import whole
from training.evaluation import plots
from training.evaluation.claims import verdicts
from training.evaluation.result import PEOPLE, SEEN, Plot, Result, Row
from training.evaluation.stored_report import FILE, FORMAT, FORMAT_VERSION
from training.stage import write_json

LOWER_IS_BETTER = frozenset(
    {"KL from VICE", "Brier score", "expected calibration error", "tie rate", "mean corruption error"}
)
NEUTRAL = frozenset({"temperature", "images judged"})
"""Figures of which neither direction is good: their differences get no colour."""
DPI = 110
LONG = 14
"""Rows of a table that is folded away."""
SEEN_MEANS = (
    f"{SEEN} on concepts that the model was trained on, or may have been: the figure says nothing of new concepts."
)

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#1d1d1f;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0}
th,td{padding:.2rem .6rem;text-align:left;vertical-align:top}
th{border-bottom:1px solid #999}td{border-bottom:1px solid #eee;font-variant-numeric:tabular-nums}
td small{color:#777;white-space:nowrap}.up{color:#177245;font-weight:600}.down{color:#b3261e;font-weight:600}
.about{color:#444}.notes{color:#444;font-size:13px}.plots{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
.plots img{max-width:100%}.pair{display:inline-block;margin:.3rem .6rem .3rem 0;font-size:11px;text-align:center}
.pair img{height:96px;margin:1px;border-radius:3px}.wide{overflow-x:auto}nav a{margin-right:1rem}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
"""


@dataclass(frozen=True)
class Section:
    """One protocol's part of the report.

    Attributes:
        name: of the protocol.
        title, about: what it is, in words.
        headline: (figure, setting) of the figures that the overview shows.
        result: None where it was skipped.
        skipped: why.
        held_out: figures that need concepts that no model was trained on; `*` for all.
    """

    name: str
    title: str
    about: str
    headline: tuple[tuple[str, str], ...]
    result: Result | None = None
    skipped: str = ""
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that is written.

    Attributes:
        title, models: the models by name, reference first.
        about_models: what each is made of.
        about: constants and the suite.
        notes: sentences on the models.
        sections: protocols.
        command: that made it; empty where it was no command.
        splits: of each split its number, the share held out, the numbers of those concepts, and of how many.
    """

    title: str
    models: tuple[str, ...]
    about_models: dict[str, dict[str, Any]]
    about: dict[str, Any]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str = ""
    splits: tuple[dict[str, Any], ...] = ()

    @property
    def marked(self) -> bool:
        """Whether any figure is of concepts that its model was trained on."""
        return any(row.seen for section in self.sections if section.result for row in section.result.rows)


def write_report(report: Report, out: Path) -> Path:
    """Write the three files, each whole or not at all, and return the HTML's path."""
    write_json(out / FILE, _json(report))
    text = io.StringIO()
    names = ("protocol", "figure", "group", "setting", "model", "value", "low", "high", "n", "unit", "seen")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for section in report.sections:
        for row in section.result.rows if section.result else ():
            writer.writerow({"protocol": section.name} | row.to_json() | {"seen": SEEN if row.seen else ""})
    for file, content in (("report.csv", text.getvalue()), ("report.html", page(report))):
        with whole(out / file) as stream:
            stream.write(content.encode())
    return out / "report.html"


def _json(report: Report) -> dict[str, Any]:
    """Everything but the pictures inside `pairs`, which are in the HTML."""
    sections: dict[str, Any] = {}
    for section in report.sections:
        if section.result is None:
            sections[section.name] = {"title": section.title, "skipped": section.skipped}
            continue
        found = section.result.to_json()
        found["plots"] = [plot for plot in found["plots"] if plot["kind"] != "pairs"]
        sections[section.name] = {
            "title": section.title,
            "about": section.about,
            "headline": [list(pair) for pair in section.headline],
            "held_out": list(section.held_out),
        } | found
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "title": report.title,
        "command": report.command,
        "order": {"models": list(report.models), "protocols": [section.name for section in report.sections]},
        "models": report.about_models,
        "splits": list(report.splits),
        "about": report.about,
        "notes": list(report.notes),
        "protocols": sections,
    }


# --- HTML -----------------------------------------------------------------------------------------


def page(report: Report) -> str:
    """The whole page."""
    done = [section for section in report.sections if section.result is not None]
    links = " ".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in done)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1><nav>{links}</nav>",
        _models(report),
        _notes([*report.notes, *([SEEN_MEANS] if report.marked else [])]),
        _overview(report, done),
        _claims([row for section in done if section.result is not None for row in section.result.rows]),
    ]
    parts += [_section(section, report.models) for section in done]
    if left_out := [s for s in report.sections if s.result is None]:
        items = "".join(f"<li>{escape(s.title)}: {escape(s.skipped)}</li>" for s in left_out)
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    about = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in report.about.items())
    parts.append(f"<h2>Made by</h2><table>{about}</table></body></html>\n")
    return "\n".join(parts)


def _models(report: Report) -> str:
    shades = plots.colours(report.models)
    rows = []
    for i, (name, identity) in enumerate(report.about_models.items()):
        parts = identity.get("splits", [identity])
        own = parts[0] if len(parts) == 1 else {"splits": len(parts)} | dict.fromkeys(parts[0], "")
        made_of = ", ".join(f"{k} {_short(v)}".strip() for k, v in own.items() if v is not None)
        role = "reference" if i == 0 else ""
        swatch = f'<span class="swatch" style="background:{shades[name]}"></span>'
        rows.append(f"<tr><td>{swatch}{escape(name)}</td><td>{role}</td><td>{escape(made_of)}</td></tr>")
    return f"<table><tr><th>model</th><th></th><th>made of</th></tr>{''.join(rows)}</table>"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _claims(rows: Sequence[Row]) -> str:
    found = verdicts(rows)
    if not found:
        return ""
    lines = [
        f"<tr><td>{escape(one.claim.says)}</td><td>{escape(one.row.figure)}</td><td>{escape(one.row.group)}</td>"
        f"<td>{escape(one.row.model)}</td><td>{_cell(one.row)}</td><td>{escape(one.outcome)}</td></tr>"
        for one in found
    ]
    return f"<h2>What the paper says, and what is seen here</h2><table>{''.join(lines)}</table>"


def headline_rows(section: Section) -> list[Row]:
    """The rows that the overview shows, in the order of the headline."""
    assert section.result is not None
    return [
        row
        for figure, setting in section.headline
        for row in section.result.rows
        if row.figure == figure and row.setting == setting
    ]


def _overview(report: Report, done: Sequence[Section]) -> str:
    rows = [row for section in done for row in headline_rows(section)]
    if not rows:
        return ""
    drawn = [row for row in rows if row.unit != "nats"]  # another unit than the rest
    picture = plots.overview(drawn, "what changed")
    return (
        "<h2>Overview</h2>"
        + (f'<div class="plots">{_image(picture, "overview")}</div>' if picture else "")
        + table(rows, report.models)
    )


def _section(section: Section, models: Sequence[str]) -> str:
    assert section.result is not None
    result = section.result
    pictures = []
    for plot in result.plots:
        if plot.kind == "pairs":
            pictures.append(_pairs(plot))
        elif (drawing := plots.figure_of(plot, result.rows, models)) is not None:
            pictures.append(_image(drawing, plot.title, points=plot.kind == "map"))
    figures = table(result.rows, models)
    if len({(r.figure, r.group, r.setting) for r in result.rows}) > LONG:
        figures = f"<details><summary>all figures</summary>{figures}</details>"
    about = f'<h2 id="{section.name}">{escape(section.title)}</h2><p class="about">{escape(section.about)}</p>'
    return f'{about}<div class="plots">{"".join(pictures)}</div>{figures}{_notes(result.notes)}'


def _image(drawing: Figure, title: str, *, points: bool = False) -> str:
    # As an image of its own: identifiers inside one SVG never meet those of another. Many points are smaller as pixels.
    kind, data = ("png", plots.png(drawing, DPI)) if points else ("svg+xml", plots.svg(drawing, title).encode())
    return f'<img alt="{escape(title)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _pairs(plot: Plot) -> str:
    blocks = []
    for pair in plot.values["pairs"]:
        pictures = "".join(f'<img alt="{escape(i["name"])}" src="{i["src"]}">' for i in pair["images"])
        blocks.append(f'<span class="pair">{pictures}<br>{escape(pair["caption"])}</span>')
    return f"<div><h4>{escape(plot.title)}</h4>{''.join(blocks)}</div>"


def table(rows: Sequence[Row], models: Sequence[str]) -> str:
    """A line for each figure, group and setting; a column for each model, people and difference."""
    keys = list(dict.fromkeys((row.figure, row.group, row.setting) for row in rows))
    columns = [m for m in (*models, PEOPLE) if any(row.model == m for row in rows)]
    columns += [m for m in dict.fromkeys(row.model for row in rows if not row.is_difference) if m not in columns]
    columns += list(dict.fromkeys(row.model for row in rows if row.is_difference))
    at = {(row.figure, row.group, row.setting, row.model): row for row in rows}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("figure", "", "", *columns))
    lines = []
    for key in keys:
        cells = "".join(f"<td>{_cell(at.get((*key, column)))}</td>" for column in columns)
        lines.append(f"<tr><td>{escape(key[0])}</td><td>{escape(key[1])}</td><td>{escape(key[2])}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    e = row.estimate
    sign = "+" if row.is_difference else ""
    kind = ""
    if row.is_difference and row.figure not in NEUTRAL and (e.low > 0 or e.high < 0):
        kind = "up" if (e.value > 0) != (row.figure in LOWER_IS_BETTER) else "down"
    text = f"{e.value:{sign}.3f}" if abs(e.value) < 1000 else f"{e.value:{sign}.4g}"
    spread = "" if e.low == e.value == e.high else f" <small>[{e.low:{sign}.3f}, {e.high:{sign}.3f}]</small>"
    mark = f" {SEEN}" if row.seen else ""
    return f'<span class="{kind}" title="n = {e.n}">{text}</span>{mark}{spread}'
