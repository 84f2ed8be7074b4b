"""The report as a page for a repository: Markdown and small pictures, of which no photo is part.

    FOLDER/report.md         claims, overview, and of each protocol its main figures and plots
    FOLDER/figures/*.png     the plots
    FOLDER/report.csv        every figure

Photos may not be anybody's to publish, so the pairs that changed most are in report.html alone.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from contract.files import whole
from training.evaluation import plots
from training.evaluation.claims import verdicts
from training.evaluation.report import LONG, SEEN_MEANS, Report, Section, headline_rows
from training.evaluation.result import PEOPLE, SEEN, Row

DPI = 80


def write_page(report: Report, folder: Path, csv_file: Path, data: Path) -> Path:
    """Write the page to `folder`, which may hold an older one, and return the Markdown's path.

    Args:
        report: what to write.
        folder: to make or to write over.
        csv_file: of all figures, to be copied.
        data: the data folder, which messages of what is left out name; the page says DATA.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    done = [section for section in report.sections if section.result is not None]
    lines = [
        "# Evaluation",
        "",
        f"Written by the command below; no number here is typed. Models: {', '.join(report.models)}. Splits: "
        f"{report.about['splits']}. Brackets: 95 %. Every figure is in [report.csv](report.csv).",
        "",
        "```",
        report.command,
        "```",
        "",
        *[f"- {note}." for note in report.notes],
        *([f"- {SEEN_MEANS}"] if report.marked else []),
        "",
        *_claims([row for section in done if section.result is not None for row in section.result.rows]),
    ]
    written: list[str] = []
    for section in done:
        lines += _section(section, report.models, folder, written)
    if left_out := [section for section in report.sections if section.result is None]:
        lines += ["## Left out", "", *[f"- {s.title}: {s.skipped.replace(str(data), 'DATA')}." for s in left_out], ""]
    for old in (folder / "figures").glob("*.png"):
        if old.name not in written:
            old.unlink()
    shutil.copyfile(csv_file, folder / "report.csv")
    page = folder / "report.md"
    with whole(page) as stream:
        stream.write("\n".join(lines).encode())
    return page


def _claims(rows: Sequence[Row]) -> list[str]:
    found = verdicts(rows)
    if not found:
        return []
    lines = ["## What the paper says, and what is seen here", "", "| claim | figure | difference | here | |"]
    lines.append("|---|---|---|---|---|")
    for one in found:
        figure = ", ".join(part for part in (one.row.figure, one.row.group) if part)
        lines.append(f"| {one.claim.says} | {figure} | {one.row.model} | {_cell(one.row)} | {one.outcome} |")
    outcomes = [one.outcome for one in found]
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    return [*lines, "", f"Of {len(found)} comparisons: {counts}.", ""]


def _section(section: Section, models: Sequence[str], folder: Path, written: list[str]) -> list[str]:
    assert section.result is not None
    rows = headline_rows(section) or _few(section.result.rows)
    lines = [f"## {section.title}", "", section.about, "", *table(rows, models)]
    for k, plot in enumerate(p for p in section.result.plots if p.kind != "pairs"):
        drawing = plots.figure_of(plot, section.result.rows, models)
        if drawing is not None:
            name = f"{section.name}-{k}.png"
            with whole(folder / "figures" / name) as stream:
                stream.write(plots.png(drawing, DPI))
            written.append(name)
            lines += [f"![{plot.title}](figures/{name})", ""]
    if any(plot.kind == "pairs" for plot in section.result.plots):
        lines += ["The pairs of photos that changed most are in report.html, which is not published with photos.", ""]
    return [*lines, *[f"- {note}" for note in section.result.notes], ""]


def _few(rows: list[Row]) -> list[Row]:
    """All, or those of the first figure, where a page has room for them; else none."""
    for some in (rows, [row for row in rows if row.figure == rows[0].figure]):
        if len({(row.figure, row.group, row.setting) for row in some}) <= LONG:
            return some
    return []


def table(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    """Lines of Markdown tables, a row for each figure: a column for each model and people, then for each difference."""
    differences = [row for row in rows if row.is_difference]
    return [*_table([row for row in rows if not row.is_difference], models), *_table(differences, ())]


def _table(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(row.model for row in rows))
    columns = [name for name in (*models, PEOPLE) if name in names]
    columns += [name for name in names if name not in columns]
    out = [f"| figure | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    at = {(row.figure, row.group, row.setting, row.model): row for row in rows}
    for key in dict.fromkeys((row.figure, row.group, row.setting) for row in rows):
        cells = [_cell(at[*key, column]) if (*key, column) in at else "" for column in columns]
        out.append(f"| {', '.join(part for part in key if part)} | {' | '.join(cells)} |")
    return [*out, ""]


def _cell(row: Row) -> str:
    e, sign = row.estimate, "+" if row.is_difference else ""
    spread = "" if e.low == e.value == e.high else f" [{e.low:{sign}.3f}, {e.high:{sign}.3f}]"
    return f"{e.value:{sign}.3f}{f' {SEEN}' if row.seen else ''}{spread}"
