"""The page of results: what runs of students gained and lost, in tables and plots, from their run folders.

Every number is read from a run's figures.json or computed from its stored vectors; nothing is typed in. Differences
between two runs are paired: the same splits, photos, concepts and triplets.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contract.files import whole
from training.evaluate import Estimate
from training.recipes import recipes_of
from training.run import Data, read_data, require_inputs, split_concepts
from training.student import StudentRecipe
from training.student_figures import Split, student_figures

Numbers = dict[str, float]
FIRST = "agreement with VICE"
"""The figure that tables begin with."""
COLOURS = {"base": "#9a9a9a", "teacher": "#4477aa", "student": "#cc5533"}


@dataclass(frozen=True)
class StudentRun:
    """A complete run of one student recipe."""

    folder: Path
    recipe: StudentRecipe
    figures: dict[str, Any]

    def vectors(self, seed: int) -> NDArray[np.float32]:
        """The student's embeddings [n, d] of all photos, of one split."""
        return np.asarray(np.load(self.folder / f"split-{seed}/features/features.npy", allow_pickle=False))

    def curve(self, seed: int) -> list[dict[str, float]]:
        """The log of one split's training, a line a step."""
        return [json.loads(line) for line in (self.folder / f"split-{seed}/log.jsonl").read_text().splitlines()]


def _filled(recipe: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe, or a part of one, with the fields it has gained since, which have their defaults there."""
    out = dict(stored)
    for field in fields(recipe):
        if field.name not in out and field.default is not MISSING:
            out[field.name] = json.loads(json.dumps(field.default))
        elif is_dataclass(own := getattr(recipe, field.name)) and isinstance(out.get(field.name), dict):
            out[field.name] = _filled(own, out[field.name])
    return out


def read_run(folder: Path, data_folder: Path) -> StudentRun:
    """A complete run of a student. Raises ValueError when it is incomplete, or is of another recipe or data."""
    if not (folder / "figures.json").is_file():
        raise ValueError(f"{folder} holds no complete run of a student; finish it with `python -m training run`.")
    stored = json.loads((folder / "recipe.json").read_text())
    require_inputs(data_folder, stored["inputs"])
    for recipe in recipes_of(StudentRecipe).values():
        if json.loads(json.dumps(asdict(recipe))) == _filled(recipe, stored.get("student", {})):
            return StudentRun(folder, recipe, json.loads((folder / "figures.json").read_text()))
    name = stored.get("student", {}).get("name")
    raise ValueError(f"{folder} was made by a recipe {name!r} that training/recipes/ does not hold in this state.")


def write_results(folders: Sequence[Path], data_folder: Path, out: Path) -> Path:
    """Write `results.md` and its plots under `results/`; the first run is the one that others are compared with.

    Raises:
        ValueError: no run given, or a folder is no complete run.
    """
    if not folders:
        raise ValueError("no run given; expected at least one folder of a student's run.")
    data = read_data(data_folder)
    runs = [read_run(folder, data_folder) for folder in folders]
    main, others = runs[0], runs[1:]
    compared = {run.recipe.name: compare(main, run, data) for run in others}
    (out / "results").mkdir(parents=True, exist_ok=True)
    plot_models(main, out / "results/models.svg")
    if others:
        plot_runs(runs, out / "results/runs.svg")
    plot_curves(runs, out / "results/curves.svg")
    page = out / "results.md"
    with whole(page) as stream:
        stream.write(_page(main, others, compared).encode())
    return page


def compare(main: StudentRun, other: StudentRun, data: Data) -> dict[str, Numbers]:
    """Estimates of (main - other) for every figure, on the splits that both have.

    Raises:
        ValueError: the two runs have no split in common, or other teachers' splits.
    """
    common = sorted(set(main.figures["splits"]) & set(other.figures["splits"]))
    teacher = main.recipe.teacher
    if not common or teacher.held_out != other.recipe.teacher.held_out:
        raise ValueError(f"{other.folder} and {main.folder} have no split in common; they cannot be compared.")
    splits = [
        Split(
            seed,
            split_concepts(data.photos.concepts, teacher.held_out, seed)[1],
            {"other": other.vectors(seed), "main": main.vectors(seed)},
        )
        for seed in common
    ]
    found: dict[str, Numbers] = student_figures(splits, data, teacher)["differences"]["main - other"]
    return found


# --- the page -------------------------------------------------------------------------------------


def _page(main: StudentRun, others: Sequence[StudentRun], compared: dict[str, dict[str, Numbers]]) -> str:
    models, differences = main.figures["models"], main.figures["differences"]
    concepts = round(models["student"][FIRST]["n"])
    splits = ", ".join(str(seed) for seed in main.figures["splits"])
    against = [model for model in ("base", "untrained", "teacher") if model in models]
    lines = [
        "# Results",
        "",
        "Written by `python -m training results`, from run folders; no number here is typed. Figures are on concepts",
        f"of which no photo was in any training stage (splits {splits}: {concepts} judged in all), by dot",
        "product, a tie counts as wrong, chance is 1/3. Brackets: 95 %, bootstrap over splits and concepts",
        "(agreement, RSA, entropy, KL) or one split's interval (nearest neighbours, vehicles). Differences are paired.",
        "`untrained` is the student before its first step: the readout, fitted to the teacher, of the base's blocks.",
        "",
        f"## {main.recipe.name}",
        "",
        main.recipe.description,
        _constants(main.recipe),
        "",
        f"| figure | {' | '.join((*against, 'student'))} | {' | '.join(f'student - {m}' for m in against)} |",
        "|---" * (2 * len(against) + 2) + "|",
    ]
    for name in _names(main):
        cells = [_cell(models[model][name]) for model in (*against, "student")]
        cells += [_cell(differences[f"student - {m}"].get(name), signed=True) for m in against]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "![base, teacher, student](results/models.svg)", ""]
    if others:
        lines += _ablations(main, others, compared)
    lines += ["![training curves](results/curves.svg)", "", "## Commands", "", "```"]
    lines += [
        f"python -m training run {_file(run.recipe)} --data DATA --out RUN --teacher TEACHER{_splits(run)}"
        for run in (main, *others)
    ]
    lines += ["python -m training results RUN... --data DATA --out docs", "```", ""]
    return "\n".join(lines)


def _names(run: StudentRun) -> list[str]:
    """Figures in the order of tables and plots."""
    return sorted(run.figures["models"]["student"], key=lambda name: (name != FIRST, name))


def _ablations(main: StudentRun, others: Sequence[StudentRun], compared: dict[str, dict[str, Numbers]]) -> list[str]:
    shown = (FIRST, "RSA with VICE", "entropy correlation with VICE", "Caltech-101 1-NN")
    lines = ["## What each part gives", "", "Each run as the first but for what its name says.", ""]
    own = f"{FIRST}, minus its teacher's"
    lines += [f"| run | splits | {' | '.join((*shown, own))} |", "|---|---|" + "---|" * (len(shown) + 1)]
    for run in (main, *others):
        cells = [_cell(run.figures["models"]["student"].get(name)) for name in shown]
        cells.append(_cell(run.figures["differences"]["student - teacher"].get(FIRST), signed=True))
        splits = ", ".join(str(seed) for seed in run.figures["splits"])
        lines.append(f"| {run.recipe.name} | {splits} | {' | '.join(cells)} |")
    lines += ["", f"Paired: {main.recipe.name} minus the other, on the splits of both.", ""]
    lines += [f"| other | {' | '.join(shown)} | what is other |", "|---|" + "---|" * (len(shown) + 1)]
    for run in others:
        cells = [_cell(compared[run.recipe.name].get(name), signed=True) for name in shown]
        lines.append(f"| {run.recipe.name} | {' | '.join(cells)} | {run.recipe.description} |")
    return [*lines, "", "![runs](results/runs.svg)", ""]


def _constants(recipe: StudentRecipe) -> str:
    d, f, r = recipe.distill, recipe.feed, recipe.readout
    read = f"; readout of the last {r.blocks} blocks, penalty {r.penalty:g}, dropout {r.dropout:g}" if r else ""
    return (
        f"Model `{recipe.model}` at {recipe.side} px, {d.steps} steps of {f.batch} ({f.feed}, {f.sampling}), "
        f"rate {d.learning_rate:g}, decay {d.decay:g}, regression {d.regression:g}, temperature {d.temperature:g}, "
        f"{d.precision}{read}."
    )


def _file(recipe: StudentRecipe) -> str:
    return next(file for file, found in recipes_of(StudentRecipe).items() if found == recipe)


def _splits(run: StudentRun) -> str:
    """The option for a run that was content with some of its recipe's splits."""
    done = run.figures["splits"]
    return "" if done == list(run.recipe.split_seeds) else f" --splits {' '.join(map(str, done))}"


def _cell(e: Numbers | None, *, signed: bool = False) -> str:
    if e is None:
        return ""
    sign = "+" if signed else ""
    return f"{e['value']:{sign}.3f} [{e['low']:{sign}.3f}, {e['high']:{sign}.3f}]"


# --- plots ----------------------------------------------------------------------------------------


def _save(figure: Figure, file: Path) -> None:
    # Neither date nor random identifiers: the same runs give the same bytes.
    with rc_context({"svg.hashsalt": "results"}), whole(file) as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None}, bbox_inches="tight")


def plot_models(run: StudentRun, file: Path) -> None:
    """Bars of base, teacher and student for each figure that lies between 0 and 1."""
    names = [name for name in _names(run) if not name.startswith("KL")]
    figure = Figure(figsize=(12, 4))
    axes = figure.subplots()
    for k, model in enumerate(("base", "teacher", "student")):
        estimates = [Estimate(**run.figures["models"][model][name]) for name in names]
        _bars(axes, np.arange(len(names)) + 0.27 * (k - 1), estimates, COLOURS[model], model)
    axes.set_xticks(
        range(len(names)), [name.replace(" with ", "\nwith ").replace(", ", "\n").replace(": ", "\n") for name in names]
    )
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    axes.set_title("held-out concepts; 95 % intervals")
    _save(figure, file)


def plot_runs(runs: Sequence[StudentRun], file: Path) -> None:
    """Agreement against nearest neighbours, or RSA where there are none, of runs on the first one's splits."""
    runs = [run for run in runs if run.figures["splits"] == runs[0].figures["splits"]]  # others are judged on less
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    points = [("base", runs[0].figures["models"]["base"], COLOURS["base"])]
    points += [("teacher", runs[0].figures["models"]["teacher"], COLOURS["teacher"])]
    points += [(run.recipe.name, run.figures["models"]["student"], COLOURS["student"]) for run in runs]
    second = next(name for name in ("Caltech-101 1-NN", "RSA with VICE") if all(name in p[1] for p in points))
    for name, figures, colour in points:
        x, y = figures[FIRST], figures[second]
        spread = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
        axes.errorbar(x["value"], y["value"], xerr=spread, fmt="o", color=colour, capsize=2, linewidth=0.8)
        axes.annotate(name, (x["value"], y["value"]), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("agreement with VICE on held-out concepts")
    axes.set_ylabel(second)
    _save(figure, file)


def plot_curves(runs: Sequence[StudentRun], file: Path) -> None:
    """Divergence from the teacher's judgments against steps, mean of ten steps, first split of each run."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for run in runs:
        values = np.array([line["divergence"] for line in run.curve(run.figures["splits"][0])])
        width = min(10, len(values))
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axes.plot(np.arange(len(smooth)) + width, smooth, label=run.recipe.name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("divergence from the teacher, nats")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=7)
    _save(figure, file)


def _bars(axes: Any, positions: NDArray[Any], estimates: Sequence[Estimate], colour: str, label: str) -> None:
    values = np.array([e.value for e in estimates])
    spread = np.abs(np.array([[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]))
    axes.bar(positions, values, 0.25, yerr=spread, color=colour, label=label, capsize=2, error_kw={"linewidth": 0.8})
