"""The model card of a bundle as Markdown, every number from its manifest, or its figures from an evaluation."""

from contract.manifest import Figure, Manifest
from export.report_figures import DIFFERENCE


def card(manifest: Manifest, *, reported: bool = False) -> str:
    """Render the card. Figures that exist before and after alignment share a row.

    Args:
        manifest: of the bundle.
        reported: whether its figures are those of a report, which stand in no manifest.
    """
    m = manifest
    source = "the manifest; figures from a report of `python -m training evaluate`" if reported else "the manifest"
    maker = "Made by `make starter`; this page by" if m.name == "starter" else "This page is made by"
    lines = [
        f"# Model card: {m.name}",
        "",
        f"{m.description} {maker} `python -m export card`, from {source}.",
        "",
        f"- Base model: {m.base_model.name} ({m.base_model.source}; {m.base_model.license})",
        f"- Alignment: {m.alignment}",
        f"- Precision: {m.precision}; tie rule: {m.tie_rule}; pixels: {m.pixels.width} x {m.pixels.height}, "
        f"{m.pixels.resize}, {m.pixels.resample}",
    ]
    for name, space in m.spaces.items():
        calibrated = f"fitted on {space.calibrated_on}" if space.calibrated else "not fitted"
        lines.append(
            f"- Space `{name}`: {space.size} values, {space.similarity} similarity, "
            f"temperature {space.temperature:.4g} ({calibrated}); fingerprint `{space.fingerprint}`"
        )
    if data := m.training.get("data"):
        lines += ["- Data: " + "; ".join(f"{d['name']} ({d['source']}; {d['license']})" for d in data)]
    if m.figures:
        lines += ["", "## Figures", "", f"Command: `{m.figures[0].command}`.", ""]
        lines += _figure_table(m.figures)
        lines += ["", *(f"- {'; '.join(names)}: {note}." for note, names in _notes(m.figures).items())]
    if m.calibration:
        lines += _calibration(m)
    if m.parity:
        lines += _parity(m)
    return "\n".join(lines) + "\n"


def _calibration(m: Manifest) -> list[str]:
    lines = ["", "## Calibration", "", "Each half of the judgments is measured at a temperature fitted on the other."]
    lines += ["", "| space | people | triplets | agreement | ECE | Brier | negative log-likelihood (nats) |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for space, c in m.calibration.items():
        lines.append(
            f"| {space} | {c['people']} | {c['triplets']} | {c['agreement']:.3f} "
            f"| {c['expected_calibration_error']:.3f} | {c['brier']:.3f} | {c['negative_log_likelihood']:.3f} |"
        )
    lines += [
        "",
        "Share of people who agree with the model's choice, by tenths of triplets by entropy (its range in nats):",
        "",
    ]
    lines += ["| tenth |" + "".join(f" {space} |" for space in m.calibration)]
    lines += ["|---|" + "---|" * len(m.calibration)]
    for number, bins in enumerate(zip(*(c["table"] for c in m.calibration.values()), strict=True), 1):
        cells = [f" {b['agreement']:.3f} ({b['entropy_from']:.3f} to {b['entropy_to']:.3f}) |" for b in bins]
        lines.append(f"| {number} |" + "".join(cells))
    return lines


def _parity(m: Manifest) -> list[str]:
    lines = ["", "## Parity", "", f"Command: `{m.parity['command']}`; {m.parity['photos']} photos, "]
    lines[-1] += f"{m.parity['triplets']} triplets, against {m.parity['reference']}; times on the exporting machine."
    if m.parity.get("forced"):
        lines += [
            "",
            f"**{m.precision} is above its limits** ({m.parity['limits'][m.precision]}) and left by `--force`.",
        ]
    lengths = any("length_change" in row for row in m.parity["rows"])  # bundles of before have none
    lines += ["", f"| precision | runtime | max 1 - cosine |{' max length change |' * lengths}"]
    lines[-1] += " flips | max entropy change | top-10 kept | batch difference | ms alone | ms in batch of 8 | MB |"
    lines[-1] += " passes |"
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|" + "---|" * lengths]
    for row in m.parity["rows"]:
        length = f"| {row['length_change']:.1e} " if "length_change" in row else "|  " * lengths
        lines.append(
            f"| {row['precision']} | {row.get('runtime', 'onnxruntime')} | {row['one_minus_cosine']:.1e} "
            f"{length}| {row['flips']:.2%} | {row['entropy_change']:.1e} | {row['neighbours']:.3f} "
            f"| {row['batch_difference']:.1e} | {row['milliseconds_alone']:.1f} | {row['milliseconds_in_batch']:.1f} "
            f"| {row['bytes'] / 1e6:.1f} | {'yes' if row['passed'] else 'no'} |"
        )
    return lines


def _figure_table(figures: list[Figure]) -> list[str]:
    """A row for each figure, a column for each space that has any, and one for paired differences."""
    heads = {"base": "before (base)", "aligned": "after (aligned)", DIFFERENCE: "difference, paired"}
    spaces = [space for space in heads if space == "aligned" or any(f.space == space for f in figures)]
    by_name: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_name.setdefault(figure.name, {})[figure.space] = figure
    lines = [f"| figure | {' | '.join(heads[space] for space in spaces)} | n |", "|---|" + "---|" * (len(spaces) + 1)]
    for name, found in by_name.items():
        one = found.get("aligned") or next(iter(found.values()))
        cells = " | ".join(_value(found.get(space), "+" if space == DIFFERENCE else "") for space in spaces)
        lines.append(f"| {name} ({one.unit}) | {cells} | {one.n} |")
    return lines


def _notes(figures: list[Figure]) -> dict[str, list[str]]:
    """The names of the figures that share a note."""
    out: dict[str, list[str]] = {}
    for name, figure in {f.name: f for f in figures if f.space != "base"}.items():
        out.setdefault(figure.note, []).append(name)
    return out


def _value(figure: Figure | None, sign: str) -> str:
    if figure is None or figure.value is None:
        return "none"
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"
