"""The student stage: a run's aligned teacher, distilled into a ViT, split by split.

For each split the teacher is the transform learned without that split's held-out concepts, and no photo of
those concepts is embedded, clustered or judged in training: what the figures say is about new concepts.

    OUT/split-N/clusters/          k-means of the teacher's vectors of the photos that training sees
    OUT/split-N/checkpoint.pt      weights, optimiser, theta_0; `log.jsonl` beside it
    OUT/split-N/vectors.npy        the student's embedding of every photo
    OUT/figures.json               base model, teacher and student on the same held-out concepts
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training import evaluate
from training.align import Transform
from training.cluster import ClusterConfig, cluster
from training.distill import DistillConfig, distill
from training.encoders import Encoder, features_of
from training.evaluate import Estimate, Judged
from training.features import extract
from training.feeds import Feed, Sampling, in_batch
from training.loading import PixelLoader
from training.recipe import Recipe
from training.run import Data, read_data, split_concepts
from training.stage import claim, write_array, write_json

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """One student.

    Attributes:
        name: of the run.
        encoder: builds the student with its starting weights.
        aligned: False distils the untransformed teacher (the paper's UnAligNet).
        clusters: k of k-means on the teacher's vectors.
        batch, per_group, triplets, sampling: of the in-batch feed.
        distill: constants of the distillation.
        split_seeds: which of the teacher run's splits to use.
        seed: of k-means and the feed.
    """

    name: str
    encoder: Callable[[], Encoder]
    aligned: bool
    clusters: int
    batch: int
    per_group: int
    triplets: int
    sampling: Sampling
    distill: DistillConfig
    split_seeds: tuple[int, ...]
    seed: int


def run_students(
    recipe: StudentRecipe, teacher_recipe: Recipe, teacher_run: Path, data_folder: Path, out: Path
) -> dict[str, Any]:
    """Distil and judge every split that is not complete, and return the figures.

    Args:
        teacher_recipe: of `teacher_run`, a complete run folder of `training.run`.

    Raises:
        ValueError: the teacher run lacks a split, or `out` was made by another recipe.
    """
    data = read_data(data_folder)
    out.mkdir(parents=True, exist_ok=True)
    claim(
        out / "recipe.json", {"recipe": _plain(recipe), "teacher": asdict(teacher_recipe)}, ("torch", "timm", "numpy")
    )
    student = recipe.encoder()
    base = extract(student, recipe.name, data.photos, out / "base")
    features = _teacher_features(teacher_run)
    judged: dict[str, list[Judged]] = {"base": [], "teacher": [], "student": []}
    neighbours: dict[str, list[Estimate]] = {name: [] for name in judged}
    for seed in recipe.split_seeds:
        train, held_out = split_concepts(data.photos.concepts, teacher_recipe.held_out, seed)
        aligned = _teacher(teacher_run, seed).apply(features)
        target = aligned if recipe.aligned else features
        vectors = _student_vectors(recipe, data, target, held_out, out / f"split-{seed}", seed)
        for name, x in (("base", base), ("teacher", target), ("student", vectors)):
            rows_of = [data.photos.of_concept(c) for c in held_out]
            judged[name].append(
                evaluate.judge_split(x, rows_of, data.vice[held_out], "dot", draws=teacher_recipe.draws, seed=seed)
            )
            neighbours[name].append(_nearest(data, x, train))
    figures = {name: _figures(judged[name], neighbours[name], teacher_recipe) for name in judged}
    write_json(out / "figures.json", figures)
    return figures


def _plain(recipe: StudentRecipe) -> dict[str, Any]:
    encoder = recipe.encoder
    if isinstance(encoder, partial):
        return asdict(recipe) | {"encoder": [encoder.func.__name__, *encoder.args]}
    return asdict(recipe) | {"encoder": encoder.__name__}


def _teacher_features(run: Path) -> NDArray[np.float32]:
    shards = sorted((run / "features").glob("*.npy"))
    if not shards:
        raise ValueError(f"{run} has no features; finish it with `python -m training run` first.")
    return np.concatenate([np.load(shard, allow_pickle=False) for shard in shards])


def _teacher(run: Path, seed: int) -> Transform:
    file = run / f"splits/seed-{seed}.npz"
    if not file.is_file():
        raise ValueError(f"{run} has no split {seed}; the teacher must be learned without its held-out concepts.")
    return Transform.load(file)


def _student_vectors(
    recipe: StudentRecipe,
    data: Data,
    teacher: NDArray[np.float32],
    hidden: NDArray[np.int64],
    out: Path,
    seed: int,
) -> NDArray[np.float32]:
    """The trained student's embedding of every photo, [n, d]; read if it is there already."""
    file = out / "vectors.npy"
    if file.exists():
        return np.asarray(np.load(file, allow_pickle=False))
    out.mkdir(parents=True, exist_ok=True)
    rows = np.flatnonzero(~np.isin(data.photos.concept, hidden))
    label = _clusters(recipe, teacher, rows, out / "clusters")
    student = recipe.encoder()
    student.module.requires_grad_(True)
    load = PixelLoader(data.photos, student.pixels)
    feed: Feed = in_batch(
        rows,
        label,
        batch=recipe.batch,
        per_group=recipe.per_group,
        triplets=recipe.triplets,
        sampling=recipe.sampling,
        seed=recipe.seed + seed,
    )
    distill(student.module, load, teacher, feed, recipe.distill, out)
    every = np.arange(len(data.photos))
    parts = [
        features_of(student, load(every[i : i + BATCH])).float().numpy()
        for i in tqdm(range(0, len(every), BATCH), desc="embed", unit="batch")
    ]
    vectors = np.concatenate(parts)
    write_array(file, vectors)
    return vectors


def _clusters(
    recipe: StudentRecipe, teacher: NDArray[np.float32], rows: NDArray[np.int64], folder: Path
) -> NDArray[np.int64]:
    """Cluster of each photo, [n]; -1 for the photos that training must not see."""
    folder.mkdir(exist_ok=True)
    write_array(folder / "teacher.npy", np.ascontiguousarray(teacher[rows], np.float32))
    config = ClusterConfig(clusters=recipe.clusters, elbow=(), points_per_cluster=None, seed=recipe.seed)
    cluster(folder / "teacher.npy", folder / "kmeans", config)
    label = np.full(len(teacher), -1, np.int64)
    label[rows] = np.load(folder / "kmeans/assignments.npy", allow_pickle=False)
    return label


def _nearest(data: Data, vectors: NDArray[np.float32], train: NDArray[np.int64]) -> Estimate:
    caltech, label = data.photos.of_dataset("caltech101")
    unseen = ~np.isin(data.photos.concept[caltech], train)
    return evaluate.nearest_neighbour(vectors[caltech], label, unseen)


def _figures(judged: list[Judged], neighbours: list[Estimate], recipe: Recipe) -> dict[str, Any]:
    temperature = evaluate.fit_temperature(*evaluate.pooled(judged, per_split=20_000, seed=recipe.seed))
    statistics: dict[str, evaluate.Statistic] = {
        "agreement with VICE": evaluate.agreement,
        "RSA with VICE": evaluate.rsa,
        "entropy correlation with VICE": evaluate.entropy_correlation(temperature),
        "KL from VICE": evaluate.divergence(temperature),
    }
    estimates = {
        name: asdict(evaluate.estimate(judged, statistic, repetitions=recipe.bootstrap, seed=recipe.seed))
        for name, statistic in statistics.items()
    }
    return estimates | {"Caltech-101 1-NN, classes not trained on": asdict(evaluate.average(neighbours))}
