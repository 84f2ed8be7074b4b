"""A perceptual alignment from recipe to figures: trials, embedding, training, and accuracy before against after.

OUT/recipe.json     the recipe, the trials and versions
OUT/features/       of frozen branches, where the recipe has a head
OUT/before/         embeddings of the images that accuracy is reported on, before training
OUT/...             of `training.perceptual.align`
OUT/after/          the same embeddings after training
OUT/strength-STEP/  weights after so many steps, where they were asked for, and their embeddings
OUT/figures.json    two-alternative accuracy before, after, and their paired difference; the same by strength
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.distill import Load
from training.embed import EmbedConfig, extract
from training.encoders import Encoder
from training.images import open_images
from training.loading import PixelLoader
from training.models import build
from training.perceptual.align import align, strength_folder, trials_digests
from training.perceptual.bapps import read_bapps
from training.perceptual.class_triplets import class_triplets
from training.perceptual.embedding import SHAPE, Shape, read_shape, shaped
from training.perceptual.figures import accuracy_figures
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.nights import read_nights
from training.perceptual.objective import PerceptualConfig
from training.perceptual.subset import Subset
from training.perceptual.things import read_things
from training.perceptual.trials import Trials
from training.processes import place
from training.stage import claim, write_json
from training.student_model import load_weights

SOURCES = ("nights", "bapps", "things", "classes", "generated")
VALIDATION = 0.1
"""Share of the training units that weights are chosen on, where a data set has no split of its own for that."""


@dataclass(frozen=True, kw_only=True)
class PerceptualRecipe:
    """One perceptual alignment.

    Attributes:
        name: of the run and of the bundle made from it.
        description: one sentence for the model card.
        shape: what is aligned.
        pretrained: False starts from random weights.
        generator: of trials, where they are generated.
        training: constants of the training.
        train_trials: judgments that training sees, drawn from those there are, so that data sets can be compared at
            equal size; None for all.
        bootstrap: repetitions behind each interval.
        seed: of the head, of class triplets, of validation splits and of the bootstrap.
    """

    name: str
    description: str
    shape: Shape
    pretrained: bool = True
    generator: GeneratorConfig
    training: PerceptualConfig
    train_trials: int | None = None
    bootstrap: int = 1000
    seed: int = 0


def read_trials(source: str, generator: GeneratorConfig, seed: int) -> Trials:
    """The trials that `KIND:PLACE` names.

    Args:
        source: `nights:`, `bapps:` or `things:` with a folder; `classes:` or `generated:` with a source of images.
        generator: of generated trials.
        seed: of what else is drawn.

    Raises:
        ValueError: an unknown kind, or trials that are broken; named.
    """
    kind, _, rest = source.partition(":")
    if kind not in SOURCES or not rest:
        raise ValueError(f"{source!r} names no trials; expected {', '.join(f'{name}:PLACE' for name in SOURCES)}.")
    if kind == "nights":
        return read_nights(Path(rest))
    if kind == "bapps":
        return read_bapps(Path(rest))
    if kind == "things":
        return read_things(Path(rest), seed=seed)
    images = open_images(rest)
    return class_triplets(images, rest, seed=seed) if kind == "classes" else generate(images, rest, generator)


def with_all_splits(trials: Trials, seed: int) -> Trials:
    """With a split to choose weights on besides the one that is reported.

    Where there is no split `test`, `val` becomes it, and a tenth of the training units become `val`.

    Raises:
        ValueError: no training trials, or none to report on.
    """
    train = trials.of_split("train")
    if (trials.split == "test").any() and (trials.split == "val").any():
        return trials
    if not (trials.split != "train").any():
        raise ValueError(f"{trials.source} has the split 'train' alone; expected 'val' or 'test' to report on.")
    split = np.where(trials.split == "val", "test", trials.split).astype("<U5")
    units = np.random.default_rng(seed).permutation(np.unique(train.unit))
    chosen = units[: max(1, round(VALIDATION * len(units)))]
    split[(split == "train") & np.isin(trials.unit, chosen)] = "val"
    return replace(trials, split=split)


def with_training_judgments(trials: Trials, n: int | None, seed: int) -> Trials:
    """With n of the training judgments, drawn at random; all where n is None. A judgment's trials stay together.

    Raises:
        ValueError: there are fewer.
    """
    if n is None:
        return trials
    judgments = np.unique(trials.of_split("train").judgment)
    if not 0 < n <= len(judgments):
        raise ValueError(f"{trials.source}: {len(judgments)} judgments to learn from; {n} of them were asked for.")
    kept = np.random.default_rng(seed).permutation(judgments)[:n]
    return trials.take((trials.split != "train") | np.isin(trials.judgment, kept))


def run_perceptual(recipe: PerceptualRecipe, trials: Trials, out: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Train, unless it is done, judge the held-out trials before and after, and return the figures.

    Args:
        recipe: of the alignment.
        trials: as `read_trials` gives them.
        out: folder to make or to continue.
        device: where to compute.

    Returns:
        What `accuracy_figures` gives, and `strength`: the same by step, of the steps in `strengths` that were reached.

    Raises:
        ValueError: trials without a split to report on, or `out` was made by another recipe or from other trials.
    """
    trials = with_training_judgments(with_all_splits(trials, recipe.seed), recipe.train_trials, recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    if place().rank == 0:
        claim(out / "recipe.json", {"recipe": asdict(recipe), "inputs": trials_digests(trials)}, ("torch", "timm"))
    place().wait()
    encoder = embedding(recipe.shape, pretrained=recipe.pretrained, seed=recipe.seed)
    work = _Work(recipe, encoder, trials, out, device)
    test = trials.of_split("test")
    before = work.vectors(encoder, test, "before")
    align(encoder, recipe.shape, trials, work.load, recipe.training, out, device=device)
    after = work.vectors(encoder, test, "after")
    taught = sorted(set(trials.of_split("train").kind.tolist()))
    figures = accuracy_figures(test, before, after, taught, repetitions=recipe.bootstrap, seed=recipe.seed)
    figures["strength"] = {}
    for step in recipe.training.strengths:
        if (folder := strength_folder(out, step)).is_dir():  # early stopping may have come first
            load_weights(encoder, folder / "weights.safetensors")
            then = work.vectors(encoder, test, f"{folder.name}/after")
            columns = accuracy_figures(test, before, then, taught, repetitions=recipe.bootstrap, seed=recipe.seed)
            figures["strength"][str(step)] = {name: columns[name] for name in ("after", "after - before")}
    if place().rank == 0:
        write_json(out / "figures.json", figures)
    return figures


def embedding(shape: Shape, *, pretrained: bool = True, seed: int = 0) -> Encoder:
    """The encoder of a shape before alignment."""
    branches = [build(name, side=shape.side, pretrained=pretrained, seed=seed) for name in shape.branches]
    return shaped(branches, shape, seed=seed)


def read_embedding(folder: Path, *, pretrained: bool = True) -> Encoder:
    """The aligned encoder of a run folder.

    Args:
        folder: with `weights.safetensors` and `embedding.json`.
        pretrained: False builds the networks without fetching the weights that are then replaced.
    """
    encoder = embedding(read_shape(folder / SHAPE), pretrained=pretrained)
    load_weights(encoder, folder / "weights.safetensors")
    return encoder


class _Work:
    """Where embeddings come from: pixels, or features of frozen branches that are computed once."""

    def __init__(self, recipe: PerceptualRecipe, encoder: Encoder, trials: Trials, out: Path, device: str) -> None:
        self.recipe, self.trials, self.out = recipe, trials, out
        self.computing = EmbedConfig(device=device)
        self.load: Load
        self.features: NDArray[np.float32] | None = None
        if recipe.shape.hidden is None:
            self.load = PixelLoader(trials.images, encoder.pixels)
            return
        if recipe.training.augment != "none":
            raise ValueError("a head is trained on features that are computed once; augment must be none.")
        frozen = embedding(replace(recipe.shape, hidden=None), pretrained=recipe.pretrained, seed=recipe.seed)
        features = extract(frozen, recipe.name, trials.images, out / "features", self.computing)
        self.features = features
        self.load = lambda rows: torch.from_numpy(features[rows])

    def vectors(self, encoder: Encoder, trials: Trials, name: str) -> NDArray[np.float32]:
        """Embeddings [n, d] of all images, those of other trials than these left zero."""
        rows = np.unique(trials.index)
        out = np.zeros((len(trials.images), encoder.size), np.float32)
        if self.features is None:
            chosen = Subset(trials.images, rows)
            out[rows] = extract(encoder, self.recipe.name, chosen, self.out / name, self.computing)
        else:
            with torch.inference_mode():
                out[rows] = encoder.module.cpu()(torch.from_numpy(self.features[rows])).numpy()
        return out
