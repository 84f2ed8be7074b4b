"""Maps: photos in the plane, by principal components and by PaCMAP, one panel a model, one colour a category.

Principal components show the directions of most variance; PaCMAP (Wang et al. 2021, `pacmap`, its defaults) keeps
neighbours and the large arrangement. Distances in a PaCMAP are no measurement: read which groups lie together. Both
are of unit vectors, so that neighbours are those of cosine.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tqdm import tqdm

from training.evaluation.hierarchies import Hierarchy
from training.evaluation.result import Plot
from training.evaluation.subjects import Vectors

CLASSES, POINTS = 10, 1_500
FEWEST = 20
"""Photos below which there is no map of neighbours."""


def maps(hierarchy: Hierarchy, vectors: dict[str, Vectors], seed: int, notes: list[str]) -> list[Plot]:
    """Maps of the photos of the largest categories.

    Args:
        hierarchy: of the photos.
        vectors: of each model, rows as in the hierarchy.
        seed: of the photos drawn, and of PaCMAP.
        notes: gets a sentence where a map cannot be drawn.
    """
    names = categories(hierarchy, CLASSES)
    own = [next((name for name in names if name in above), "") for above in hierarchy.above]
    rows = np.flatnonzero(np.array(own) != "")
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:POINTS])
    if len(rows) < 3:
        notes.append(f"no map: {len(rows)} photos are of categories with ten photos or more.")
        return []
    classes = [own[i] for i in rows]
    units = {model: unit(x[rows]) for model, x in vectors.items()}
    notes.append(f"maps of {len(rows)} photos of {len(names)} categories.")
    points = {m: PCA(2, random_state=seed).fit_transform(x.astype(np.float64)) for m, x in units.items()}
    out = [_plot("Principal components, by category", points, classes)]
    if len(rows) < FEWEST:
        return out
    try:
        points = {m: neighbours_map(x, seed) for m, x in tqdm(units.items(), desc="PaCMAP", unit="model")}
    except ModuleNotFoundError:
        notes.append("no PaCMAP: it needs pacmap, pip install 'alignet-serve[evaluation]'.")
        return out
    return [*out, _plot("PaCMAP, by category", points, classes)]


def neighbours_map(x: Vectors, seed: int) -> NDArray[np.float64]:
    """PaCMAP [n, 2] of unit vectors [n, d]. Raises ModuleNotFoundError without the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed makes it slower, and numba's about its own threads
        from pacmap import PaCMAP

        found = PaCMAP(n_components=2, n_neighbors=min(10, len(x) // 4), random_state=seed).fit_transform(x, init="pca")
    return np.asarray(found, np.float64)


def unit(x: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny), np.float32)


def _plot(title: str, points: dict[str, NDArray[np.float64]], classes: list[str]) -> Plot:
    return Plot("map", title, {"points": {m: np.round(xy, 4).tolist() for m, xy in points.items()}, "classes": classes})


def categories(hierarchy: Hierarchy, most: int) -> list[str]:
    """The categories with the most photos, at least 10, most frequent first."""
    names = [name for above in hierarchy.above for name in sorted(above)]
    found, count = np.unique(names, return_counts=True)
    order = np.argsort(-count, kind="stable")
    return [str(found[k]) for k in order[:most] if count[k] >= 10]
