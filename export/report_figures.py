"""Figures of a report of `python -m training evaluate`, as a manifest holds them: before, after, paired difference.

Only figures of the protocols' headlines are taken; all others stay in the report. A report of a bundle names its
graph's sha256, which must be that of the bundle described. Of runs and of other models nothing ties a report to the
weights: the command, which the card shows, says what was evaluated.
"""

from contract.manifest import Figure
from training.evaluation.stored_report import StoredReport, StoredRow

BEFORE, AFTER = "base", "aligned"
DIFFERENCE = f"{AFTER} - {BEFORE}"


def figures_of(report: StoredReport, wanted: str | None = None, graph: str | None = None) -> list[Figure]:
    """The figures of one model of a report, and of the one that it is compared with.

    Args:
        report: that `read_report` gave.
        wanted: `AFTER` or `AFTER:BEFORE`, names of its models; None for the bundle with this graph, and its base.
        graph: sha256 of the bundle's model.onnx; None where the bundle is still to be made.

    Returns:
        Of every main figure one for each space: `base`, `aligned`, and `aligned - base` where the report has that.

    Raises:
        ValueError: no such model, a bundle with another graph, or no figure of the model.
    """
    after, before = _own(report, graph) if wanted is None else _named(report, wanted)
    for name in (after, before):
        of = report.models.get(name, {}).get("bundle")
        if of is not None and of != graph:
            this = "one that is still to be made" if graph is None else f"{graph[:12]}…"
            raise ValueError(
                f"{report.file}: {name} is a bundle of another graph ({of[:12]}…) than this one ({this}); "
                "evaluate this one, or name the model that it was made from."
            )
    spaces = {after: AFTER, before: BEFORE, f"{after} - {before}": DIFFERENCE}
    rows = [row for row in report.rows if row.model in spaces]
    if not any(row.model == after for row in rows):
        raise ValueError(f"{report.file} has no main figure of {after}; which suites were run?")
    seen = {_key(row) for row in rows if row.seen}
    return [_figure(row, spaces[row.model], report, _key(row) in seen) for row in rows]


def _own(report: StoredReport, graph: str | None) -> tuple[str, str]:
    """(the bundle with this graph, its base space or "") among the models of a report."""
    by_space = {
        identity.get("space"): name
        for name, identity in report.models.items()
        if graph is not None and identity.get("bundle") == graph
    }
    if AFTER not in by_space:
        raise ValueError(
            f"{report.file} has no model that is this bundle; say whose figures they are with --report-model AFTER or "
            f"AFTER:BEFORE. Its models: {', '.join(report.models)}."
        )
    return by_space[AFTER], by_space.get(BEFORE, "")


def _named(report: StoredReport, wanted: str) -> tuple[str, str]:
    """(after, before or "") of `AFTER` or `AFTER:BEFORE`; names may have a colon themselves."""
    if wanted in report.models:
        return wanted, ""
    cuts = [i for i, letter in enumerate(wanted) if letter == ":"]
    for after, before in ((wanted[:i], wanted[i + 1 :]) for i in cuts):
        if after in report.models and before in report.models and after != before:
            return after, before
    raise ValueError(
        f"{report.file} has no model {wanted!r}; expected AFTER or AFTER:BEFORE, two of {', '.join(report.models)}."
    )


def _key(row: StoredRow) -> tuple[str, str, str]:
    return row.figure, row.group, row.setting


def _figure(row: StoredRow, space: str, report: StoredReport, seen: bool) -> Figure:
    name = ", ".join(part for part in (row.figure, row.group, row.setting) if part)
    note = row.about.rstrip(".")
    if seen:
        note += "; ON CONCEPTS THAT THE MODEL WAS TRAINED ON, or may have been: it says nothing of new concepts"
    elif row.held_out and report.splits:
        numbers = ", ".join(str(one["split"]) for one in report.splits)
        sizes = " and ".join(dict.fromkeys(f"{len(one['concepts'])} of {one['of']}" for one in report.splits))
        note += f"; on held-out concepts alone: splits {numbers}, {sizes} concepts with photos (named in the report)"
    return Figure(
        name=f"{name} (concepts trained on)" if seen else name,
        space=space,
        value=row.value,
        low=row.low,
        high=row.high,
        n=row.n,
        unit=row.unit,
        note=note,
        command=report.command or "training.evaluation.suites.evaluate, from Python",
    )
