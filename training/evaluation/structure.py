"""What moved: distances by level of a hierarchy, categories, agreement between models, maps, and the pairs that differ.

For pairs of photos the cosine distance of each model is standardised over random pairs; the change is
z(model) - z(reference) (Muttenthaler et al. 2025, "Hierarchy"). Alignment should bring photos of one class and of one
category together and move unrelated ones apart: change same class < same basic < same superordinate < different. Its
mixed-effects regression has the level as fixed effect (reference: same class) and a random intercept for the class
of a pair's first photo; intervals are Wald's of statsmodels' REML fit, where the paper has Satterthwaite's degrees of
freedom. Intervals of the means are over classes.

Living against non-living is the same change for pairs of different classes: both living, neither, or one of them.
Where the hierarchy comes from: `training.evaluation.hierarchies`.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from contract import triplets
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import concept_data, similarities
from training.evaluation.hierarchies import LEVELS, Hierarchy, judged_hierarchy
from training.evaluation.maps import categories, maps
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import Vectors
from training.feeds import random_triplets
from training.images import Images

LIVING = ("both living", "both non-living", "living and non-living")
PER_LEVEL = 5_000
"""Pairs drawn of each level."""
SHOWN = 8
"""Pairs shown in each direction."""
THUMBNAIL = 96


# --- distances ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Pairs of positions in a hierarchy, their level, and standardised distances by model."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    level: NDArray[np.int64]
    z: dict[str, NDArray[np.float64]]


def draw_pairs(hierarchy: Hierarchy, vectors: dict[str, Vectors], seed: int, per_level: int = PER_LEVEL) -> Pairs:
    """Up to `per_level` different photos' pairs of each level; distances standardised over random pairs of all.

    Args:
        hierarchy: of the photos.
        vectors: of each model, rows as in the hierarchy.
        seed: of the pairs.
        per_level: at most this many of each.
    """
    rng = np.random.default_rng(seed)
    n = len(hierarchy.rows)
    random = rng.integers(n, size=(8 * per_level, 2))
    # Pairs of one class are rare among random ones: as many are drawn inside classes as levels need.
    order = np.argsort(hierarchy.classes, kind="stable")
    size = np.bincount(hierarchy.classes[order])
    start = np.cumsum(size) - size
    first = rng.integers(n, size=2 * per_level)
    own = hierarchy.classes[first]
    inside = order[start[own] + (rng.random(len(first)) * size[own]).astype(np.int64)]
    both = np.concatenate([random, np.column_stack([first, inside])])
    both = both[both[:, 0] != both[:, 1]]
    level = hierarchy.level(both[:, 0], both[:, 1])
    kept = np.concatenate([np.flatnonzero(level == k)[:per_level] for k in range(len(LEVELS))])
    i, j = both[kept].T
    base = random[random[:, 0] != random[:, 1]]
    z = {}
    for name, x in vectors.items():
        all_pairs = distance(x, base[:, 0], base[:, 1])
        z[name] = (distance(x, i, j) - all_pairs.mean()) / all_pairs.std()
    return Pairs(i, j, level[kept], z)


def distance(x: Vectors, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 - cosine [p] between rows i and j."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    out = np.empty(len(i))
    for start in range(0, len(i), 4096):
        part = slice(start, start + 4096)
        out[part] = 1 - np.einsum("pd,pd->p", unit[i[part]], unit[j[part]], dtype=np.float64)
    return out


def hierarchy_change(setting: Setting) -> Result:
    """Change of standardised distance at each level, its regression, the pairs that changed most, and heat maps."""
    hierarchy, notes = judged_hierarchy(setting)
    vectors = {name: x[hierarchy.rows] for name, x in setting.vectors(hierarchy.images).items()}
    pairs = draw_pairs(hierarchy, vectors, setting.constants.seed)
    out = Result(notes=notes)
    classes = np.column_stack([hierarchy.classes[pairs.i], hierarchy.classes[pairs.j]])
    for k, level in enumerate(LEVELS):
        out.rows += _mean_rows(setting, pairs, pairs.level == k, classes, "standardised distance", level)
    for name, mine in living_parts(hierarchy, pairs).items():
        out.rows += _mean_rows(setting, pairs, mine, classes, "standardised distance, by life", name)
    for a, b in setting.pairs:
        out.rows += _regression(pairs, pairs.z[a] - pairs.z[b], classes[:, 0], f"{a} - {b}", out.notes)
        out.plots.append(_changed_most(hierarchy, pairs, a, b))
    counts = ", ".join(f"{int((pairs.level == k).sum())} {level}" for k, level in enumerate(LEVELS))
    out.notes.append(f"{len(hierarchy.rows)} photos with a place; pairs: {counts}.")
    by_life = {"figure": "standardised distance, by life"}
    out.plots.insert(0, Plot("bars", "Living against non-living, different classes", by_life))
    out.plots.insert(0, Plot("bars", "Distance by level", {"figure": "standardised distance"}))
    out.plots.append(_category_heatmap(hierarchy, pairs))
    return out


def map_photos(setting: Setting) -> Result:
    """Two-dimensional maps of every model, see `training.evaluation.maps`."""
    hierarchy, notes = judged_hierarchy(setting)
    vectors = {name: x[hierarchy.rows] for name, x in setting.vectors(hierarchy.images).items()}
    return Result(notes=notes, plots=maps(hierarchy, vectors, setting.constants.seed, notes))


def living_parts(hierarchy: Hierarchy, pairs: Pairs) -> dict[str, NDArray[np.bool_]]:
    """Which pairs [p] of different classes are of living things, of others, or of one of each."""
    i, j = hierarchy.living[pairs.i], hierarchy.living[pairs.j]
    apart = (pairs.level > 0) & (i >= 0) & (j >= 0)
    parts = (apart & (i + j == 2), apart & (i + j == 0), apart & (i + j == 1))
    return dict(zip(LIVING, parts, strict=True))


def _mean_rows(
    setting: Setting, pairs: Pairs, mine: NDArray[np.bool_], classes: NDArray[np.int64], figure: str, group: str
) -> list[Row]:
    """Mean standardised distance of some pairs by every model, and its changes; intervals over classes."""
    if not mine.any():
        return []
    c, scores = setting.constants, {name: z[mine] for name, z in pairs.z.items()}
    scores |= {f"{a} - {b}": scores[a] - scores[b] for a, b in setting.pairs}
    means = [intervals.weighted_mean(values) for values in scores.values()]
    estimates = intervals.over_concepts(classes[mine], means, c.repetitions, c.seed)
    return [Row(figure, model, e, group, "cosine", "deviations") for model, e in zip(scores, estimates, strict=True)]


def _regression(
    pairs: Pairs, change: NDArray[np.float64], cluster: NDArray[np.int64], model: str, notes: list[str]
) -> list[Row]:
    """Coefficients of the level with same class as reference, random intercepts by class."""
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM
    except ModuleNotFoundError:
        notes.append("no regression: it needs statsmodels, pip install 'alignet-serve[evaluation]'.")
        return []
    import warnings

    present = [k for k in range(1, len(LEVELS)) if (pairs.level == k).any()]
    if not (pairs.level == 0).any() or not present:
        notes.append("no regression: fewer than two levels have pairs.")
        return []
    design = np.column_stack([np.ones(len(change)), *[(pairs.level == k).astype(float) for k in present]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a random effect near zero, which is an answer too
        fitted = MixedLM(change, design, groups=cluster).fit(reml=True)
    bounds = np.asarray(fitted.conf_int())
    names = ["same class (intercept)", *[LEVELS[k] for k in present]]
    return [
        Row(
            "regression of the change",
            model,
            Estimate(float(fitted.fe_params[i]), float(bounds[i, 0]), float(bounds[i, 1]), len(change)),
            name,
            "mixed effects",
            "deviations",
        )
        for i, name in enumerate(names)
    ]


# --- pictures -------------------------------------------------------------------------------------


def _changed_most(hierarchy: Hierarchy, pairs: Pairs, a: str, b: str) -> Plot:
    """The pairs that moved together and apart the most."""
    change = pairs.z[a] - pairs.z[b]
    order = np.argsort(change, kind="stable")
    shown = []
    for k in [*order[:SHOWN], *order[::-1][:SHOWN]]:
        images = [_thumbnail(hierarchy.images, int(hierarchy.rows[p])) for p in (pairs.i[k], pairs.j[k])]
        shown.append({"images": images, "caption": f"{change[k]:+.1f} ({LEVELS[pairs.level[k]]})"})
    return Plot("pairs", f"Moved together and apart the most, {a} against {b}", {"pairs": shown})


def _thumbnail(images: Images, row: int) -> dict[str, str]:
    with Image.open(io.BytesIO(images.read(row))) as opened:
        small = ImageOps.exif_transpose(opened).convert("RGB")
        small.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=70)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"name": Path(images.names[row]).name, "src": source}


def _category_heatmap(hierarchy: Hierarchy, pairs: Pairs) -> Plot:
    """Mean standardised distance between photos of two categories; 0 where no pair was drawn."""
    names = categories(hierarchy, 16)
    member = np.array([[name in above for name in names] for above in hierarchy.above], np.float64)
    matrices = {}
    for model, z in pairs.z.items():
        kept = pairs.level > 0  # distances within a class say nothing of its category
        a, b = member[pairs.i[kept]], member[pairs.j[kept]]
        total, n = (a * z[kept, None]).T @ b, a.T @ b
        total, n = total + total.T, n + n.T
        matrices[model] = (total / np.maximum(n, 1)).tolist()
    return Plot("heatmap", "Distances between categories", {"names": names, "matrices": matrices, "unit": "deviations"})


# --- agreement between models ---------------------------------------------------------------------


def model_agreement(setting: Setting) -> Result:
    """Share of random triplets of photos with the same odd one out, of every two models; a tie agrees with nothing."""
    if len(setting.subjects) < 2:
        raise NotHere("one model was given; agreement needs two")
    images = concept_data(setting.data).photos
    c = setting.constants
    rows = random_triplets(len(images), c.triplets, np.random.default_rng(c.seed))
    odd = {n: triplets.odd_one_out(similarities(x, rows, "cosine")) for n, x in setting.vectors(images).items()}
    names, out = list(odd), Result()
    same = {(a, b): ((odd[a] == odd[b]) & (odd[a] != triplets.TIE)).astype(np.float64) for a in names for b in names}
    for a, b in [(a, b) for i, b in enumerate(names) for a in names[i + 1 :]]:
        estimate = intervals.mean_over_items(same[a, b], c.repetitions, c.seed)
        out.rows.append(Row("same odd one out", a, estimate, f"with {b}", "cosine, strict"))
    matrix = [[float(same[a, b].mean()) for b in names] for a in names]
    out.plots.append(
        Plot("heatmap", "Same odd one out", {"names": names, "matrices": {"share": matrix}, "unit": "share"})
    )
    out.notes.append(f"{len(rows)} random triplets of {len(images)} photos.")
    return out
