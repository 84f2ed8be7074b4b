"""Joint alignment at several weights, and what each weight gains and loses.

    OUT/recipe.json                  recipe, trials, teacher, weights, versions
    OUT/photos/, OUT/trials/         features of frozen branches, where the recipe has a head; else embeddings before
    OUT/split-N/clusters/            k-means of the teacher's vectors of the photos that training sees
    OUT/split-N/weight-W/            of `training.perceptual.align`: checkpoints, log, weights
    OUT/split-N/weight-W/recipe.json, figures.json   the recipe at that weight, and what `pareto` found of it: the card
    OUT/split-N/weight-W/photos/...  embeddings of photos and reported trials, where the recipe has no head
    OUT/pareto.json, .csv, .svg, .png

Concepts are split as in the teacher's run, and a tenth of those that are not held out choose the weights, beside the
validation trials. Training, validation and report of a split have no photo in common, whichever part shows it: see
`training.perceptual.apart`; how much was left out stands in pareto.json.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.distill import Load
from training.embed import EmbedConfig, extract
from training.encoders import Encoder
from training.images import Images
from training.loading import PixelLoader
from training.perceptual.align import Lesson, learn, trials_digests
from training.perceptual.apart import Apart, Seen
from training.perceptual.embedding import Origin, Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.joint import JointConfig, joint_feed, joint_load, joint_objective, validation_step
from training.perceptual.objective import step_of, trial_feed
from training.perceptual.pareto import JointSplit, of_weight, pareto, write_pareto
from training.perceptual.run import embedding, with_all_splits
from training.perceptual.trials import Trials
from training.processes import place
from training.recipe import Recipe
from training.run import input_hashes, read_data, split_concepts
from training.stage import claim, write_json
from training.student import Held, Teacher, clusters_of
from training.subset import Subset

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
VALIDATION = 0.1
"""Share of the training concepts whose photos choose the weights."""


@dataclass(frozen=True, kw_only=True)
class JointRecipe:
    """One joint alignment.

    Attributes:
        name: of the run.
        description: one sentence for the model card.
        teacher: the recipe of the run that the semantic part learns from.
        shape: what is aligned.
        pretrained: False starts from random weights.
        generator: of trials, where they are generated.
        training: constants; its weight is one of those that are asked for.
        clusters: k of k-means on the teacher's vectors.
        split_seeds: which of the teacher run's splits to use.
        seed: of the head, of k-means and of validation splits.
    """

    name: str
    description: str
    teacher: Recipe
    shape: Shape
    pretrained: bool = True
    generator: GeneratorConfig
    training: JointConfig
    clusters: int
    split_seeds: tuple[int, ...]
    seed: int = 0


def run_joint(
    recipe: JointRecipe,
    trials: Trials,
    weights: Sequence[float],
    teacher_run: Path,
    data_folder: Path,
    out: Path,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train what is not trained yet, at every weight and split, and return the figures.

    Args:
        recipe: of the alignment.
        trials: two-alternative judgments, as `read_trials` gives them.
        weights: of the perceptual part, each from 0 to 1.
        teacher_run: a complete run folder of `recipe.teacher`.
        data_folder: photos and judgments, those of the teacher run.
        out: folder to make or to continue.
        device: where to compute.

    Returns:
        What `pareto` gives, and "photos in common": `Seen.counts` by split, what was kept and what was left out.

    Raises:
        ValueError: a weight outside 0..1 or given twice, a head on features and augmentation of images, a teacher run
            of another recipe or data, trials that are broken or of which too few can be kept apart from the photos, or
            `out` made by another recipe.
    """
    configs = {weight: replace(recipe.training, weight=weight) for weight in weights}
    if not weights or len(configs) != len(weights):
        raise ValueError(f"weights are {list(weights)}; expected at least one, each once.")
    if recipe.shape.output == "levels":
        raise ValueError("levels are weighed for cosine distances, and triplets are judged by dot products.")
    if recipe.shape.hidden is not None:
        recipe.training.require_no_augmentation()
    trials = with_all_splits(trials, recipe.seed)
    data = read_data(data_folder)
    teacher = Teacher(teacher_run, recipe.teacher, data_folder)
    apart = Apart(data.photos, trials)
    chosen = {seed: _concepts(recipe, data.photos.concepts, seed) for seed in recipe.split_seeds}
    seen = {seed: apart.seen(*concepts) for seed, concepts in chosen.items()}
    out.mkdir(parents=True, exist_ok=True)
    if place().rank == 0:
        # Weights are no identity: another one can be added to a run later.
        identity = {
            "joint": asdict(replace(recipe, training=replace(recipe.training, weight=0.5))),
            "inputs": input_hashes(data_folder) | trials_digests(trials),
        }
        claim(out / "recipe.json", identity, ("torch", "timm"))
    place().wait()
    work = _Work(recipe, data.photos, trials, out, device)
    splits = []
    for seed, (held_out, _) in chosen.items():
        lessons = _Lessons(recipe, teacher, seen[seed], work, Held(f"split-{seed}", seed, held_out), out)
        aligned = {weight: lessons.learn(config, device) for weight, config in configs.items()}
        splits.append(JointSplit(seed, held_out, work.before, aligned, lessons.teacher))
    figures = pareto(splits, data, recipe.teacher, trials.of_split("test"), set(trials.of_split("train").kind.tolist()))
    figures["photos in common"] = {str(seed): own.counts for seed, own in seen.items()}
    if place().rank == 0:
        write_pareto(figures, out)
        for seed in recipe.split_seeds:
            for weight, config in configs.items():
                folder = weight_folder(out / f"split-{seed}", weight)
                write_json(folder / "recipe.json", {"recipe": asdict(replace(recipe, training=config)), "split": seed})
                write_json(folder / "figures.json", of_weight(figures, weight))
    return figures


def weight_folder(split: Path, weight: float) -> Path:
    """Where a split's training at one weight is kept."""
    return split / f"weight-{weight:g}"


def _concepts(recipe: JointRecipe, concepts: Rows, seed: int) -> tuple[Rows, Rows]:
    """(held-out concepts of a split, those whose photos choose the weights)."""
    known, held_out = split_concepts(concepts, recipe.teacher.held_out, seed)
    known = np.random.default_rng([recipe.seed, seed]).permutation(known)
    return held_out, known[: max(3, round(VALIDATION * len(known)))]


class _Lessons:
    """What one split's trainings learn from: they differ in their weight alone."""

    def __init__(self, recipe: JointRecipe, teacher: Teacher, seen: Seen, work: "_Work", held: Held, out: Path) -> None:
        self.recipe, self.seen, self.work, self.seed = recipe, seen, work, held.seed
        self.out = out / held.name
        self.teacher: Vectors = teacher.transform(held).apply(teacher.features)
        if place().rank == 0:
            clusters_of(self.teacher, seen.rows, recipe.clusters, recipe.seed, self.out / "clusters")
        place().wait()
        self.label = np.full(len(self.teacher), -1, np.int64)
        self.label[seen.rows] = np.load(self.out / "clusters/kmeans/assignments.npy", allow_pickle=False)

    def learn(self, config: JointConfig, device: str) -> tuple[Vectors, Vectors]:
        """Embeddings of all photos, and of all images of trials, by the encoder aligned at one weight."""
        config = replace(config, seed=config.seed + self.seed, feed_seed=config.feed_seed + self.seed)
        train, val = (self.seen.trials.of_split(split).decided() for split in ("train", "val"))
        photos, folder = len(self.label), weight_folder(self.out, config.weight)
        drawn = trial_feed(train, batch=config.batch, seed=config.feed_seed)
        arrays = {"teacher": self.teacher, "photos": self.seen.rows, "validation photos": self.seen.validation}
        taught = {name: hashlib.sha256(np.ascontiguousarray(x).data).hexdigest() for name, x in arrays.items()}
        lesson = Lesson(
            joint_objective(config, self.teacher),
            joint_feed(config, self.seen.rows, self.label, drawn, photos),
            validation_step(config, self.seen.validation, step_of(val), photos),
            self.work.load,
            trials_digests(self.seen.trials) | taught,
        )
        origin = Origin(pretrained=self.recipe.pretrained, seed=self.recipe.seed)
        encoder = embedding(self.recipe.shape, pretrained=origin.pretrained, seed=origin.seed)
        learn(encoder, self.recipe.shape, lesson, config, folder, origin=origin, device=device)
        return self.work.vectors(encoder, folder)


class _Work:
    """Where photos and trials' images come from: pixels, or features of frozen branches that are computed once."""

    def __init__(self, recipe: JointRecipe, photos: Images, trials: Trials, out: Path, device: str) -> None:
        self.computing, self.photos, self.trials = EmbedConfig(device=device), photos, trials
        self.name = "+".join(recipe.shape.branches)
        self.reported = np.unique(trials.of_split("test").index)
        start = embedding(recipe.shape, pretrained=recipe.pretrained, seed=recipe.seed)
        self.features: tuple[Vectors, Vectors] | None = None
        self.load: Load
        if recipe.shape.hidden is None:
            loaders = [PixelLoader(images, start.pixels) for images in (photos, trials.images)]
            self.load = joint_load(loaders[0], loaders[1], len(photos))
            self.before = self.vectors(start, out)
            return
        frozen = embedding(replace(recipe.shape, hidden=None), pretrained=recipe.pretrained, seed=recipe.seed)
        every = [
            extract(frozen, self.name, images, out / name, self.computing)
            for name, images in (("photos", photos), ("trials", trials.images))
        ]
        self.features = every[0], every[1]
        self.load = joint_load(_rows_of(every[0]), _rows_of(every[1]), len(photos))
        self.before = self.features

    def vectors(self, encoder: Encoder, folder: Path) -> tuple[Vectors, Vectors]:
        """Embeddings of all photos, and [images of trials, d], zero where no trial is reported."""
        if self.features is not None:
            with torch.inference_mode():
                module = encoder.module.cpu()
                photos, images = (module(torch.from_numpy(x)).numpy() for x in self.features)
            return photos, images
        photos = extract(encoder, self.name, self.photos, folder / "photos", self.computing)
        images = np.zeros((len(self.trials.images), encoder.size), np.float32)
        chosen = Subset(self.trials.images, self.reported)
        images[self.reported] = extract(encoder, self.name, chosen, folder / "trials", self.computing)
        return photos, images


def _rows_of(features: Vectors) -> Load:
    return lambda rows: torch.from_numpy(features[rows])
