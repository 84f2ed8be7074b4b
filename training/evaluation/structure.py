"""What moved: distances by level of a hierarchy, categories, agreement between models, maps, and the pairs that differ.

For pairs of photos the cosine distance of each model is standardised over random pairs; the change is
z(model) - z(reference) (Muttenthaler et al. 2025, "Hierarchy"). Alignment should bring photos of one class and of one
category together and move unrelated ones apart: change same class < same basic < same superordinate < different. Its
mixed-effects regression has the level as fixed effect (reference: same class) and a random intercept for the class
of a pair's first photo; intervals are Wald's of statsmodels' REML fit, where the paper has Satterthwaite's degrees of
freedom. Intervals of the means are over classes.

The hierarchy is DATA/hierarchy.csv (`label,basic,superordinate`; a row for each label of images.csv, `basic` may be
empty), or else the THINGS categories: class = concept, superordinate = a category that two concepts share. The paper's
own mapping of ImageNet onto WordNet categories is not published.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from tqdm import tqdm

from contract import triplets
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import concept_data, similarities
from training.evaluation.image_sets import manifest
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import Vectors
from training.feeds import random_triplets
from training.images import Images
from training.tables import read_rows

LEVELS = ("same class", "same basic", "same superordinate", "different")
PER_LEVEL = 5_000
"""Pairs drawn of each level."""
SHOWN = 8
"""Pairs shown in each direction."""
MAP_CLASSES, MAP_POINTS = 10, 1_500
THUMBNAIL = 96


@dataclass(frozen=True)
class Hierarchy:
    """Where photos belong.

    Attributes:
        images: all photos.
        rows: [k] of those that have a place.
        classes: [k] number of the class.
        basic: [k] number of the basic category, -1 for none.
        above: [k] names of the superordinate categories.
    """

    images: Images
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    basic: NDArray[np.int64]
    above: tuple[frozenset[str], ...]

    def level(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level [p], a position in `LEVELS`, of pairs of positions i and j."""
        alike = np.array([bool(self.above[a] & self.above[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)])
        basic = (self.basic[i] == self.basic[j]) & (self.basic[i] >= 0)
        return np.select([self.classes[i] == self.classes[j], basic, alike.astype(bool)], [0, 1, 2], 3)


def read_hierarchy(data: Path) -> Hierarchy:
    """The hierarchy of a data folder, as the module docstring says.

    Raises:
        NotHere: no hierarchy.csv and no THINGS concepts.
        ValueError: a label stands twice.
    """
    file = data / "hierarchy.csv"
    if not file.is_file():
        found = concept_data(data)
        concept = found.photos.concept
        above = {int(c): frozenset(found.categories[c] - {""}) for c in found.photos.concepts}
        rows = np.array([i for i, c in enumerate(concept.tolist()) if c >= 0 and above[c]], np.int64)
        names = tuple(above[c] for c in concept[rows].tolist())
        return Hierarchy(found.photos, rows, concept[rows], np.full(len(rows), -1), names)
    images, _, label = manifest(data / "images.csv")
    lines = read_rows(file, ("label", "basic", "superordinate"))
    table = {row["label"]: row for row in lines}
    if len(table) < len(lines):
        raise ValueError(f"{file}: {len(lines) - len(table)} labels stand twice.")
    rows = np.array([i for i, one in enumerate(label) if one in table], np.int64)
    own = [table[label[i]] for i in rows]
    number = {name: i for i, name in enumerate(sorted({row["basic"] for row in own} - {""}))}
    classes = np.unique([row["label"] for row in own], return_inverse=True)[1]
    basic = np.array([number.get(row["basic"], -1) for row in own], np.int64)
    return Hierarchy(images, rows, classes, basic, tuple(frozenset({row["superordinate"]} - {""}) for row in own))


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
    hierarchy = read_hierarchy(setting.data)
    vectors = {name: x[hierarchy.rows] for name, x in setting.vectors(hierarchy.images).items()}
    pairs = draw_pairs(hierarchy, vectors, setting.constants.seed)
    c, out = setting.constants, Result()
    if setting.held_out is not None:
        out.notes.append("photos of all concepts: those that alignment was trained on, too.")
    classes = np.column_stack([hierarchy.classes[pairs.i], hierarchy.classes[pairs.j]])
    for k, level in enumerate(LEVELS):
        mine = pairs.level == k
        if not mine.any():
            continue
        scores = {name: z[mine] for name, z in pairs.z.items()}
        scores |= {f"{a} - {b}": scores[a] - scores[b] for a, b in setting.pairs}
        means = [intervals.weighted_mean(values) for values in scores.values()]
        estimates = intervals.over_concepts(classes[mine], means, c.repetitions, c.seed)
        for model, estimate in zip(scores, estimates, strict=True):
            out.rows.append(Row("standardised distance", model, estimate, level, "cosine", "deviations"))
    for a, b in setting.pairs:
        out.rows += _regression(pairs, pairs.z[a] - pairs.z[b], classes[:, 0], f"{a} - {b}", out.notes)
        out.plots.append(_changed_most(hierarchy, pairs, a, b))
    counts = ", ".join(f"{int((pairs.level == k).sum())} {level}" for k, level in enumerate(LEVELS))
    out.notes.append(f"{len(hierarchy.rows)} photos with a place; pairs: {counts}.")
    out.plots.insert(0, Plot("bars", "Distance by level", {"figure": "standardised distance"}))
    out.plots.append(_category_heatmap(hierarchy, pairs))
    out.plots.append(_pca_map(hierarchy, vectors, c.seed))
    return out


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


def _categories(hierarchy: Hierarchy, most: int) -> list[str]:
    """The categories with the most photos, at least 10, most frequent first."""
    names = [name for above in hierarchy.above for name in sorted(above)]
    found, count = np.unique(names, return_counts=True)
    order = np.argsort(-count, kind="stable")
    return [str(found[k]) for k in order[:most] if count[k] >= 10]


def _category_heatmap(hierarchy: Hierarchy, pairs: Pairs) -> Plot:
    """Mean standardised distance between photos of two categories; 0 where no pair was drawn."""
    names = _categories(hierarchy, 16)
    member = np.array([[name in above for name in names] for above in hierarchy.above], np.float64)
    matrices = {}
    for model, z in pairs.z.items():
        kept = pairs.level > 0  # distances within a class say nothing of its category
        a, b = member[pairs.i[kept]], member[pairs.j[kept]]
        total, n = (a * z[kept, None]).T @ b, a.T @ b
        total, n = total + total.T, n + n.T
        matrices[model] = (total / np.maximum(n, 1)).tolist()
    return Plot("heatmap", "Distances between categories", {"names": names, "matrices": matrices, "unit": "deviations"})


def _pca_map(hierarchy: Hierarchy, vectors: dict[str, Vectors], seed: int) -> Plot:
    """Two principal components of unit vectors, photos of the largest categories."""
    names = _categories(hierarchy, MAP_CLASSES)
    own = [next((name for name in names if name in above), "") for above in hierarchy.above]
    rows = np.flatnonzero(np.array(own) != "")
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAP_POINTS])
    points = {}
    for model, x in tqdm(vectors.items(), desc="map", unit="model"):
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found = PCA(2, random_state=seed).fit_transform(unit[rows].astype(np.float64))
        points[model] = np.round(found, 4).tolist()
    return Plot("map", "Principal components, by category", {"points": points, "classes": [own[i] for i in rows]})


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
