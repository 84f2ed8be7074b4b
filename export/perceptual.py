"""Runs of `python -m training perceptual` and `joint` as sources: adapters are merged, heads and ensembles are whole.

Their one space is compared by cosine where it was aligned with perceptual judgments alone, so that the service's
distance is 1 - cosine, DreamSim's (Fu et al. 2023, section 4); a joint alignment is compared by dot products, as its
odd-one-out judgments are.
"""

import json
from pathlib import Path
from typing import Any

from contract.files import sha256_of
from contract.manifest import Figure
from export.graph import EmbeddingModel
from export.sources import Source
from training.perceptual.embedding import HEAD, SHAPE
from training.perceptual.run import read_embedding

WEIGHTS = "weights.safetensors"


def is_perceptual(folder: Path) -> bool:
    """Whether a folder holds an embedding that perceptual or joint alignment wrote."""
    return (folder / SHAPE).is_file()


def read_perceptual(run: Path) -> Source:
    """The aligned embedding of a run folder, of one of its `strength-STEP`, or of a joint run's `split-N/weight-W`.

    Args:
        run: with `weights.safetensors` and `embedding.json`.

    Raises:
        ValueError: the run is not complete, the message names what it lacks; or its weights are of another network.
    """
    if not (run / WEIGHTS).is_file():
        raise ValueError(f"{run} lacks {WEIGHTS}; finish it with `python -m training perceptual` or `joint` first.")
    config, stored, figures = (_read(run / name) for name in ("config.json", "recipe.json", "figures.json"))
    own = stored.get("recipe", {})
    weight = config.get("config", {}).get("weight")
    perceptual_alone = weight in (None, 1.0)
    encoder = read_embedding(run)
    files = [name for name in (WEIGHTS, SHAPE, HEAD) if (run / name).is_file()]
    return Source(
        model=EmbeddingModel(encoder).eval(),
        encoder=encoder,
        name=own.get("name", f"{run.parent.name}-{run.name}"),
        description=own.get("description", f"{encoder.base_model.name}, aligned."),
        alignment=(
            "perceptual: two-alternative judgments (hinge on 1 - cosine, DreamSim)"
            if perceptual_alone
            else f"semantic and perceptual: odd-one-out choices and two-alternative judgments, weight {weight:g} of 1"
        ),
        license=encoder.base_model.license,
        training={
            "inputs": {name: sha256_of(run / name) for name in files},
            "config": config.get("config", {}),
            "trained_on": config.get("inputs", {}),
            "command": _command(own, perceptual_alone),
        },
        kernel={"aligned": "cosine" if perceptual_alone else "dot"},
        figures=_figures(figures, _command(own, perceptual_alone)),
        command="python -m export bundle RUN --images PHOTOS",
    )


def _command(recipe: dict[str, Any], perceptual_alone: bool) -> str:
    name = recipe.get("name", "RECIPE").replace("-", "_")
    return f"python -m training {'perceptual' if perceptual_alone else 'joint'} {name} TRIALS --out RUN"


def _figures(figures: dict[str, Any], command: str) -> list[Figure]:
    """Two-alternative accuracy before and after, of all trials and by kind."""
    if not figures:
        return []
    note = f"1 - cosine; {figures['rule']}; {figures['trials']} trials that training did not see"
    return [
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


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
