"""k-means of transformed features, and how many clusters: what cluster-border triplets are drawn from.

The library is faiss (`faiss.Kmeans`, CPU). The paper states c = 500, chosen by the elbow, and nothing else of
its k-means. Ours, each recorded in config.json:

- Euclidean: not spherical, features neither centred nor scaled;
- start: c random rows, drawn by faiss from the seed; restart r has seed + r, the lowest objective wins;
- Lloyd iterations up to a number, fewer where the objective stands still; faiss splits a large cluster where
  one runs empty;
- centroids are learned on at most `points_per_cluster` random rows a cluster, then every row is assigned;
- inertia is the sum of squared distances of all rows to their centroids, in double precision from the
  differences (faiss's own are single precision and one iteration old).

The elbow: the same k-means for each c of a grid on one fixed sample of rows, the same for every c. With both
axes scaled to 0..1, the knee is the c whose point lies farthest below the chord from the first to the last.

config.json        config, sha256 of the features, versions
elbow/c-N.json     one point of the elbow
elbow.json, .svg   all points, the knee; their plot
fit/restart-N.npz  centroids after the last iteration that was kept, to go on from
centroids.npy      float32 [c, p]
assignments.npy    int32 [n], the cluster of every row
names.txt          the image of every row, where the features have such a list beside them
summary.json       inertia, cluster sizes; written last, so that its presence says complete

A killed run loses one point of the elbow, `CHECKPOINT_SECONDS` of the fit, or the pass that assigns.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from contract.files import whole
from training.named_rows import names_beside, write_names
from training.stage import blocks, claim, read_features, write_array, write_json

CHECKPOINT_SECONDS = 10.0
"""A fit is saved when it is complete, and after an iteration if this much time has passed since."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Constants of the k-means.

    Attributes:
        clusters: c; None takes the knee of the elbow.
        elbow: grid of c, ascending; empty for no elbow.
        elbow_rows: rows of the elbow's sample.
        iterations: of Lloyd's algorithm, at most.
        restarts: fits, of which the best is kept; the elbow has one a point.
        points_per_cluster: rows that centroids are learned on, times c; None for all.
        seed: of the rows drawn and of the first centroids.
    """

    clusters: int | None = 500
    elbow: tuple[int, ...] = (50, 100, 200, 300, 400, 500, 700, 1000)
    elbow_rows: int = 100_000
    iterations: int = 25
    restarts: int = 1
    points_per_cluster: int | None = 256
    seed: int = 0


def cluster(features: Path, out: Path, config: ClusterConfig) -> dict[str, Any]:
    """Do what is not complete yet in `out`, and return the summary.

    Args:
        features: .npy, float32 [n, p]; mapped, never loaded whole.
        out: folder to make or to continue.
        config: constants.

    Raises:
        ValueError: bad features or fewer images than clusters (named), or `out` belongs to others.
    """
    x, digest = read_features(features)
    _check(config, x, features)
    out.mkdir(parents=True, exist_ok=True)
    identity = {"config": asdict(config), "features": {"sha256": digest, "shape": x.shape}}
    claim(out / "config.json", identity, ("faiss-cpu", "numpy"))
    write_names(out, names_beside(features, len(x)))
    if not (out / "summary.json").exists():
        points = _elbow(x, out, config)
        found = knee(points) if points else None
        clusters = config.clusters or (found or (0,))[0]
        if not clusters:
            raise ValueError(f"{out}/elbow.json has no knee: no point lies below the chord; choose the clusters.")
        if points:
            write_json(out / "elbow.json", {"points": points, "knee": found and found[0], "below": found and found[1]})
            _plot(out / "elbow.svg", points, found and found[0], clusters)
        centroids = _fit(x, out, clusters, config)
        write_array(out / "centroids.npy", centroids)
        assignments, inertia = assign(x, centroids, "assign")
        write_array(out / "assignments.npy", assignments)
        write_json(out / "summary.json", _summary(assignments, clusters, inertia))
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def lloyd(
    rows: NDArray[np.float32],
    clusters: int,
    iterations: int,
    seed: int,
    start: NDArray[np.float32] | None = None,
    objective: float = np.inf,
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """(centroids, objective before they moved) after each iteration, until the objective stands still.

    The same centroids, bit for bit, as `faiss.Kmeans(niter=iterations, seed=seed)` in one call, which carries
    nothing else from one iteration to the next. In steps, it can show progress and go on from `start` and
    `objective`, an earlier step.
    """
    step = faiss.Kmeans(
        rows.shape[1],
        clusters,
        niter=1,
        nredo=1,
        seed=seed,
        spherical=False,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    for _ in range(iterations):
        step.train(rows, init_centroids=start)
        start = np.array(step.centroids, np.float32)
        before, objective = objective, float(np.asarray(step.obj)[-1])
        yield start, objective
        if objective == before:
            return


def assign(x: NDArray[np.float32], centroids: NDArray[np.float32], description: str) -> tuple[NDArray[np.int32], float]:
    """(nearest centroid of every row, sum of squared distances to them), in blocks.

    Raises:
        ValueError: rows and centroids have different widths.
    """
    if x.shape[1] != centroids.shape[1]:
        raise ValueError(f"features are {x.shape[1]} wide, centroids {centroids.shape[1]}; they must match.")
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    assignments = np.empty(len(x), np.int32)
    inertia = 0.0
    with tqdm(total=len(x), desc=description, unit="image", unit_scale=True, leave=description == "assign") as bar:
        for start, block in blocks(x):
            nearest = index.search(block, 1)[1][:, 0]
            assignments[start : start + len(block)] = nearest
            difference = block - centroids[nearest]
            inertia += float(np.einsum("ip,ip->i", difference, difference).sum(dtype=np.float64))
            bar.update(len(block))
    return assignments, inertia


def knee(points: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """(c, distance below the chord on axes scaled to 0..1) of the knee; None if no point lies below the chord.

    Args:
        points: (c, inertia), c ascending.
    """
    c, inertia = np.array(points, np.float64).T
    if len(points) < 3 or inertia[0] <= inertia[-1]:
        return None
    along = (c - c[0]) / (c[-1] - c[0])
    height = (inertia - inertia[-1]) / (inertia[0] - inertia[-1])
    below = (1 - along - height) / np.sqrt(2)
    best = int(below.argmax())
    return (points[best][0], float(below[best])) if below[best] > 1e-9 else None


def _check(config: ClusterConfig, x: NDArray[np.float32], features: Path) -> None:
    if not config.elbow and config.clusters is None:
        raise ValueError("clusters are to be the knee of an empty elbow; give one of both.")
    if list(config.elbow) != sorted(set(config.elbow)):
        raise ValueError(f"elbow is {config.elbow}; expected numbers of clusters, ascending.")
    sampled = min(config.elbow_rows, len(x))
    for clusters, rows, what in [
        (config.clusters or 1, len(x), "images"),
        *((c, sampled, "rows") for c in config.elbow),
    ]:
        if not 1 <= clusters <= rows:
            where = f"{features} has {len(x)} images" if what == "images" else f"{features}: the elbow has {rows} rows"
            raise ValueError(f"{where}; {clusters} clusters need at least that many, and there must be one.")
    if min(config.iterations, config.restarts, config.points_per_cluster or 1) < 1:
        raise ValueError("iterations, restarts and points_per_cluster must be at least 1.")


def _rows(x: NDArray[np.float32], count: int, seed: Sequence[int]) -> NDArray[np.float32]:
    """At most `count` random rows, in file order; all of them without a copy."""
    if count >= len(x):
        return x
    chosen = np.random.default_rng(seed).choice(len(x), count, replace=False, shuffle=False)
    rows: NDArray[np.float32] = x[np.sort(chosen)]
    return rows


def _elbow(x: NDArray[np.float32], out: Path, config: ClusterConfig) -> list[tuple[int, float]]:
    """(c, mean squared distance) of the grid, each computed once."""
    if not config.elbow:
        return []
    rows = _rows(x, config.elbow_rows, [config.seed, 1])
    (out / "elbow").mkdir(exist_ok=True)
    points = []
    # Time goes with c, so the bar counts centroids times iterations.
    with tqdm(total=sum(config.elbow) * config.iterations, desc="elbow", unit="centroid", unit_scale=True) as bar:
        for clusters in config.elbow:
            file = out / f"elbow/c-{clusters}.json"
            if not file.exists():
                done = 0
                for step in lloyd(rows, clusters, config.iterations, config.seed):
                    centroids = step[0]
                    done += 1
                    bar.update(clusters)
                bar.total -= clusters * (config.iterations - done)
                inertia = assign(rows, centroids, f"elbow, c = {clusters}")[1]
                write_json(file, {"clusters": clusters, "inertia_per_image": inertia / len(rows)})
            else:
                bar.total -= clusters * config.iterations
                bar.refresh()
            points.append((clusters, float(json.loads(file.read_text())["inertia_per_image"])))
    return points


def _fit(x: NDArray[np.float32], out: Path, clusters: int, config: ClusterConfig) -> NDArray[np.float32]:
    """Centroids [c, p] of the best restart."""
    rows = _rows(x, clusters * (config.points_per_cluster or len(x)), [config.seed, 2])
    (out / "fit").mkdir(exist_ok=True)
    best: NDArray[np.float32] | None = None
    lowest = np.inf
    total = config.restarts * config.iterations
    with tqdm(total=total, desc=f"k-means, c = {clusters}", unit="iteration") as bar:
        for restart in range(config.restarts):
            file = out / f"fit/restart-{restart}.npz"
            centroids, done, objective = None, 0, np.inf
            if file.exists():
                with np.load(file, allow_pickle=False) as saved:
                    centroids, done, objective = saved["centroids"], int(saved["done"]), float(saved["objective"])
                bar.total -= done
                bar.refresh()
            saved_at = time.monotonic()
            for step in lloyd(rows, clusters, config.iterations - done, config.seed + restart, centroids, objective):
                centroids, objective = step
                done += 1
                bar.update()
                if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                    _save(file, *step, done)
                    saved_at = time.monotonic()
            assert centroids is not None
            bar.total -= config.iterations - done
            _save(file, centroids, objective, config.iterations)
            if best is None or objective < lowest:
                best, lowest = centroids, objective
    assert best is not None
    return best


def _save(file: Path, centroids: NDArray[np.float32], objective: float, done: int) -> None:
    """Keep a fit; with `done` all its iterations, it is complete, also where it stood still before."""
    with whole(file) as stream:
        np.savez(stream, centroids=centroids, done=done, objective=objective)


def _summary(assignments: NDArray[np.int32], clusters: int, inertia: float) -> dict[str, Any]:
    sizes = np.bincount(assignments, minlength=clusters)
    return {
        "clusters": clusters,
        "images": len(assignments),
        "inertia": inertia,
        "inertia_per_image": inertia / len(assignments),
        "size": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "empty": np.flatnonzero(sizes == 0).tolist(),
        "single": np.flatnonzero(sizes == 1).tolist(),
    }


def _plot(file: Path, points: Sequence[tuple[int, float]], found: int | None, clusters: int) -> None:
    """The elbow as SVG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), marker="o", label="k-means")
    axes.plot(*zip(points[0], points[-1], strict=True), linestyle=":", color="grey", label="chord")
    if found is not None:
        axes.axvline(found, linestyle="--", color="tab:red", label=f"knee, c = {found}")
    axes.axvline(clusters, linestyle="--", color="tab:green", label=f"used, c = {clusters}")
    axes.set(xlabel="clusters", ylabel="mean squared distance to the centroid", ylim=(0, None))
    axes.legend()
    with whole(file) as stream:
        figure.savefig(stream, format="svg")
