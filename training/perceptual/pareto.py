"""What each weight of a joint alignment gains and loses: figures, their differences, and the Pareto front.

Across: agreement with VICE's most likely odd one out on triplets of held-out concepts, dot product, ties wrong. Up:
two-alternative accuracy on trials of images that training did not see. A weight is on the front where no other is at
least as good in both and better in one.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contract.files import whole
from training import evaluate
from training.evaluate import Estimate
from training.perceptual.figures import accuracy, judgment_scores
from training.perceptual.trials import Trials
from training.recipe import Recipe
from training.run import Data
from training.stage import write_json
from training.student_figures import KERNEL, Split, judge, paired_mean

Vectors = NDArray[np.float32]
AGREEMENT, ACCURACY = "agreement with VICE", "two-alternative accuracy"
RSA, NEIGHBOURS = "RSA with VICE", "Caltech-101 1-NN"
HELD_OUT = f"{ACCURACY}, kinds held out"
BASE = "before"


@dataclass(frozen=True)
class JointSplit:
    """One split: its held-out concepts, and embeddings of (all photos, all images of trials).

    Attributes:
        seed: of the split.
        held_out: concept numbers.
        before: alignment.
        aligned: by weight.
        teacher: [photos, k] vectors of the semantic part's teacher.
    """

    seed: int
    held_out: NDArray[np.int64]
    before: tuple[Vectors, Vectors]
    aligned: dict[float, tuple[Vectors, Vectors]]
    teacher: Vectors


def model_name(weight: float) -> str:
    """What tables call the model of a weight."""
    return f"weight {weight:g}"


def pareto(
    splits: Sequence[JointSplit], data: Data, recipe: Recipe, trials: Trials, taught: set[str]
) -> dict[str, Any]:
    """Figures of the model before alignment and at every weight, and paired differences.

    Args:
        splits: with the same weights each.
        data: photos and VICE.
        recipe: of the teacher, for its draws, bootstrap and seed.
        trials: that are reported.
        taught: kinds of trial that training saw.

    Returns:
        {"models": {model: {figure: estimate}}, "differences": {"a - b": {figure: estimate}}, "front": weights on the
        Pareto front, "teacher": its agreement, "rule": how trials are scored, "trials": how many, "splits": seeds}.
        Differences are to the model before, and to weight 0, AligNet alone, where it is there.
    """
    vectors = [{BASE: s.before} | {model_name(w): pair for w, pair in s.aligned.items()} for s in splits]
    names = list(vectors[0])
    semantic = [
        Split(s.seed, s.held_out, {name: pair[0] for name, pair in own.items()} | {"teacher": s.teacher})
        for s, own in zip(splits, vectors, strict=True)
    ]
    judged = {name: judge(semantic, name, data, recipe, KERNEL) for name in (*names, "teacher")}
    options = {"repetitions": recipe.bootstrap, "seed": recipe.seed}
    looks = _Looks(trials, taught, {name: [own[name][1] for own in vectors] for name in names}, options)
    hits = {name: [_neighbours(split, name, data) for split in semantic] for name in names}
    models: dict[str, dict[str, Estimate]] = {}
    for name in names:
        models[name] = {
            AGREEMENT: evaluate.estimate(judged[name], evaluate.agreement, **options),
            RSA: evaluate.estimate(judged[name], evaluate.rsa, **options),
            **looks.estimates(lambda by, name=name: by[name]),  # type: ignore[misc]
        }
        if len(hits[name][0]):
            models[name][NEIGHBOURS] = evaluate.average(
                [evaluate.proportion(float(h.sum()), len(h)) for h in hits[name]]
            )
    pairs = [(name, BASE) for name in names[1:]]
    pairs += [(name, model_name(0)) for name in names[1:] if name != model_name(0) and model_name(0) in names]
    differences: dict[str, dict[str, Estimate]] = {}
    for a, b in pairs:
        differences[f"{a} - {b}"] = {
            AGREEMENT: evaluate.difference(judged[a], judged[b], (evaluate.agreement,) * 2, **options),
            RSA: evaluate.difference(judged[a], judged[b], (evaluate.rsa,) * 2, **options),
            **looks.estimates(lambda by, a=a, b=b: by[a] - by[b]),  # type: ignore[misc]
        }
        if len(hits[a][0]):
            differences[f"{a} - {b}"][NEIGHBOURS] = paired_mean(hits[a], hits[b])
    weights = {model_name(weight): weight for weight in splits[0].aligned}
    points = np.array([[models[name][AGREEMENT].value, models[name][ACCURACY].value] for name in weights])
    return {
        "models": _plain(models),
        "differences": _plain(differences),
        "front": [weight for weight, on in zip(weights.values(), on_front(points), strict=True) if on],
        "teacher": asdict(evaluate.estimate(judged["teacher"], evaluate.agreement, **options)),
        "rule": trials.rule,
        "trials": len(trials),
        "splits": [split.seed for split in splits],
    }


def of_weight(figures: dict[str, Any], weight: float) -> dict[str, Any]:
    """What `pareto` found of one weight, and how: for the model card of each split's model at that weight.

    Returns:
        {"before", "after", "after - before": {figure: estimate}, "notes": {figure: how it was measured}}.
    """
    name = model_name(weight)
    splits = ", ".join(map(str, figures["splits"]))
    judged = f"of held-out concepts, {KERNEL} product; splits {splits} of the concepts"
    accuracy = f"1 - cosine; {figures['rule']}; {figures['trials']} trials of images that training did not see"
    notes = {
        AGREEMENT: f"triplets {judged}; a tie counts as wrong",
        RSA: f"pairs {judged}",
        ACCURACY: f"{accuracy}; splits {splits}",
        HELD_OUT: f"{accuracy}, of kinds that it did not see either; splits {splits}",
        NEIGHBOURS: f"class of the nearest other photo by cosine, photos of training among them; splits {splits}",
    }
    after = figures["models"][name]
    return {
        "before": figures["models"][BASE],
        "after": after,
        "after - before": figures["differences"][f"{name} - {BASE}"],
        "notes": {figure: notes[figure] for figure in after},
    }


class _Looks:
    """What each model earns on each judgment, mean over splits, and estimates of it by kind of trial."""

    def __init__(
        self, trials: Trials, taught: set[str], vectors: dict[str, list[Vectors]], options: dict[str, int]
    ) -> None:
        self.earned = {
            name: np.mean([judgment_scores(trials, x) for x in every], axis=0) for name, every in vectors.items()
        }
        self.options = options
        _, first = np.unique(trials.judgment, return_index=True)
        self.unit = trials.unit[first]
        self.seen = np.isin(trials.kind[first], sorted(taught))

    def estimates(self, of: Callable[[dict[str, NDArray[np.float64]]], NDArray[np.float64]]) -> dict[str, Estimate]:
        """Of what `of` makes of the models' scores: of all judgments, and of kinds held out, if there are."""
        score = of(self.earned)
        out = {ACCURACY: accuracy(score, self.unit, **self.options)}
        if not self.seen.all():
            held = ~self.seen
            out[HELD_OUT] = accuracy(score[held], self.unit[held], **self.options)
        return out


def _neighbours(split: Split, name: str, data: Data) -> NDArray[np.bool_]:
    caltech, label = data.photos.of_dataset("caltech101")
    if not len(label):
        return np.zeros(0, bool)
    return evaluate.nearest_neighbour_hits(split.vectors[name][caltech], label, np.ones(len(label), bool))


def on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of [n, 2] points no other point is at least as high as in both and higher in one."""
    (x, y), (other_x, other_y) = points.T[:, :, None], points.T[:, None, :]
    beaten = (other_x >= x) & (other_y >= y) & ((other_x > x) | (other_y > y))
    out: NDArray[np.bool_] = np.logical_not(np.any(beaten, axis=1))
    return out


def _plain(groups: dict[str, dict[str, Estimate]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {name: {key: asdict(e) for key, e in figures.items()} for name, figures in groups.items()}


# --- files ----------------------------------------------------------------------------------------


def write_pareto(figures: dict[str, Any], out: Path) -> None:
    """Write pareto.json, pareto.csv, pareto.svg and pareto.png, each whole or not at all."""
    write_json(out / "pareto.json", figures)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("model", "figure", "value", "low", "high", "n"))
    for group in ("models", "differences"):
        for model, found in figures[group].items():
            table.writerows((model, name, e["value"], e["low"], e["high"], e["n"]) for name, e in found.items())
    with whole(out / "pareto.csv") as stream:
        stream.write(text.getvalue().encode())
    drawing = plot(figures)
    for form in ("svg", "png"):
        # Neither date nor random identifiers: the same figures give the same bytes.
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        with rc_context({"svg.hashsalt": "pareto"}), whole(out / f"pareto.{form}") as stream:
            drawing.savefig(stream, format=form, dpi=150, metadata=metadata, bbox_inches="tight")


def plot(figures: dict[str, Any]) -> Figure:
    """Agreement across, two-alternative accuracy up, 95 % intervals; weights on the front are joined."""
    figure = Figure(figsize=(6.5, 5))
    axes = figure.subplots()
    front = {model_name(weight) for weight in figures["front"]}
    for model, found in figures["models"].items():
        x, y = found[AGREEMENT], found[ACCURACY]
        spread = [np.abs([[e["value"] - e["low"]], [e["high"] - e["value"]]]) for e in (x, y)]
        colour = "#8c8c8c" if model == BASE else "#cc5533" if model in front else "#4477aa"
        axes.errorbar(
            x["value"], y["value"], xerr=spread[0], yerr=spread[1], fmt="o", color=colour, capsize=2, linewidth=0.6
        )
        label = model.removeprefix("weight ")
        axes.annotate(label, (x["value"], y["value"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ends = sorted(
        (figures["models"][name][AGREEMENT]["value"], figures["models"][name][ACCURACY]["value"]) for name in front
    )
    axes.plot(*zip(*ends, strict=True), color="#cc5533", linewidth=1)
    axes.axvline(figures["teacher"]["value"], color="#222222", linewidth=0.7, linestyle="dotted", label="teacher")
    axes.set_xlabel("agreement with VICE on held-out concepts")
    axes.set_ylabel("two-alternative accuracy on images not seen")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("weight of the perceptual part; 95 % intervals", fontsize=10)
    return figure
