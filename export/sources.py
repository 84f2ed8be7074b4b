"""What can be exported, and all that its manifest says of it.

A complete run folder of `python -m training run`; or any model of `training.models.build`, from the hub or a local
checkpoint, alone, with a transform (ours or a published one) or with a student's triplet head.
"""

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from contract.files import sha256_of
from contract.manifest import Figure
from contract.pixels import PixelSpec, PixelType
from contract.triplets import Kernel
from export.graph import AlignedModel, EmbeddingModel, FloatPixels, Spaces
from training.align import Transform
from training.encoders import Encoder
from training.models import build
from training.perceptual.embedding import SHAPE
from training.photos import Photos, read_photos
from training.readout import Readout
from training.run import KERNEL, require_inputs
from training.student_model import READOUT, read_student
from training.things import read_vice
from training.timm_models import Framing, Output
from training.transform_stage import Legacy, read_transform

Served = Literal["aligned", "both"]

RUN_COMMAND = "python -m export bundle RUN --data DATA"

UNITS = {
    "RSA with VICE": "Spearman",
    "entropy correlation with VICE": "Spearman",
    "KL from VICE": "nats",
}
"""Of a student's figures; all others are fractions."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and where it comes from.

    Attributes:
        model: on uint8 pixels, in eval mode; what every graph is compared with.
        encoder: for its pixels and origin.
        name, description: of the bundle.
        alignment: how it was aligned, in words.
        license: of the weights as shipped.
        training: what the manifest says of its making: recipe or options, input hashes, data, command.
        kernel: of each space that the model gives.
        temperature: of each space it was fitted for.
        calibrated_on: what they were fitted on; empty where none was.
        figures: for the manifest.
        dimensions: what each value of an aligned vector stands for, in words; empty if they have no meaning.
        command: that exports it, without what comes after the source.
        input: pixels that the graph takes: uint8, or float32 normalised as the spec says.
    """

    model: Spaces
    encoder: Encoder
    name: str
    description: str
    alignment: str
    license: str
    training: dict[str, Any]
    kernel: dict[str, Kernel]
    temperature: dict[str, float] = field(default_factory=dict)
    calibrated_on: str = ""
    figures: list[Figure] = field(default_factory=list)
    dimensions: tuple[str, ...] = ()
    command: str
    input: PixelType = "uint8"

    @property
    def pixels(self) -> PixelSpec:
        """How the graph wants its photos."""
        return replace(self.encoder.pixels, dtype=self.input)

    @property
    def graph(self) -> Spaces:
        """The model on the pixels that the graph takes."""
        return self.model if self.input == "uint8" else FloatPixels(self.model, self.pixels).eval()


def read_dimensions(file: Path) -> tuple[str, ...]:
    """Names of dimensions, one a line.

    Raises:
        ValueError: no names, an empty line between them, or one name twice.
    """
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").rstrip().split("\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text; expected the name of one dimension on each line.") from error
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            found = f"{name!r}, which line {names.index(name) + 1} has too" if name else "empty"
            raise ValueError(f"{file}, line {i + 1} is {found}; expected the name of one dimension on each line.")
    return names


def serving(source: Source, space: Served) -> Source:
    """The same source with the base space beside (`both`) or without it.

    Raises:
        ValueError: there is no base space: the model has no transform and no head.
    """
    if space == "both" and source.model.outputs == ("aligned",):
        raise ValueError(f"{source.name} has one space; the base space stands beside a transform or a triplet head.")
    if space == "aligned" and isinstance(source.model, AlignedModel):
        source.model.outputs = ("aligned",)
    kept = source.model.outputs
    return replace(
        source,
        kernel={name: source.kernel[name] for name in kept},
        temperature={name: source.temperature[name] for name in kept if name in source.temperature},
    )


# --- runs ------------------------------------------------------------------------------------------


def require_run(folder: Path) -> None:
    """Raises ValueError saying what a folder is that is no run."""
    if (folder / "saved_model.pb").is_file():
        raise ValueError(
            f"{folder} is a TensorFlow SavedModel, as AligNet's checkpoints are released. Its signature is published, "
            "the names of its weights are not, so it is not read here. Give the weights as a state dict of timm or "
            "open_clip with --checkpoint."
        )
    if (folder / "pareto.json").is_file():
        raise ValueError(f"{folder} is a joint alignment at several weights; give one, as {folder}/split-0/weight-0.5.")
    if (folder / "weights.safetensors").is_file():
        raise ValueError(
            f"{folder} is a distilled student; name its model and give --checkpoint {folder}/weights.safetensors."
        )
    _require(folder, "recipe.json")


def read_run(run: Path, data: Path | None) -> tuple[Source, Photos | None]:
    """The model of a run of a teacher's or a student's recipe, and the photos of the data it was trained on.

    Args:
        run: a complete run folder.
        data: the folder it was trained on; None for no photos.

    Raises:
        ValueError: the run is not complete, the message names what it lacks; or the data are others.
    """
    identity, figures = (json.loads(_require(run, name).read_text()) for name in ("recipe.json", "figures.json"))
    source = _student(run, identity, figures) if "student" in identity else _transformed(run, identity, figures)
    if missing := sorted(set(source.model.outputs) - set(source.temperature)):
        raise ValueError(f"{run}/figures.json has no temperature of {missing}; run `python -m training run` again.")
    if data is None:
        return source, None
    require_inputs(data, identity["inputs"])
    return source, read_photos(data / "images.csv", len(read_vice(data / "things/vice_embedding.npy")))


def _require(run: Path, name: str, more: str = "") -> Path:
    if not (run / name).is_file():
        raise ValueError(f"{run} lacks {name}; finish it with `python -m training run{more}` first.")
    return run / name


def _transformed(run: Path, identity: dict[str, Any], figures: dict[str, Any]) -> Source:
    recipe = identity["recipe"]
    transform = Transform.load(_require(run, "transform.npz"))
    encoder = build(recipe["encoder"])
    command = f"python -m training run {recipe['name']} --data DATA --out RUN"
    return Source(
        model=AlignedModel(encoder, transform).eval(),
        encoder=encoder,
        name=recipe["name"],
        description=recipe["description"],
        alignment="semantic: human odd-one-out choices (AligNet, uncertainty distillation)",
        license=encoder.base_model.license,
        training={**identity, "data": _DATA, "command": command},
        kernel=KERNEL,
        temperature=figures["temperature"],
        calibrated_on=_calibrated_on(recipe),
        figures=[Figure(**figure, command=command) for figure in figures["figures"]],
        command=RUN_COMMAND,
    )


def _student(run: Path, identity: dict[str, Any], figures: dict[str, Any]) -> Source:
    recipe = identity["student"]
    weights = _require(run, "final/weights.safetensors", " ... --final")
    encoder = build(recipe["model"], side=recipe["side"], pretrained=recipe["pretrained"])
    encoder = read_student(encoder, weights)
    command = f"python -m training run {recipe['name'].replace('-', '_')} --data DATA --out RUN --final"
    note = (
        f"held-out concepts, {len(figures['splits'])} splits, {KERNEL['aligned']} product, {figures['ties']}; before "
        "is the same network untrained; the exported student learned from all concepts"
    )
    return Source(
        model=EmbeddingModel(encoder).eval(),
        encoder=encoder,
        name=recipe["name"],
        description=recipe["description"],
        alignment="semantic: human odd-one-out choices (AligNet, a student distilled from an aligned teacher)",
        license=encoder.base_model.license,
        training={**identity, "data": _DATA, "command": command},
        kernel={"aligned": KERNEL["aligned"]},
        temperature={"aligned": figures["temperature"]["student"]},
        calibrated_on=_calibrated_on(recipe),
        figures=[
            Figure(name=name, space=space, unit=UNITS.get(name, "fraction"), note=note, command=command, **estimate)
            for space, model in (("base", "base"), ("aligned", "student"))
            for name, estimate in figures["models"][model].items()
        ],
        command=RUN_COMMAND,
    )


def _calibrated_on(recipe: dict[str, Any]) -> str:
    return (
        "VICE posterior probabilities (4.7 million human choices) of triplets of held-out THINGS concepts, "
        f"{len(recipe['split_seeds'])} splits, by likelihood"
    )


_DATA = [
    {"name": "VICE embedding of THINGS", "source": "Muttenthaler et al. 2022", "license": "VICE release"},
    {"name": "THINGS concepts and odd-one-out responses", "source": "Hebart et al. 2019, 2023", "license": "CC BY 4.0"},
    {"name": "Caltech-101 photos", "source": "Fei-Fei et al. 2004", "license": "CC BY 4.0"},
    {"name": "ImageNet sample photos", "source": "ImageNet", "license": "research use"},
]


# --- any model -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model that no run made.

    Attributes:
        model: a name for `training.models.build`.
        checkpoint: local weights, such as a student's weights.safetensors, instead of the hub's; a readout.safetensors
            beside it is read too.
        random_weights: seed of random weights, for trying things out; None for real ones.
        transform: .npz of ours or a published one, or gLocal's pickle with `legacy`.
        legacy: what to take from a pickle.
        triplet_head: a student's triplet_head.safetensors.
        output, side, framing: see `training.models.build`.
        name: of the bundle; made from the model's if empty.
        license: of the weights as shipped; that of the model's weights if empty.
    """

    model: str
    checkpoint: Path | None = None
    random_weights: int | None = None
    transform: Path | None = None
    legacy: Legacy | None = None
    triplet_head: Path | None = None
    output: Output | None = None
    side: int | None = None
    framing: Framing | None = None
    name: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        if self.transform is not None and self.triplet_head is not None:
            raise ValueError("a model has a transform or a triplet head, not both.")
        if self.checkpoint is not None and self.random_weights is not None:
            raise ValueError("weights come from a checkpoint or are random, not both.")


def read_model(options: ModelOptions) -> Source:
    """A model by name, alone or with its transform or triplet head.

    Alone, its one space is what the encoder gives, compared by cosine, or by dot products where a student's readout
    gives it: that was distilled for them. With a map, `aligned` is what the map makes of it, compared by dot
    products, to which transforms and heads are fitted, and `base` is the encoder's.

    Raises:
        ValueError: no such model, weights that do not fit (their names are given), or a map of another width.
    """
    o = options
    if o.checkpoint is not None and o.checkpoint.with_name(SHAPE).is_file():
        folder = o.checkpoint.parent
        raise ValueError(f"{folder} is a perceptual alignment, which says itself what it is made of; give {folder}.")
    encoder = build(
        o.model,
        checkpoint=o.checkpoint,
        output=o.output,
        side=o.side,
        framing=o.framing,
        pretrained=o.random_weights is None,
        seed=o.random_weights or 0,
    )
    weights = [file for file in (o.checkpoint, _readout_beside(o.checkpoint)) if file]
    if len(weights) == 2:
        encoder = _with_readout(encoder, options)
    base, (file, transform) = encoder.base_model, _map_of(options)
    name = o.name or re.sub(r"[^A-Za-z0-9._-]+", "-", o.model.rpartition(":")[2]).strip("-.")[:64]
    origin = f"{base.name} with the weights {' and '.join(file.name for file in weights)}" if weights else base.name
    model: Spaces
    kernel: dict[str, Kernel]
    if transform is None:
        model, alignment = EmbeddingModel(encoder), "that of the weights; export adds none"
        kernel = {"aligned": KERNEL["aligned"] if isinstance(encoder.module, Readout) else "cosine"}
    else:
        if transform.weights.shape[0] != encoder.size:
            raise ValueError(
                f"{file} maps {transform.weights.shape[0]} features, but {o.model} gives {encoder.size} "
                f"(output {encoder.output or 'embedding'!r}); take the transform of this model and output."
            )
        model, kernel = AlignedModel(encoder, transform), KERNEL
        what = "transform" if o.triplet_head is None else "triplet head"
        alignment = f"the {what} {file}, applied to the model's {encoder.output or 'embedding'}"
    return Source(
        model=model.eval(),
        encoder=encoder,
        name=name,
        description=f"{origin}.",
        alignment=alignment,
        license=o.license or base.license,
        training={
            "inputs": {path.name: sha256_of(path) for path in (*weights, o.transform, o.triplet_head) if path},
            "options": " ".join(_given(options)),
        },
        kernel=kernel,
        command=" ".join(["python -m export bundle", o.model, *_given(options)]),
    )


def _given(options: ModelOptions) -> list[str]:
    """The options that were given, as on the command line; of files the name only."""
    given = {item.name: getattr(options, item.name) for item in fields(options)}
    shown = {name: value.name if isinstance(value, Path) else value for name, value in given.items()}
    return [
        f"--{name.replace('_', '-')} {value}"
        for name, value in shown.items()
        if name not in ("model", "legacy") and value not in (None, "")
    ]


def _readout_beside(checkpoint: Path | None) -> Path | None:
    """What a distillation wrote beside its student's weights, if it wrote a readout."""
    beside = None if checkpoint is None else checkpoint.with_name(READOUT)
    return beside if beside is not None and beside.is_file() else None


def _with_readout(encoder: Encoder, options: ModelOptions) -> Encoder:
    """The student of `--checkpoint` with the readout beside it. Raises ValueError where one does not fit."""
    assert options.checkpoint is not None
    file = options.checkpoint.with_name(READOUT)
    if options.output is not None:
        raise ValueError(f"--output {options.output} is for a model without a readout; {file} reads its own features.")
    try:
        return read_student(encoder, options.checkpoint)
    except (KeyError, SafetensorError) as error:
        raise ValueError(f"{file} and {options.checkpoint.name} are not what `distill` writes: {error}") from error


def _map_of(options: ModelOptions) -> tuple[str, Transform | None]:
    """(file name, transform) of what stands behind the encoder; ("", None) if nothing does."""
    if options.transform is not None:
        if not options.transform.is_file():
            raise ValueError(f"no transform at {options.transform}.")
        return options.transform.name, read_transform(options.transform, options.legacy)
    if options.triplet_head is not None:
        return options.triplet_head.name, read_triplet_head(options.triplet_head)
    return "", None


def read_triplet_head(file: Path) -> Transform:
    """A student's triplet head, a linear map, as a transform.

    Raises:
        ValueError: no file of a finite `weight` [k, p] and `bias` [k].
    """
    try:
        arrays = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error
    shapes = {name: array.shape for name, array in arrays.items()}
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{file} holds {shapes}; expected weight [k, p] and bias [k] of a triplet head.")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{file} holds a value that is not finite.")
    mean, std, power = (np.array(value, np.float32) for value in (0.0, 1.0, np.nan))
    return Transform(weight.T.astype(np.float32), bias.astype(np.float32), mean, std, power)
