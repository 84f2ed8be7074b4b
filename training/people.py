"""What stands for people in a data folder: a published VICE embedding, or choices to which VICE is fitted first.

    things/vice_embedding.npy    mean embedding [concepts, dimensions], published; nothing is fitted beside it
    things/train_90.txt          or .npy: choices to fit, three concept numbers from 0 a row, the odd one last
    things/test_10.txt           or .npy: other choices, on which the fit is judged
    things/vice/                 the fit, as the stage `vice` writes it

The fit belongs to the choices, not to a run: every run of the folder reads the same one. The last 10 % of THINGS'
choices are `test_10`; a share of a team's own does as well.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.things import read_vice
from training.vice import Posterior, read_embeddings
from training.vice_data import read_triplets
from training.vice_fit import ViceRecipe, fit_vice

PUBLISHED = "things/vice_embedding.npy"

FIT = "things/vice"

POSTERIOR = f"{FIT}/pruned_params.npz"

CHOICES = ("train_90", "test_10")
"""What VICE is fitted to, and judged on; each .txt or .npy."""

SAMPLES = 50
"""R of the paper: samples of the posterior over which probabilities are averaged."""


def fit_people(folder: Path, n_concepts: int, recipe: ViceRecipe) -> None:
    """Fit VICE to the folder's choices; nothing where it has a published embedding, or was fitted so already.

    Args:
        folder: the data folder; it must be writable.
        n_concepts: how many concepts there are; one without choices is allowed.
        recipe: constants and seed; its `n_objects` is of THINGS and does not count here.

    Raises:
        FileNotFoundError: neither an embedding nor choices.
        ValueError: bad choices (named), or the folder's fit is of another recipe or other choices.
    """
    if (folder / PUBLISHED).exists():
        return
    train, test = (read_triplets(_choices(folder, name), n_concepts, odd="last") for name in CHOICES)
    fit_vice(train, test, recipe.config, folder / FIT, recipe.seed, n_objects=n_concepts)


def read_people(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.floating[Any]] | None]:
    """(mean embedding [concepts, dimensions], samples of the posterior [R, concepts, dimensions] where it was fitted).

    Raises:
        FileNotFoundError: neither an embedding nor a fit.
        ValueError: one that is not readable; it is named.
    """
    if (folder / PUBLISHED).exists():
        return read_vice(folder / PUBLISHED), None
    if not (folder / POSTERIOR).exists():
        raise FileNotFoundError(
            f"{folder} has neither {PUBLISHED} nor {POSTERIOR}; where it has choices, `python -m training run` fits "
            "VICE to them."
        )
    posterior = Posterior.load(folder / POSTERIOR)
    return posterior.embedding().astype(np.float64), read_embeddings(folder / POSTERIOR, SAMPLES, seed=0)


def _choices(folder: Path, name: str) -> Path:
    for suffix in (".txt", ".npy"):
        if (file := folder / "things" / (name + suffix)).exists():
            return file
    raise FileNotFoundError(f"{folder / 'things'} has neither vice_embedding.npy nor {name}.txt nor {name}.npy.")
