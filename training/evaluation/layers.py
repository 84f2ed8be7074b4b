"""Layer by layer: where in a vision transformer the distances of the hierarchy change.

Every block's output is averaged over its spatial tokens (Muttenthaler et al. 2025: the change grows with depth), and
distances of pairs of photos are standardised within each block as in `training.evaluation.structure`. The main figure
is the separation of a block: mean standardised distance of pairs of different superordinate categories minus that of
pairs of one class. Beside it stand the mean of each level, and the separation of living from non-living: pairs of one
of each minus pairs of two alike, of different classes all. Intervals are over classes. Up to `PHOTOS` photos, as evenly
from the classes as they allow.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluation import intervals
from training.evaluation.hierarchies import LEVELS, Hierarchy, judged_hierarchy
from training.evaluation.intervals import Matrix, Weighted
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.structure import Pairs, draw_pairs, living_parts
from training.evaluation.subjects import Subject, Vectors
from training.images import FileImages, Images
from training.layer_means import layer_means

PHOTOS = 400
PER_LEVEL = 2_000
FIGURE, LIFE, LEVEL = "separation by layer", "separation of living from non-living by layer", "distance by layer"


def layers(setting: Setting) -> Result:
    """Separation of every block of every model that has blocks, and its change where two models have as many."""
    whole, notes = judged_hierarchy(setting)
    hierarchy = whole.select(evenly(whole.classes, PHOTOS, setting.constants.seed))
    images = _only(hierarchy)
    out = Result(notes=notes)
    found: dict[str, list[Pairs]] = {}
    for subject in tqdm(setting.subjects, desc="layers", unit="model"):
        try:
            by_layer = layer_vectors(setting, subject, images)
        except _NoBlocks as error:
            out.notes.append(f"{subject.name} is left out: {error}.")
            continue
        one = [draw_pairs(hierarchy, {subject.name: x}, setting.constants.seed, PER_LEVEL) for x in by_layer]
        found[subject.name] = one
    if not found:
        raise NotHere("no model has transformer blocks that can be read")
    out.rows = _rows(setting, hierarchy, found)
    out.notes.append(f"{len(images)} photos, mean spatial token of each block.")
    for title, figure, y in (
        ("Separation by layer", FIGURE, "different minus same class, deviations"),
        ("Living from non-living by layer", LIFE, "one of each minus two alike, deviations"),
    ):
        series = _series(out.rows, figure, list(found))
        out.plots.append(Plot("lines", title, {"x": "block", "y": y, "series": series}))
    return out


def _series(rows: list[Row], figure: str, models: list[str]) -> list[dict[str, Any]]:
    """A line for each model: a point for each block that has the figure."""
    points = {
        model: [(int(r.group.removeprefix("block ")), r) for r in rows if (r.figure, r.model) == (figure, model)]
        for model in models
    }
    return [
        {"label": model, "x": [k for k, _ in own], "y": [row.estimate.value for _, row in own]}
        for model, own in points.items()
        if own
    ]


class _NoBlocks(ValueError):
    """A model whose layers cannot be read, and why."""


def layer_vectors(setting: Setting, subject: Subject, images: Images) -> list[Vectors]:
    """Means of the spatial tokens [n, width] of every block."""
    if subject.encoder is None:
        raise _NoBlocks("it is a file of features")
    if subject.transform is not None:
        raise _NoBlocks("its transform comes after the network, whose layers are as they were")
    try:
        read, blocks = layer_means(subject.encoder())
    except ValueError as error:
        raise _NoBlocks(str(error)) from error
    identity = {k: v for k, v in subject.identity.items() if k not in ("features", "transform")}
    own = replace(
        subject,
        identity=identity | {"read": "mean token of each block"},
        encoder=lambda: read,
        stored=None,
        transform=None,
    )
    return list(np.split(setting.features.of(own, images), blocks, axis=1))


def evenly(classes: NDArray[np.int64], most: int, seed: int) -> NDArray[np.bool_]:
    """Which [k] are kept, at most so many, a round of one photo a class after the other.

    Half of them are of classes with several photos, where there are as many: without these no pair is of one class.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    rounds = np.empty(len(classes), np.int64)
    count: dict[int, int] = {}
    for row in order.tolist():
        rounds[row] = count.get(int(classes[row]), 0)
        count[int(classes[row])] = int(rounds[row]) + 1
    by_round = order[np.argsort(rounds[order], kind="stable")]
    several = by_round[[count[int(classes[row])] > 1 for row in by_round.tolist()]]
    kept = np.zeros(len(classes), bool)
    kept[several[: most // 2]] = True
    rest = by_round[~kept[by_round]]
    kept[rest[: most - int(kept.sum())]] = True
    return kept


def _only(hierarchy: Hierarchy) -> FileImages:
    """The files of the photos that have a place."""
    images = hierarchy.images
    root = getattr(images, "root", None)
    if root is None:
        raise NotHere("layers are read from photos in files, and these are none")
    return FileImages(root, tuple(images.names[row] for row in hierarchy.rows.tolist()))


def _rows(setting: Setting, hierarchy: Hierarchy, found: dict[str, list[Pairs]]) -> list[Row]:
    c, rows = setting.constants, []
    for k in range(max(len(one) for one in found.values())):
        mine = {model: one[k] for model, one in found.items() if k < len(one)}
        pairs = next(iter(mine.values()))
        classes = np.column_stack([hierarchy.classes[pairs.i], hierarchy.classes[pairs.j]])
        parts = {FIGURE: (pairs.level == 3, pairs.level == 0), LIFE: _by_life(hierarchy, pairs)}
        statistics = {
            (figure, f"block {k + 1}", model): separation(one.z[model], *sides)
            for figure, sides in parts.items()
            for model, one in mine.items()
        }
        statistics |= {
            (LEVEL, f"block {k + 1}, {level}", model): _mean_of(one.z[model], pairs.level == i)
            for i, level in enumerate(LEVELS)
            for model, one in mine.items()
        }
        both = [(a, b) for a, b in setting.pairs if a in found and b in found and len(found[a]) == len(found[b])]
        statistics |= {
            (figure, group, f"{a} - {b}"): intervals.minus(statistics[figure, group, a], statistics[figure, group, b])
            for figure, group in dict.fromkeys((figure, group) for figure, group, _ in statistics)
            for a, b in both
            if k < len(found[a])
        }
        there = {key: one for key, one in statistics.items() if np.isfinite(one(np.ones(len(classes))))}
        estimates = intervals.over_concepts(classes, list(there.values()), c.repetitions, c.seed)
        rows += [
            Row(figure, model, e, group, "cosine", "deviations")
            for (figure, group, model), e in zip(there, estimates, strict=True)
        ]
    return rows


def _by_life(hierarchy: Hierarchy, pairs: Pairs) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(pairs of a living thing and another, pairs of two alike), of different classes."""
    both_living, neither, one_of_each = living_parts(hierarchy, pairs).values()
    return one_of_each, both_living | neither


def _mean_of(z: Matrix, mine: NDArray[np.bool_]) -> Weighted:
    """Mean of some pairs; NaN where they have no weight."""

    def statistic(weights: Matrix) -> float:
        return float(np.average(z[mine], weights=weights[mine])) if weights[mine].any() else float("nan")

    return statistic


def separation(z: Matrix, far: NDArray[np.bool_], near: NDArray[np.bool_]) -> Weighted:
    """Mean of the far pairs minus mean of the near ones; NaN where either has no weight."""

    def statistic(weights: Matrix) -> float:
        if not weights[far].any() or not weights[near].any():
            return float("nan")
        return float(np.average(z[far], weights=weights[far]) - np.average(z[near], weights=weights[near]))

    return statistic
