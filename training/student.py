"""The student stage: a run's aligned teacher, distilled into a ViT, split by split.

For each split the teacher is the transform learned without that split's held-out concepts, and no photo of
those concepts is embedded, clustered or judged in training: what the figures say is about new concepts.

    OUT/base/                      features of the student before training
    OUT/blocks/                    features of its last blocks, where the recipe reads the embedding from them
    OUT/views/                     the teacher's features of cropped and mirrored photos, where the recipe has them
    OUT/split-N/clusters/          k-means of the teacher's vectors of the photos that training sees
    OUT/split-N/start/             the fitted readout, where the recipe has one
    OUT/split-N/weights.safetensors, checkpoint.pt, log.jsonl      of `training.distill`
    OUT/split-N/features/          the student's embedding of every photo
    OUT/final/                     the same, trained on all concepts: what is exported, if it was asked for
    OUT/figures.json               base model, teacher and student on the same held-out concepts
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.align import Transform
from training.cluster import ClusterConfig, cluster
from training.distill import distill, inputs_of
from training.embed import EmbedConfig, extract
from training.encoders import Encoder
from training.feeds import FeedConfig, feed_of
from training.images import Images
from training.loading import PixelLoader
from training.models import build
from training.photos import NO_CONCEPT
from training.readout import ReadoutConfig, block_features, read_out, start_readout, with_readout
from training.recipe import Recipe
from training.run import Data, input_hashes, read_data, require_inputs, split_concepts
from training.stage import claim, write_array, write_json
from training.student_figures import Split, student_figures
from training.student_model import READOUT, read_student
from training.trainer import DistillConfig
from training.views import Views, with_views

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """One student.

    Attributes:
        name: of the run and of the bundle made from it.
        description: one sentence for the model card.
        teacher: the recipe of the run that it learns from.
        model: a name for `training.models.build`.
        side: of the square input in pixels.
        pretrained: False starts from random weights.
        readout: of the last blocks, as long as the vectors that are judged; None takes the model's own embedding.
        target: whose judgments are learned: the `aligned` teacher's, the `untransformed` teacher's (the paper's
            UnAligNet), or `people`'s, VICE on photos of training concepts (direct fine-tuning).
        regress_on: vectors of the regression: the `aligned` teacher's or the `untransformed` teacher's.
        clusters: k of k-means on the teacher's vectors.
        groups: of a batch and of border triplets: those `clusters`, or the `labels` that the photos came with.
        feed: what a step embeds and judges.
        images: share of the photos that training may see.
        views: cropped and mirrored copies of each photo that teacher and student see besides itself.
        distill: constants of the distillation.
        split_seeds: which of the teacher run's splits to use; each has seeds of its own, the recipe's + split.
        seed: of k-means and the choice of photos.
    """

    name: str
    description: str
    teacher: Recipe
    model: str
    side: int
    pretrained: bool = True
    readout: ReadoutConfig | None = None
    target: Literal["aligned", "untransformed", "people"] = "aligned"
    regress_on: Literal["aligned", "untransformed"] = "aligned"
    clusters: int
    groups: Literal["clusters", "labels"] = "clusters"
    feed: FeedConfig
    images: float = 1.0
    views: int = 0
    distill: DistillConfig
    split_seeds: tuple[int, ...]
    seed: int = 0


def run_students(
    recipe: StudentRecipe,
    teacher_run: Path,
    data_folder: Path,
    out: Path,
    *,
    device: str = "cpu",
    compile_encoders: bool = False,
    final: bool = False,
    only: Sequence[int] = (),
) -> dict[str, Any]:
    """Distil and judge every split that is not complete, and return the figures.

    Args:
        recipe: of the students.
        teacher_run: a complete run folder of `recipe.teacher`.
        data_folder: photos and judgments, those of the teacher run.
        out: folder to make or to continue.
        device: where to compute.
        compile_encoders: for features of views; see `EmbedConfig`.
        final: train a student on all concepts too, by the teacher's final transform: this one is exported.
        only: splits of the recipe to be content with, for an ablation in less time; none for all of them. The run can
            go on with the others later.

    Raises:
        ValueError: the teacher run lacks a split or is another recipe's, `out` was made by another recipe, or the
            recipe has no such split.
    """
    if unknown := sorted(set(only) - set(recipe.split_seeds)):
        raise ValueError(f"{recipe.name} has the splits {recipe.split_seeds}; there are no {unknown}.")
    data = read_data(data_folder)
    teacher = Teacher(teacher_run, recipe.teacher, data_folder)
    out.mkdir(parents=True, exist_ok=True)
    identity = {"student": asdict(recipe), "inputs": input_hashes(data_folder)}
    claim(out / "recipe.json", identity, ("torch", "timm", "numpy"))
    computing = EmbedConfig(device=device, compile=compile_encoders)
    computing_eagerly = replace(computing, compile=False)  # networks that change from split to split, or run once
    network = build(recipe.model, side=recipe.side, pretrained=recipe.pretrained)
    base = extract(network, recipe.model, data.photos, out / "base", computing_eagerly)
    blocks = None
    if recipe.readout is not None:
        read = block_features(network, recipe.readout.blocks)
        blocks = extract(read, f"{recipe.model}, last blocks", data.photos, out / "blocks", computing_eagerly)
    splits = []
    for seed in sorted(set(only)) or recipe.split_seeds:
        _, held_out = split_concepts(data.photos.concepts, recipe.teacher.held_out, seed)
        held = Held(f"split-{seed}", seed, held_out)
        aligned = teacher.transform(held).apply(teacher.features)
        trained = _student(recipe, data, teacher, held, out, computing, blocks)
        student = extract(trained, recipe.name, data.photos, out / f"split-{seed}/features", computing_eagerly)
        # What the readout gives before the network is trained is told apart from what training gives.
        start = {} if blocks is None else {"untrained": read_out(blocks, out / held.name / "start" / READOUT)}
        splits.append(Split(seed, held_out, {"base": base, **start, "teacher": aligned, "student": student}))
    figures = student_figures(splits, data, recipe.teacher)
    write_json(out / "figures.json", figures)
    if final:
        _student(recipe, data, teacher, Held("final", recipe.seed, np.empty(0, np.int64)), out, computing, blocks)
    return figures


@dataclass(frozen=True)
class Held:
    """What a training is kept from: the concepts of a split, or none; with the name of its folder, and its seed."""

    name: str
    seed: int
    concepts: NDArray[np.int64]


class Teacher:
    """A complete teacher run: its features, and the transform of each split."""

    def __init__(self, run: Path, recipe: Recipe, data_folder: Path) -> None:
        self.run = run
        if not (run / "figures.json").is_file():
            raise ValueError(f"{run} is no complete run; finish it with `python -m training run` first.")
        stored = json.loads((run / "recipe.json").read_text())
        if stored["recipe"] != json.loads(json.dumps(asdict(recipe))):
            raise ValueError(f"{run} was made by the recipe {stored['recipe']['name']!r}, or another state of it.")
        require_inputs(data_folder, stored["inputs"])
        self.recipe = recipe
        self.features: Vectors = np.load(run / "features/features.npy", allow_pickle=False)

    def transform(self, held: Held) -> Transform:
        """The transform that was learned without the held-out concepts."""
        file = self.run / (f"splits/seed-{held.seed}.npz" if len(held.concepts) else "transform.npz")
        if not file.is_file():
            raise ValueError(f"{self.run} has no split {held.seed}; the teacher must be learned without its concepts.")
        return Transform.load(file)

    def features_of(self, images: Images, folder: Path, computing: EmbedConfig) -> Vectors:
        """Features [n, p] of other images than the run's; kept in `folder`."""
        return extract(build(self.recipe.encoder), self.recipe.encoder, images, folder, computing)


def _student(
    recipe: StudentRecipe,
    data: Data,
    teacher: Teacher,
    held: Held,
    out: Path,
    computing: EmbedConfig,
    blocks: Vectors | None,
) -> Encoder:
    """The trained student; its weights are read if they are there already.

    Args:
        blocks: [n, p] features of the last blocks of all photos; None where the recipe has no readout.
    """
    folder = out / held.name
    student = build(recipe.model, side=recipe.side, pretrained=recipe.pretrained)
    if (folder / "weights.safetensors").exists():
        return read_student(student, folder / "weights.safetensors")
    images: Images = Views(data.photos, recipe.views) if recipe.views else data.photos
    features = teacher.features_of(images, out / "views", computing) if recipe.views else teacher.features
    lesson = _lesson(recipe, data, features, teacher.transform(held))
    rows = _training_rows(recipe, data, held)
    if recipe.readout is not None and blocks is not None:
        student = block_features(student, recipe.readout.blocks)
        student = with_readout(student, lesson.judged.shape[1], dropout=recipe.readout.dropout)
        start_readout(student, blocks[rows], lesson.judged[rows], recipe.readout.penalty, folder / "start" / READOUT)
    if recipe.groups == "labels":
        label = _labels(data.photos.label, rows)
    else:
        vectors = lesson.clustered[: len(data.photos)]
        label = clusters_of(vectors, rows, recipe.clusters, recipe.seed, folder / "clusters")
    seed = recipe.feed.feed_seed + held.seed
    feed_config = replace(recipe.feed, feed_seed=seed)
    feed = feed_of(feed_config, rows, label)
    if recipe.views:
        feed = with_views(feed, len(data.photos), recipe.views, seed=seed)
    config = replace(recipe.distill, seed=recipe.distill.seed + held.seed)
    distill(
        student,
        PixelLoader(images, student.pixels),
        lesson.judged,
        feed,
        config,
        folder,
        inputs=inputs_of(images, asdict(feed_config), groups=label),
        targets=lesson.regressed,
        device=computing.device,
    )
    return student


@dataclass(frozen=True)
class _Lesson:
    """Vectors of all images and views: whose dot products are judgments, what is regressed, what is clustered."""

    judged: Vectors
    regressed: Vectors
    clustered: Vectors


def _lesson(recipe: StudentRecipe, data: Data, features: Vectors, transform: Transform) -> _Lesson:
    aligned = transform.apply(features)
    regressed = aligned if recipe.regress_on == "aligned" else features
    if recipe.target == "untransformed":
        return _Lesson(features, regressed, features)
    if recipe.target == "people":
        people = data.vice[np.maximum(data.photos.concept, 0)].astype(np.float32)
        return _Lesson(np.tile(people, (recipe.views + 1, 1)), regressed, aligned)
    return _Lesson(aligned, regressed, aligned)


def _training_rows(recipe: StudentRecipe, data: Data, held: Held) -> NDArray[np.int64]:
    """Rows of the photos that training may see, ascending: none of a held-out concept."""
    concept = data.photos.concept
    allowed = ~np.isin(concept, held.concepts)
    if recipe.target == "people":
        allowed &= concept != NO_CONCEPT
    rows = np.flatnonzero(allowed)
    chosen = np.random.default_rng([recipe.seed, held.seed]).permutation(rows)[: round(recipe.images * len(rows))]
    return np.sort(chosen)


def _labels(names: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of each photo, [n]; -1 for the photos that training must not see."""
    label = np.full(len(names), -1, np.int64)
    label[rows] = np.unique(np.array(names)[rows], return_inverse=True)[1]
    return label


def clusters_of(teacher: Vectors, rows: NDArray[np.int64], clusters: int, seed: int, folder: Path) -> NDArray[np.int64]:
    """Cluster of each photo, [n]; -1 for the photos that training must not see.

    Args:
        teacher: [n, k] vectors of all photos.
        rows: of the photos that training may see.
        clusters: k of k-means.
        seed: of k-means.
        folder: for its files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_array(folder / "teacher.npy", np.ascontiguousarray(teacher[rows], np.float32))
    config = ClusterConfig(clusters=clusters, elbow=(), points_per_cluster=None, seed=seed)
    cluster(folder / "teacher.npy", folder / "kmeans", config)
    label = np.full(len(teacher), -1, np.int64)
    label[rows] = np.load(folder / "kmeans/assignments.npy", allow_pickle=False)
    return label
