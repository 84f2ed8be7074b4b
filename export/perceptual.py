"""Runs of `python -m training perceptual` and `joint` as sources: adapters are merged, heads and ensembles are whole.

Their one space is compared by cosine where it was aligned with perceptual judgments alone, so that the service's
distance is 1 - cosine, DreamSim's (Fu et al. 2023, section 4); a joint alignment with any weight on odd-one-out choices
is compared by dot products, as those choices are. Either end of a joint alignment is one kind of alignment alone, and
its card says so.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.files import sha256_of
from contract.manifest import Figure
from contract.triplets import Kernel
from export.graph import EmbeddingModel
from export.report_figures import DIFFERENCE
from export.sources import UNITS, Source
from training.perceptual.embedding import HEAD, SHAPE
from training.perceptual.run import read_embedding

WEIGHTS = "weights.safetensors"

SEMANTIC = "semantic: human odd-one-out choices (AligNet, distilled from an aligned teacher)"
PERCEPTUAL = "perceptual: two-alternative judgments (hinge on 1 - cosine, DreamSim)"


def is_perceptual(folder: Path) -> bool:
    """Whether a folder holds an embedding that perceptual or joint alignment wrote."""
    return (folder / SHAPE).is_file()


def read_perceptual(run: Path) -> Source:
    """The aligned embedding of a run folder, of one of its `strength-STEP`, or of a joint run's `split-N/weight-W`.

    Args:
        run: with `weights.safetensors` and `embedding.json`; a weight of a joint run with its recipe and figures too.

    Raises:
        ValueError: the run is not complete, the message names what it lacks; or its weights are of another network.
    """
    if not (run / WEIGHTS).is_file():
        raise ValueError(f"{run} lacks {WEIGHTS}; finish it with `python -m training perceptual` or `joint` first.")
    config, stored, figures = (_read(run / name) for name in ("config.json", "recipe.json", "figures.json"))
    weight = config.get("config", {}).get("weight")
    encoder = read_embedding(run)
    if weight is None:
        said = _of_perceptual(stored.get("recipe", {}), figures)
    elif stored and figures:
        said = _of_joint(stored, figures, weight)
    else:
        raise ValueError(f"{run} lacks recipe.json or figures.json; finish it with `python -m training joint` first.")
    files = [name for name in (WEIGHTS, SHAPE, HEAD) if (run / name).is_file()]
    return Source(
        model=EmbeddingModel(encoder).eval(),
        encoder=encoder,
        name=said.name or f"{run.parent.name}-{run.name}",
        description=said.description or f"{encoder.base_model.name}, aligned.",
        alignment=said.alignment,
        license=encoder.base_model.license,
        training={
            "inputs": {name: sha256_of(run / name) for name in files},
            "config": config.get("config", {}),
            "trained_on": config.get("inputs", {}),
            "command": said.command,
        },
        kernel={"aligned": said.kernel},
        figures=said.figures,
        command="python -m export bundle RUN --images PHOTOS",
    )


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What recipe and figures say of an alignment; name and description are empty where there is no recipe."""

    name: str
    description: str
    alignment: str
    kernel: Kernel
    command: str
    figures: list[Figure]


def _of_perceptual(recipe: dict[str, Any], figures: dict[str, Any]) -> _Said:
    """Two-alternative accuracy before and after, of all trials and by kind."""
    command = f"python -m training perceptual {_file_of(recipe)} TRIALS --out RUN"
    measured: list[Figure] = []
    if figures:
        note = f"1 - cosine; {figures['rule']}; {figures['trials']} trials that training did not see"
        measured = [
            Figure(
                name=f"two-alternative accuracy, {group}",
                space=space,
                unit="fraction",
                note=note,
                command=command,
                **estimate,
            )
            for column, space in (("before", "base"), ("after", "aligned"))
            for group, estimate in figures[column].items()
        ]
    return _Said(
        name=recipe.get("name", ""),
        description=recipe.get("description", ""),
        alignment=PERCEPTUAL,
        kernel="cosine",
        command=command,
        figures=measured,
    )


def _of_joint(stored: dict[str, Any], figures: dict[str, Any], weight: float) -> _Said:
    """One weight of a joint alignment: what `training.perceptual.pareto.of_weight` says of it, over all splits."""
    recipe = stored["recipe"]
    splits = " ".join(map(str, recipe["split_seeds"]))
    command = (
        f"python -m training joint {_file_of(recipe)} TRIALS --data DATA --teacher TEACHER --weights {weight:g} "
        f"--splits {splits} --out RUN"
    )
    if weight == 0:
        alignment, learned = SEMANTIC, "odd-one-out choices alone"
    elif weight == 1:
        alignment, learned = PERCEPTUAL, "two-alternative judgments alone"
    else:
        alignment = "semantic and perceptual: odd-one-out choices and two-alternative judgments"
        alignment, learned = f"{alignment}, weight {weight:g} of 1", "both kinds of judgment"
    return _Said(
        name=f"{recipe['name']}-weight-{weight:g}",
        description=(
            f"{recipe['description']} Weight {weight:g} of 1 on two-alternative judgments: {learned}, without "
            f"the held-out concepts of split {stored['split']}."
        ),
        alignment=alignment,
        kernel="cosine" if weight == 1 else "dot",
        command=command,
        figures=[
            Figure(
                name=name,
                space=space,
                unit=UNITS.get(name, "fraction"),
                note=figures["notes"][name],
                command=command,
                **estimate,
            )
            for column, space in (("before", "base"), ("after", "aligned"), ("after - before", DIFFERENCE))
            for name, estimate in figures[column].items()
        ],
    )


def _file_of(recipe: dict[str, Any]) -> str:
    """The recipe's file in training/recipes/, as commands name it."""
    return str(recipe.get("name", "RECIPE")).replace("-", "_")


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
