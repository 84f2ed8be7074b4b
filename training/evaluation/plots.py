"""Drawing what protocols found: `Plot`s to SVG, in one palette, the same bytes for the same figures."""

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from PIL import Image

from training.evaluation.result import PEOPLE, SEEN, Plot, Row

PALETTE = ("#8c8c8c", "#4477aa", "#cc5533", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#332288")
"""One colour a model, in the order of the command line; the reference is grey."""
PEOPLE_COLOUR = "#222222"


def colours(models: Sequence[str]) -> dict[str, str]:
    """Colour of each model."""
    return {model: PALETTE[i % len(PALETTE)] for i, model in enumerate(models)}


Style = AbstractContextManager[None]


def _style(title: str) -> Style:
    # The salt makes identifiers inside an SVG the same for the same plot.
    return rc_context({"svg.hashsalt": title, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def figure_of(plot: Plot, rows: Sequence[Row], models: Sequence[str]) -> Figure | None:
    """A plot, drawn; None where there is nothing to draw. `pairs` are no drawing, see `training.evaluation.report`."""
    drawers: dict[str, Callable[[Plot, Sequence[Row], Sequence[str]], Figure | None]] = {
        "bars": _bars,
        "lines": _lines,
        "map": _map,
        "heatmap": _heatmap,
    }
    with _style(plot.title):
        figure = drawers[plot.kind](plot, rows, models)
    if figure is not None:
        figure.suptitle(plot.title, fontsize=10)
    return figure


def svg(figure: Figure, salt: str) -> str:
    """The figure as SVG, the same bytes for the same figure."""
    stream = io.StringIO()
    with _style(salt):
        figure.savefig(stream, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return stream.getvalue()


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as PNG of few colours: small, whatever the number of its points."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None}, bbox_inches="tight")
    small = io.BytesIO()
    with Image.open(stream) as drawn:
        drawn.convert("RGB").quantize(64, Image.Quantize.MEDIANCUT).save(small, "PNG", optimize=True)
    return small.getvalue()


def _bars(plot: Plot, rows: Sequence[Row], models: Sequence[str]) -> Figure | None:
    """Bars with intervals, a group of them for each group (or setting) of the figure; people as a dashed line."""
    figure, setting = plot.values["figure"], plot.values.get("setting")
    own = [row for row in rows if row.figure == figure and (setting is None or row.setting == setting)]
    own = [row for row in own if not row.is_difference]
    by_group = len({row.group for row in own}) > 1
    labels = list(dict.fromkeys(row.group if by_group else row.setting for row in own if row.model != PEOPLE))
    if not labels:
        return None
    drawing = Figure(figsize=(max(4.5, min(14.0, 1.5 + 0.55 * len(labels) * len(models) ** 0.5)), 3.4))
    axes = drawing.subplots()
    width = 0.8 / len(models)
    for k, model in enumerate(models):
        named = model + f" {SEEN}" * any(row.seen for row in own if row.model == model)
        for i, label in enumerate(labels):
            found = [r.estimate for r in own if r.model == model and (r.group if by_group else r.setting) == label]
            for e in found[:1]:
                spread = [[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]]
                x = i + width * (k - (len(models) - 1) / 2)
                axes.bar(
                    x,
                    e.value,
                    0.92 * width,
                    yerr=spread,
                    color=colours(models)[model],
                    label=named if i == 0 else None,
                    capsize=2,
                    error_kw={"linewidth": 0.8},
                )
    for row in rows:
        if row.model == PEOPLE and row.figure in (figure, plot.values.get("people")) and row.group in {"", *labels}:
            at = labels.index(row.group) if row.group in labels else None
            span = (-0.5, len(labels) - 0.5) if at is None else (at - 0.5, at + 0.5)
            axes.hlines(row.estimate.value, *span, colors=PEOPLE_COLOUR, linestyles="dashed", linewidth=1)
    if (chance := plot.values.get("chance")) is not None:
        axes.axhline(chance, color=PEOPLE_COLOUR, linewidth=0.6, linestyle="dotted")
    axes.set_xticks(
        range(len(labels)), labels, rotation=45 if len(labels) > 5 else 0, ha="right" if len(labels) > 5 else "center"
    )
    axes.set_ylabel(figure)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def _lines(plot: Plot, _: Sequence[Row], models: Sequence[str]) -> Figure | None:
    """Series of points joined by lines; one whose label is no model is dashed."""
    series = plot.values["series"]
    if not series:
        return None
    drawing = Figure(figsize=(4.8, 3.6))
    axes = drawing.subplots()
    for line in series:
        if line["label"] in models:
            axes.plot(
                line["x"],
                line["y"],
                marker="o",
                markersize=3,
                color=colours(models)[line["label"]],
                label=line["label"],
            )
        else:
            axes.plot(line["x"], line["y"], linestyle="dashed", linewidth=0.8, color=PEOPLE_COLOUR, label=line["label"])
    axes.set_xlabel(plot.values["x"])
    axes.set_ylabel(plot.values["y"])
    axes.legend(frameon=False, fontsize=8)
    return drawing


def _in_order(panels: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Panels of models in their order, whatever order a stored result has, then others."""
    return {
        name: panels[name] for name in [*[m for m in models if m in panels], *[n for n in panels if n not in models]]
    }


def _map(plot: Plot, _: Sequence[Row], models: Sequence[str]) -> Figure | None:
    """Points of each model in its own panel, one colour a class."""
    panels = _in_order(plot.values["points"], models)
    classes = plot.values["classes"]
    names = list(dict.fromkeys(classes))
    shades = colormaps["tab20"](np.linspace(0, 1, max(2, len(names))))
    drawing = Figure(figsize=(3.6 * len(panels), 3.6))
    for axes, model in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        xy = np.array(panels[model])
        for i, name in enumerate(names):
            mine = np.array([c == name for c in classes])
            axes.scatter(*xy[mine].T, s=6, color=shades[i], label=name, linewidths=0)
        axes.set_title(model, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7, markerscale=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def _heatmap(plot: Plot, _: Sequence[Row], models: Sequence[str]) -> Figure | None:
    """A matrix for each model, one colour scale for all."""
    panels, names = _in_order(plot.values["matrices"], models), plot.values["names"]
    limit = max(abs(v) for matrix in panels.values() for row in matrix for v in row) or 1.0
    side = min(5.5, 1.6 + 0.16 * len(names))
    drawing = Figure(figsize=(side * len(panels) + 1.2, side))
    grid = drawing.subplots(1, len(panels), squeeze=False)[0]
    for k, (axes, model) in enumerate(zip(grid, panels, strict=True)):
        image = axes.imshow(np.array(panels[model]), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(model, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names if k == 0 else [""] * len(names), fontsize=6)
    drawing.colorbar(image, ax=list(grid), shrink=0.7, label=plot.values["unit"])
    return drawing


def overview(rows: Sequence[Row], title: str) -> Figure | None:
    """Differences, one line a figure, in units of the figure; None where there is no second model."""
    shown = [row for row in rows if row.is_difference]
    if not shown:
        return None
    labels = list(dict.fromkeys(_label(row) for row in shown))
    apart = len({row.model for row in shown})
    drawing = Figure(figsize=(6.5, 0.8 + 0.3 * len(labels) * max(1, apart / 2)))
    axes = drawing.subplots()
    others = {name: PALETTE[(i + 1) % len(PALETTE)] for i, name in enumerate(dict.fromkeys(row.model for row in shown))}
    for k, (model, colour) in enumerate(others.items()):
        mine = [row for row in shown if row.model == model]
        y = np.array([labels.index(_label(row)) for row in mine]) + 0.22 * (k - (len(others) - 1) / 2)
        value = np.array([row.estimate.value for row in mine])
        spread = np.abs(
            [[r.estimate.value - r.estimate.low for r in mine], [r.estimate.high - r.estimate.value for r in mine]]
        )
        axes.errorbar(value, y, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1, label=model)
    axes.axvline(0, color=PEOPLE_COLOUR, linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("difference")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    drawing.suptitle(title, fontsize=10)
    return drawing


def _label(row: Row) -> str:
    return ", ".join(part for part in (row.figure, row.group, row.setting) if part)
