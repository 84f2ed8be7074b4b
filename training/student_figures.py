"""What students are worth: the same figures for base model, teacher and student, and their paired differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.triplets import Kernel
from training import evaluate
from training.evaluate import Estimate, Judged, Statistic
from training.recipe import Recipe
from training.run import Data, has_animals_and_vehicles, two_animals_and_a_vehicle

KERNEL: Kernel = "dot"
"""Of all models alike, as in the paper's THINGS figures; agreement is given by cosine too."""


@dataclass(frozen=True)
class Split:
    """One split's held-out concepts, and every model's vectors [n, d] of all photos."""

    seed: int
    held_out: NDArray[np.int64]
    vectors: dict[str, NDArray[np.float32]]


def student_figures(splits: Sequence[Split], data: Data, recipe: Recipe) -> dict[str, Any]:
    """Estimates of every model, and of every difference `a - b` between two of them, by name.

    Args:
        splits: with the same models each.
        data: photos and VICE.
        recipe: of the teacher, for its draws, bootstrap and seed.

    Returns:
        {"models": {model: {figure: estimate}}, "differences": {"a - b": {figure: estimate}}, "temperature": {model: T
        fitted on VICE's probabilities}, "splits", "ties", "kernel"}.
    """
    names = list(splits[0].vectors)
    judged = {name: judge(splits, name, data, recipe, KERNEL) for name in names}
    cosine = {name: judge(splits, name, data, recipe, "cosine") for name in names}
    temperature = {
        name: evaluate.fit_temperature(*evaluate.pooled(judged[name], per_split=20_000, seed=recipe.seed))
        for name in names
    }
    statistics = {name: _statistics(temperature[name]) for name in names}
    hits = {name: [_hits(split, name, data) for split in splits] for name in names}
    asked = [key for key in hits[names[0]][0] if all(key in h for h in hits[names[0]])]  # of every split
    options = {"repetitions": recipe.bootstrap, "seed": recipe.seed}
    models: dict[str, dict[str, Estimate]] = {}
    for name in names:
        models[name] = {key: evaluate.estimate(judged[name], s, **options) for key, s in statistics[name].items()}
        models[name]["agreement by cosine"] = evaluate.estimate(cosine[name], evaluate.agreement, **options)
        models[name] |= {
            key: evaluate.average([evaluate.proportion(float(h[key].sum()), len(h[key])) for h in hits[name]])
            for key in asked
        }
    differences: dict[str, dict[str, Estimate]] = {}
    for a, b in [(a, b) for i, a in enumerate(names) for b in names[:i]]:
        differences[f"{a} - {b}"] = {
            key: evaluate.difference(judged[a], judged[b], (statistics[a][key], statistics[b][key]), **options)
            for key in statistics[a]
        } | {key: paired_mean([x[key] for x in hits[a]], [x[key] for x in hits[b]]) for key in asked}
    as_dicts = {
        kind: {name: {key: asdict(e) for key, e in figures.items()} for name, figures in groups.items()}
        for kind, groups in (("models", models), ("differences", differences))
    }
    return as_dicts | {
        "temperature": temperature,
        "splits": [split.seed for split in splits],
        "ties": "a tie counts as wrong",
        "kernel": KERNEL,
    }


def judge(splits: Sequence[Split], name: str, data: Data, recipe: Recipe, kernel: Kernel) -> list[Judged]:
    """What one model judges of each split's held-out concepts."""
    return [
        evaluate.judge_split(
            split.vectors[name],
            [data.photos.of_concept(c) for c in split.held_out],
            data.vice[split.held_out],
            kernel,
            draws=recipe.draws,
            seed=split.seed,
        )
        for split in splits
    ]


def _statistics(temperature: float) -> dict[str, Statistic]:
    return {
        "agreement with VICE": evaluate.agreement,
        "RSA with VICE": evaluate.rsa,
        "entropy correlation with VICE": evaluate.entropy_correlation(temperature),
        "KL from VICE": evaluate.divergence(temperature),
    }


def _hits(split: Split, name: str, data: Data) -> dict[str, NDArray[np.bool_]]:
    """Right or wrong, photo by photo and triplet by triplet, of what the data have."""
    x = split.vectors[name]
    caltech, label = data.photos.of_dataset("caltech101")
    trained = np.setdiff1d(data.photos.concepts, split.held_out)
    unseen = ~np.isin(data.photos.concept[caltech], trained)
    hits = {}
    for key, asked in (("", np.ones(len(label), bool)), (", classes not trained on", unseen)):
        if asked.any():
            hits[f"Caltech-101 1-NN{key}"] = evaluate.nearest_neighbour_hits(x[caltech], label, asked)
    if has_animals_and_vehicles(data, split.held_out):
        sims = two_animals_and_a_vehicle(data, x, split.held_out, KERNEL, split.seed)
        hits["two animals and a vehicle: the vehicle is odd"] = triplets.odd_one_out(sims) == 2
    return hits


def paired_mean(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]) -> Estimate:
    """Mean of first - second over splits; the interval of one split, as in `evaluate.average`."""
    return evaluate.average([evaluate.mean(a.astype(np.float64) - b) for a, b in zip(first, second, strict=True)])
