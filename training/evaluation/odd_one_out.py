"""Odd-one-out accuracy: on human choices, and against VICE where people were not asked.

THINGS-format choices are single human choices (`human_test_responses.csv`) or the official N x 3 files, odd one last.
Accuracy is the share of choices that a model makes too (Hebart et al. 2020; Muttenthaler et al. 2025, "Odd-one-out
accuracy"), by dot product (the paper's) and by cosine (the reference code's default). Published numbers differ in
their tie rule, so every rule of `contract.triplets` is named; `strict` is this product's.

The ceiling is leave-one-out: each response against the majority of the others to the same triplet, a half where that
majority is tied and the response is among the tied, averaged over responses and then over triplets (Levels analysis;
the paper gives 66.67 % for THINGS). Left open by the papers: which photo stands for a concept where there are several;
here one is drawn at random for each place of each triplet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.triplets import TIE_RULES, Kernel
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import (
    ConceptTriplets,
    concept_data,
    draw_photos,
    judged_concepts,
    of_concepts,
    similarities,
    vice_triplets,
)
from training.evaluation.result import PEOPLE, Plot, Result, Row, Setting
from training.run import Data
from training.vice_data import agreement, misread, read_triplets

JUDGED_BY: tuple[Kernel, ...] = ("dot", "cosine")
HEADLINE = "dot, strict"
"""The setting that tables begin with."""
RESPONSES = "human_test_responses.csv"
MIN_TRIPLETS = 30
"""Triplets of a category below which nothing is said about it."""


@dataclass(frozen=True)
class Choices:
    """Human choices on triplets, counted.

    Attributes:
        source: file they come from.
        objects: [t, 3] concept numbers, each triplet once, ascending within it.
        counts: [t, 3] how many people chose each as the odd one.
    """

    source: str
    objects: NDArray[np.int64]
    counts: NDArray[np.int64]


def count_choices(objects: NDArray[np.int64], odd: NDArray[np.int64], source: str) -> Choices:
    """Single choices, objects [n, 3] and position [n] of the odd one, as counts for each distinct triplet."""
    order = np.argsort(objects, axis=1)
    ordered = np.take_along_axis(objects, order, 1)
    chosen = (order == odd[:, None]).argmax(1)
    distinct, which = np.unique(ordered, axis=0, return_inverse=True)
    counts = np.zeros((len(distinct), 3), np.int64)
    np.add.at(counts, (which.reshape(-1), chosen), 1)
    return Choices(source, distinct, counts)


def noise_ceiling(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Leave-one-out agreement of each triplet's responses with the majority of the others; NaN below two responses.

    Args:
        counts: [t, 3] responses for each image.

    Returns:
        [t], mean over the triplet's responses.
    """
    n = counts.sum(1)
    total = np.zeros(len(counts))
    for k in range(3):
        rest = counts - np.eye(3, dtype=np.int64)[k]
        largest = rest.max(1)
        tied = (rest == largest[:, None]).sum(1) > 1
        total += counts[:, k] * (rest[:, k] == largest) * np.where(tied, 0.5, 1.0)
    return np.where(n > 1, total / np.maximum(n, 1), np.nan)


def read_choices(folder: Path, data: Data) -> list[Choices]:
    """Every file of choices under `things/`: the responses, and the official train_90, test_10 and their like.

    Raises:
        ValueError: a file is wrong or 1-based, or its odd one stands first where the official files have it last.
    """
    found = []
    if len(data.responses.odd):
        found.append(count_choices(data.responses.concepts, data.responses.odd, RESPONSES))
    files = [p for p in sorted((folder / "things/triplets").glob("*")) if p.suffix in (".npy", ".txt")]
    for file in files:
        rows = read_triplets(file, len(data.vice), odd="last", zero_absent=True)  # VICE tells what is 1-based
        last, first = (agreement(rows, data.vice, odd=odd) for odd in ("last", "first"))
        if first > last:
            raise ValueError(
                f"{file}: VICE agrees with the first column as the odd one in {first:.3f} of rows and with the last in "
                f"{last:.3f}; the official files have the odd one last. Move the first column to the end."
            )
        if said := misread(rows, data.vice, odd="last"):
            raise ValueError(f"{file}: {said}.")
        found.append(count_choices(rows, np.full(len(rows), 2), file.name))
    return found


# --- human choices --------------------------------------------------------------------------------


def human_choices(setting: Setting) -> Result:
    """Accuracy on human choices, on the triplets of which all three concepts have photos and may be judged."""
    data = concept_data(setting.data)
    vectors = setting.vectors(data.photos)
    judged = judged_concepts(setting)
    out = Result()
    for choices in read_choices(setting.data, data):
        out.rows += _people(choices, data, setting)
        covered = np.logical_and.reduce(np.isin(choices.objects, judged), axis=1)
        out.notes.append(
            f"{choices.source}: {int(covered.sum())} of {len(covered)} triplets have photos of all three concepts that "
            f"may be judged ({int(choices.counts[covered].sum())} of {int(choices.counts.sum())} responses)."
        )
        if not covered.any():
            continue
        chosen = Choices(choices.source, choices.objects[covered], choices.counts[covered])
        photos = draw_photos(data, chosen.objects, setting.constants.seed)
        sims = {(m, k): similarities(x, photos, k) for m, x in vectors.items() for k in JUDGED_BY}
        out.rows += _accuracies(sims, chosen, setting)
    out.plots.append(Plot("bars", "Agreement with human choices", {"figure": "odd-one-out accuracy"}))
    return out


def _people(choices: Choices, data: Data, setting: Setting) -> list[Row]:
    """The ceiling, and VICE itself, on all triplets of the file: neither needs a photo."""
    c = setting.constants
    ceiling = noise_ceiling(choices.counts)
    asked_twice = np.isfinite(ceiling)
    rows = []
    if asked_twice.any():
        estimate = intervals.mean_over_items(ceiling[asked_twice], c.repetitions, c.seed)
        rows.append(Row("noise ceiling", PEOPLE, estimate, choices.source, "leave-one-out"))
    scores = _scores(similarities(data.vice, np.asarray(choices.objects), "dot"), choices.counts, "strict")  # type: ignore[arg-type]
    estimate = intervals.mean_over_items(scores, c.repetitions, c.seed)
    return [*rows, Row("accuracy of VICE, all triplets", PEOPLE, estimate, choices.source, HEADLINE)]


def _accuracies(sims: dict[tuple[str, Kernel], NDArray[np.float64]], choices: Choices, setting: Setting) -> list[Row]:
    c = setting.constants
    rows = []
    for rule in TIE_RULES:
        for kernel in JUDGED_BY:
            label = f"{kernel}, {rule}"
            scores = {
                subject.name: _scores(sims[subject.name, kernel], choices.counts, rule) for subject in setting.subjects
            }
            for model, values in scores.items():
                estimate = intervals.mean_over_items(values, c.repetitions, c.seed)
                rows.append(Row("odd-one-out accuracy", model, estimate, choices.source, label))
                ties = triplets.tie_rate(sims[model, kernel], rule)
                n = len(values)
                rows.append(Row("tie rate", model, Estimate(ties, ties, ties, n), choices.source, label))
            for a, b in setting.pairs:
                estimate = intervals.mean_over_items(scores[a] - scores[b], c.repetitions, c.seed)
                rows.append(Row("odd-one-out accuracy", f"{a} - {b}", estimate, choices.source, label))
    return rows


def _scores(sims: NDArray[np.float64], counts: NDArray[np.int64], rule: triplets.TieRule) -> NDArray[np.float64]:
    """Share of a triplet's responses that are the model's choice, [t]; 0 where the rule names none."""
    odd = triplets.odd_one_out(sims, rule)
    share = counts / counts.sum(1, keepdims=True)
    picked: NDArray[np.float64] = np.take_along_axis(share, np.maximum(odd, 0)[:, None], 1)[:, 0]
    return np.where(odd == triplets.TIE, 0.0, picked)


# --- VICE -----------------------------------------------------------------------------------------


def vice_agreement(setting: Setting) -> Result:
    """Agreement with VICE on random triplets of concepts that have photos, overall and by concept category.

    `agreement with VICE` counts VICE's most likely odd one out; `expected human agreement` is the probability that
    VICE gives to the model's choice, and its ceiling is VICE's own largest probability. Both at ties strict.
    """
    data, c = concept_data(setting.data), setting.constants
    drawn = vice_triplets(setting)
    vectors = setting.vectors(data.photos)
    out = Result(notes=_judged_note(setting, drawn))
    p = triplets.odd_probabilities(drawn.vice)
    for kernel in JUDGED_BY:
        scores = {
            name: vice_scores(triplets.odd_one_out(similarities(x, drawn.photos, kernel)), p)
            for name, x in vectors.items()
        }
        out.rows += score_rows(scores, drawn.concepts, setting, f"{kernel}, strict")
    top = intervals.over_concepts(drawn.concepts, [intervals.weighted_mean(p.max(1))], c.repetitions, c.seed)[0]
    out.rows.append(Row("expected human agreement", PEOPLE, top, setting="VICE's own choice"))
    out.rows += _by_category(setting, data, vectors, out.notes)
    out.plots += [
        Plot("bars", "Agreement with VICE on concepts", {"figure": "agreement with VICE", "setting": HEADLINE}),
        Plot("bars", "By category of concept", {"figure": "outsider found", "setting": HEADLINE}),
    ]
    return out


def score_rows(
    scores: dict[str, dict[str, NDArray[np.float64]]],
    concepts: NDArray[np.int64],
    setting: Setting,
    label: str,
    group: str = "",
) -> list[Row]:
    """Means of per-triplet scores for each model, and their paired differences, intervals over concepts.

    Args:
        scores: model to figure to one score a triplet [t].
        concepts: [t, 3] of the triplets.
        setting: of the evaluation.
        label: setting of the rows.
        group: of the rows.
    """
    c = setting.constants
    means = {m: {f: intervals.weighted_mean(s) for f, s in by.items()} for m, by in scores.items()}
    keys = [(f, m, statistic) for m, by in means.items() for f, statistic in by.items()]
    keys += [(f, f"{a} - {b}", intervals.minus(means[a][f], means[b][f])) for a, b in setting.pairs for f in means[a]]
    estimates = intervals.over_concepts(concepts, [s for _, _, s in keys], c.repetitions, c.seed)
    return [Row(f, m, e, group, label) for (f, m, _), e in zip(keys, estimates, strict=True)]


def vice_scores(odd: NDArray[Any], p: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Per-triplet scores of choices [t], TIE for none, against VICE's odd probabilities [t, 3]."""
    chosen = np.where(odd == triplets.TIE, 0.0, np.take_along_axis(p, np.maximum(odd, 0)[:, None], 1)[:, 0])
    return {"agreement with VICE": (odd == p.argmax(1)).astype(np.float64), "expected human agreement": chosen}


def _by_category(setting: Setting, data: Data, vectors: dict[str, NDArray[np.float32]], notes: list[str]) -> list[Row]:
    """Two concepts of a category and one that is not: how often the outsider is found, where VICE says people do."""
    concepts = judged_concepts(setting)
    names = sorted({name for concept in concepts for name in data.categories[concept]} - {""})
    rows: list[Row] = []
    too_small = []
    for name in names:
        drawn = _outsiders(setting, data, concepts, name)
        if drawn is None:
            too_small.append(name)
            continue
        scores = {}
        for model, x in vectors.items():
            odd = triplets.odd_one_out(similarities(x, drawn.photos, "dot"))
            scores[model] = {"outsider found": (odd == 2).astype(np.float64)}
        rows += score_rows(scores, drawn.concepts, setting, HEADLINE, name)
    if too_small:
        notes.append(f"{len(too_small)} categories with too few concepts are left out: {', '.join(too_small)}.")
    return rows


def _outsiders(setting: Setting, data: Data, concepts: NDArray[np.int64], category: str) -> ConceptTriplets | None:
    """Triplets (two of the category, one not) of which VICE finds the third most likely to be odd; None if too few."""
    inside = np.array([category in data.categories[c] for c in concepts])
    if inside.sum() < 3 or (~inside).sum() < 1:
        return None
    rng = np.random.default_rng(setting.constants.seed)
    n = min(4_000, setting.constants.triplets)
    pairs = rng.integers(inside.sum(), size=(n, 2))
    rows = np.column_stack([concepts[inside][pairs], concepts[~inside][rng.integers((~inside).sum(), size=n)]])
    rows = rows[rows[:, 0] != rows[:, 1]]
    drawn = of_concepts(data, rows, setting.constants.seed)
    drawn = drawn.select(triplets.odd_one_out(drawn.vice) == 2)
    return drawn if len(drawn.concepts) >= MIN_TRIPLETS else None


def _judged_note(setting: Setting, drawn: ConceptTriplets) -> list[str]:
    n = len(judged_concepts(setting))
    known = "that no model was trained on" if setting.held_out is not None else "that have photos"
    return [f"{len(drawn.concepts)} random triplets of {n} concepts {known}; intervals are over concepts."]
