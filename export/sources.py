"""What can be exported: the model of a complete training run, with all that its manifest says of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.bundle import Figure
from export.graph import AlignedModel, EmbeddingModel, Spaces
from training.align import Transform
from training.encoders import Encoder
from training.models import build
from training.run import KERNEL
from training.student_model import load_weights

UNITS = {
    "RSA with VICE": "Spearman",
    "entropy correlation with VICE": "Spearman",
    "KL from VICE": "nats",
}
"""Of a student's figures; all others are fractions."""


@dataclass(frozen=True)
class Source:
    """A model and where it comes from.

    Attributes:
        model: in eval mode.
        encoder: for its pixels and origin.
        identity: of the run: recipe, input hashes, versions.
        recipe: the recipe's values by name.
        temperature: of each space.
        figures: for the manifest.
        alignment: how it was aligned, in words.
        command: that made it.
    """

    model: Spaces
    encoder: Encoder
    identity: dict[str, Any]
    recipe: dict[str, Any]
    temperature: dict[str, float]
    figures: list[Figure]
    alignment: str
    command: str


def read_source(run: Path) -> Source:
    """The model of a run of a teacher's or a student's recipe.

    Raises:
        ValueError: the run is not complete; the message names what it lacks.
    """
    identity, figures = (json.loads(_require(run, name).read_text()) for name in ("recipe.json", "figures.json"))
    return _student(run, identity, figures) if "student" in identity else _transformed(run, identity, figures)


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
        identity=identity,
        recipe=recipe,
        temperature=figures["temperature"],
        figures=[Figure(**figure, command=command) for figure in figures["figures"]],
        alignment="semantic: human odd-one-out choices (AligNet, uncertainty distillation)",
        command=command,
    )


def _student(run: Path, identity: dict[str, Any], figures: dict[str, Any]) -> Source:
    recipe = identity["student"]
    weights = _require(run, "final/weights.safetensors", " ... --final")
    encoder = build(recipe["model"], side=recipe["side"], pretrained=recipe["pretrained"])
    load_weights(encoder, weights)
    command = f"python -m training run {recipe['name'].replace('-', '_')} --data DATA --out RUN --final"
    note = (
        f"held-out concepts, {len(figures['splits'])} splits, {KERNEL['aligned']} product, {figures['ties']}; before "
        "is the same network untrained; the exported student learned from all concepts"
    )
    return Source(
        model=EmbeddingModel(encoder).eval(),
        encoder=encoder,
        identity=identity,
        recipe=recipe,
        temperature={"aligned": figures["temperature"]["student"]},
        figures=[
            Figure(name=name, space=space, unit=UNITS.get(name, "fraction"), note=note, command=command, **estimate)
            for space, model in (("base", "base"), ("aligned", "student"))
            for name, estimate in figures["models"][model].items()
        ],
        alignment="semantic: human odd-one-out choices (AligNet, a student distilled from an aligned teacher)",
        command=command,
    )
