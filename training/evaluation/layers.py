"""Layer by layer: where in a vision transformer the distances of the hierarchy change.

Every block's output is averaged over its spatial tokens (Muttenthaler et al. 2025: the change grows with depth), and
distances of pairs of photos are standardised within each block as in `training.evaluation.structure`. The figure is
the separation of a block: mean standardised distance of pairs of different superordinate categories minus that of
pairs of one class; intervals are over classes. Up to `PHOTOS` photos, as evenly from the classes as they allow.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluation import intervals
from training.evaluation.hierarchies import Hierarchy, judged_hierarchy
from training.evaluation.intervals import Matrix, Weighted
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.structure import Pairs, draw_pairs
from training.evaluation.subjects import Subject, Vectors
from training.images import FileImages, Images
from training.layer_means import layer_means

PHOTOS = 400
PER_LEVEL = 2_000
FIGURE = "separation by layer"


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
    series = [
        {"label": model, "x": list(range(1, len(one) + 1)), "y": [_value(out.rows, model, k) for k in range(len(one))]}
        for model, one in found.items()
    ]
    axes = {"x": "block", "y": "different minus same class, deviations"}
    out.plots.append(Plot("lines", "Separation by layer", axes | {"series": series}))
    return out


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
        statistics = {model: separation(one.z[model], one.level) for model, one in mine.items()}
        both = [(a, b) for a, b in setting.pairs if a in found and b in found and len(found[a]) == len(found[b])]
        if k < min((len(found[a]) for a, _ in both), default=0):
            statistics |= {f"{a} - {b}": intervals.minus(statistics[a], statistics[b]) for a, b in both}
        estimates = intervals.over_concepts(classes, list(statistics.values()), c.repetitions, c.seed)
        rows += [
            Row(FIGURE, model, e, f"block {k + 1}", "cosine", "deviations")
            for model, e in zip(statistics, estimates, strict=True)
        ]
    return rows


def separation(z: Matrix, level: NDArray[np.int64]) -> Weighted:
    """Mean of pairs of different categories minus mean of pairs of one class; NaN where either has no weight."""
    far, near = level == 3, level == 0

    def statistic(weights: Matrix) -> float:
        if not weights[far].any() or not weights[near].any():
            return float("nan")
        return float(np.average(z[far], weights=weights[far]) - np.average(z[near], weights=weights[near]))

    return statistic


def _value(rows: list[Row], model: str, k: int) -> float:
    return next(row.estimate.value for row in rows if row.model == model and row.group == f"block {k + 1}")
