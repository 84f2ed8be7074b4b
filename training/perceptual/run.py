"""A perceptual alignment from recipe to figures: trials, embedding, training, and accuracy before against after.

OUT/recipe.json     the recipe, the trials and versions
OUT/features/       of frozen branches, where the recipe has a head; elsewhere where they are shared between runs
OUT/before/         embeddings of the images that accuracy is reported on, before training
OUT/...             of `training.perceptual.align`
OUT/after/          the same embeddings after training
OUT/strength-STEP/  weights after so many steps, where they were asked for, and their embeddings
OUT/without-KIND/   where every kind is left out in turn: a training that has not seen it, as OUT itself has
OUT/figures.json    two-alternative accuracy before, after, and their paired difference; the same by strength, and of
                    kinds left out; `untrained` too, where levels are looked at before anything is learned
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.bundle import read_bundle
from training.distill import Load
from training.embed import EmbedConfig, extract
from training.encoders import Encoder, features_of, weights_digest
from training.images import Images, digest_of, load_image, open_images
from training.loading import PixelLoader
from training.models import build
from training.perceptual.align import align, strength_folder, trials_digests
from training.perceptual.bapps import read_bapps
from training.perceptual.class_triplets import class_triplets
from training.perceptual.embedding import SHAPE, Headed, Origin, Shape, read_origin, read_shape, shaped
from training.perceptual.figures import Scores, accuracy_figures, judgment_scores
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.left_out import FILE as LEFT_OUT
from training.perceptual.left_out import LeftOut, kinds_to_leave_out, left_out_figures, without
from training.perceptual.nights import read_nights
from training.perceptual.objective import PerceptualConfig
from training.perceptual.things import read_things
from training.perceptual.trials import SPLITS, Trials
from training.processes import place
from training.stage import claim, write_json
from training.student_model import load_weights
from training.subset import Subset
from training.timm_models import Framing

SOURCES = ("nights", "bapps", "things", "classes", "generated")
CHECKED, AGREEMENT = 8, 0.9999
"""Images that a bundle and the network it stands for both embed, and the least cosine between what they give."""

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
        train_trials: judgments that training sees, drawn from those there are that are no ties, so that data sets can
            be compared at equal size (see `with_training_judgments`); None for all.
        bootstrap: repetitions behind each interval.
        seed: of the head, of class triplets, of validation splits and of the bootstrap.

    Raises:
        ValueError: a head together with adapters.
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

    def __post_init__(self) -> None:
        if self.shape.hidden is not None:
            self.training.adaptation.require_no_adapters()

    @property
    def origin(self) -> Origin:
        """Of the weights that training starts from."""
        return Origin(pretrained=self.pretrained, seed=self.seed)


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
    """With n of the training judgments, drawn at random; all where n is None.

    Size is what people said: judgments in which they did not tie, since ties teach nothing. A judgment's trials stay
    together, so n THINGS choices are 2n trials; steps take as many trials a batch from either.

    Raises:
        ValueError: there are fewer, or every training judgment is a tie.
    """
    if n is None:
        return trials
    judgments = np.unique(trials.of_split("train").decided().judgment)
    if not 0 < n <= len(judgments):
        raise ValueError(
            f"{trials.source}: {len(judgments)} judgments to learn from, ties left out; {n} of them were asked for."
        )
    kept = np.random.default_rng(seed).permutation(judgments)[:n]
    return trials.take((trials.split != "train") | np.isin(trials.judgment, kept))


def run_perceptual(
    recipe: PerceptualRecipe,
    trials: Trials,
    out: Path,
    *,
    device: str = "cpu",
    leave_out: bool = False,
    features: Path | None = None,
    graph: str | None = None,
) -> dict[str, Any]:
    """Train, unless it is done, judge the held-out trials before and after, and return the figures.

    Args:
        recipe: of the alignment.
        trials: as `read_trials` gives them.
        out: folder to make or to continue.
        device: where to compute.
        leave_out: train once more without each kind of trial, and judge each of these on the kind it has not seen.
        features: folder for features of frozen branches, by content: runs that differ in their head, or in what they
            do with the trials, compute them once. None keeps them in `out`.
        graph: a bundle that computes these features, as BUNDLE or BUNDLE@SPACE (see `through_bundle`), several times
            faster on a CPU than torch does; it must give what the recipe's network gives.

    Returns:
        What `accuracy_figures` gives; `learned from`: numbers of judgments and of trials that training saw;
        `strength`: the accuracy by step, of the steps in `strengths`; and `left out`: what `left_out_figures` gives,
        where it was asked for.

    Raises:
        ValueError: trials without a split to report on, or with one in which people always tie; `out` was made by
            another recipe or from other trials; or a kind that cannot be left out.
    """
    trials = with_training_judgments(with_all_splits(trials, recipe.seed), recipe.train_trials, recipe.seed)
    for split in SPLITS:
        trials.of_split(split).decided()  # before hours are spent, not after
    kinds = kinds_to_leave_out(trials) if leave_out else []
    out.mkdir(parents=True, exist_ok=True)
    if place().rank == 0:
        claim(out / "recipe.json", {"recipe": asdict(recipe), "inputs": trials_digests(trials)}, ("torch", "timm"))
    place().wait()
    encoder = embedding(recipe.shape, pretrained=recipe.pretrained, seed=recipe.seed)
    work = _Work(recipe, encoder, trials, out, EmbedConfig(device=device), features, graph)
    test = trials.of_split("test")
    before = work.before(encoder, test)
    work.balance(encoder, trials)
    untrained = None if recipe.shape.start == recipe.shape else work.vectors(encoder, test, "untrained")
    align(encoder, recipe.shape, trials, work.load, recipe.training, out, origin=recipe.origin, device=device)
    after = work.vectors(encoder, test, "after")
    taught = sorted(set(trials.of_split("train").kind.tolist()))
    figures = accuracy_figures(
        test, before, after, taught, untrained=untrained, repetitions=recipe.bootstrap, seed=recipe.seed
    )
    lesson = trials.of_split("train").decided()
    figures["learned from"] = {"judgments": len(np.unique(lesson.judgment)), "trials": len(lesson)}
    figures["strength"] = {}
    for step in recipe.training.strengths:
        if (folder := strength_folder(out, step)).is_dir():  # runs of before stopped early all the same
            load_weights(encoder, folder / "weights.safetensors")
            then = work.vectors(encoder, test, f"{folder.name}/after")
            columns = accuracy_figures(test, before, then, taught, repetitions=recipe.bootstrap, seed=recipe.seed)
            figures["strength"][str(step)] = {name: columns[name] for name in ("after", "after - before")}
    if kinds:
        start = judgment_scores(test, before)
        left = LeftOut.of(test, start, {kind: _earned_without(kind, recipe, trials, work, start) for kind in kinds})
        figures["left out"] = left_out_figures(left, repetitions=recipe.bootstrap, seed=recipe.seed)
        if place().rank == 0:
            left.write(out / LEFT_OUT)
    if place().rank == 0:
        write_json(out / "figures.json", figures)
    return figures


def _earned_without(
    kind: str, recipe: PerceptualRecipe, trials: Trials, work: "_Work", before: Scores
) -> tuple[Scores, Scores]:
    """What the reported judgments earn before the first step of a training without one kind, and after the last."""
    encoder = embedding(recipe.shape, pretrained=recipe.pretrained, seed=recipe.seed)
    name = f"without-{kind}"
    device = work.computing.device
    others, test = without(trials, kind), trials.of_split("test")
    work.balance(encoder, others)
    if recipe.shape.start != recipe.shape:
        before = judgment_scores(test, work.vectors(encoder, test, f"{name}/untrained"))
    out = work.out / name
    align(encoder, recipe.shape, others, work.load, recipe.training, out, origin=recipe.origin, device=device)
    if place().rank == 0:
        (out / "checkpoint.pt").unlink(missing_ok=True)  # there are as many trainings as kinds
    return before, judgment_scores(test, work.vectors(encoder, test, f"{name}/after"))


def embedding(shape: Shape, *, pretrained: bool = True, seed: int = 0) -> Encoder:
    """The encoder of a shape before alignment.

    Branches of an ensemble see the same pixels, so photos are squashed for all of them, as DreamSim does; a network on
    its own sees a photo as `training.models.build` frames it.
    """
    framing: Framing | None = "squash" if len(shape.branches) > 1 else None
    branches = [
        build(name, side=shape.side, framing=framing, pretrained=pretrained, seed=seed) for name in shape.branches
    ]
    return shaped(branches, shape, seed=seed)


def read_embedding(folder: Path, *, pretrained: bool | None = None) -> Encoder:
    """The aligned encoder of a run folder.

    Args:
        folder: with `weights.safetensors` and `embedding.json`.
        pretrained: False builds the networks without fetching the weights that are then replaced; None builds them as
            the run did.
    """
    origin = read_origin(folder / SHAPE)
    fetch = origin.pretrained if pretrained is None else pretrained
    encoder = embedding(read_shape(folder / SHAPE), pretrained=fetch, seed=origin.seed)
    load_weights(encoder, folder / "weights.safetensors")
    return encoder


def read_start(folder: Path) -> Encoder:
    """What the alignment of a run folder is compared with: the embedding before the first step, without levels."""
    origin = read_origin(folder / SHAPE)
    return embedding(read_shape(folder / SHAPE).start, pretrained=origin.pretrained, seed=origin.seed)


class _Work:
    """Where embeddings come from: pixels, or features of frozen branches that are computed once."""

    def __init__(
        self,
        recipe: PerceptualRecipe,
        encoder: Encoder,
        trials: Trials,
        out: Path,
        computing: EmbedConfig,
        shared: Path | None,
        graph: str | None,
    ) -> None:
        self.recipe, self.trials, self.out = recipe, trials, out
        self.computing = computing
        self.load: Load
        self.features: NDArray[np.float32] | None = None
        if recipe.shape.hidden is None:
            if graph is not None:
                raise ValueError(f"{graph} cannot be trained: the recipe has no head, whose features it would compute.")
            self.load = PixelLoader(trials.images, encoder.pixels)
            return
        recipe.training.require_no_augmentation()
        assert isinstance(encoder.module, Headed)
        frozen = replace(encoder, module=encoder.module.inner)
        name = "+".join(recipe.shape.branches)
        if graph is not None:
            frozen = through_bundle(graph, frozen, trials.images)
        # As in a training of the branches themselves: `bf16` autocasts the encoder, heads are always float32.
        once = replace(computing, precision="bfloat16" if recipe.training.precision == "bf16" else "float32")
        folder = out / "features" if shared is None else shared / _content(frozen, trials, once)
        features = extract(frozen, name, trials.images, folder, once)
        self.features = features
        self.load = lambda rows: torch.from_numpy(features[rows])

    def before(self, encoder: Encoder, trials: Trials) -> NDArray[np.float32]:
        """As `vectors`, of what the alignment is compared with."""
        if self.features is not None and isinstance(encoder.module, Headed) and encoder.module.balance is not None:
            return self.features[:, : encoder.module.balance.sizes[0]]
        return self.vectors(encoder, trials, "before")

    def balance(self, encoder: Encoder, trials: Trials) -> None:
        """Standardise levels, where the encoder has them, as they are in these trials' training images."""
        if self.features is not None and isinstance(encoder.module, Headed) and encoder.module.balance is not None:
            rows = np.unique(trials.of_split("train").index)
            encoder.module.balance.fit(torch.from_numpy(self.features[rows]))

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


def _content(encoder: Encoder, trials: Trials, computing: EmbedConfig) -> str:
    """Name of the folder for the features of some images by some network."""
    made_of = f"{weights_digest(encoder.module)} {encoder.output} {encoder.pixels.to_json()} {computing.precision}"
    return f"{hashlib.sha256(made_of.encode()).hexdigest()[:12]}-{digest_of(trials.images)[:12]}"


def through_bundle(graph: str, network: Encoder, images: Images) -> Encoder:
    """A network as a bundle's graph computes it.

    Args:
        graph: BUNDLE or BUNDLE@SPACE; the space is the bundle's only one, or `base`, if none is said.
        network: that the graph is to agree with.
        images: the first few of which are embedded by both.

    Raises:
        ValueError: no such bundle or space, other pixels or width, or another answer for one of these images.
    """
    from training.evaluation.onnx_encoder import bundle_encoder

    folder, _, space = graph.partition("@") if not Path(graph).is_dir() else (graph, "", "")
    bundle = read_bundle(Path(folder))
    spaces = sorted(bundle.manifest.spaces)
    if (space := space or (spaces[0] if len(spaces) == 1 else "base")) not in spaces:
        raise ValueError(f"{folder} has the spaces {spaces}; there is no {space!r}.")
    encoder = bundle_encoder(bundle, space)
    if encoder.size != network.size or encoder.pixels.shape != network.pixels.shape:
        raise ValueError(
            f"{graph} gives {encoder.size} values of {encoder.pixels.shape} pixels, the network {network.size} of "
            f"{network.pixels.shape}; expected the same."
        )
    for row in range(min(CHECKED, len(images))):
        both = [
            features_of(one, torch.from_numpy(load_image(images, row, one.pixels)[None])) for one in (encoder, network)
        ]
        agreement = torch.nn.functional.cosine_similarity(both[0].double(), both[1].double()).item()
        if not agreement > AGREEMENT:
            raise ValueError(
                f"{graph} is of another network: on {images.where(row)} the cosine of both embeddings is "
                f"{agreement:.5f}; expected more than {AGREEMENT}."
            )
    return encoder
