"""What stands for people in a data folder: a published VICE embedding, or choices to which VICE is fitted first.

    things/vice_embedding.npy    mean embedding [concepts, dimensions], published; nothing is fitted beside it
    things/train_90.txt          or .npy: choices to fit, three concept numbers from 0 a row, the odd one last
    things/test_10.txt           or .npy: other choices, on which the fit is judged
    things/vice/                 the fit, as the stage `vice` writes it

The fit belongs to the choices, not to a run: every run of the folder reads the same one. The last 10 % of THINGS'
choices are `test_10`; a share of a team's own does as well.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.things import read_vice
from training.vice import Posterior, read_embeddings
from training.vice_data import misread, read_triplets
from training.vice_fit import ViceRecipe, fit_vice

PUBLISHED = "things/vice_embedding.npy"

FIT = "things/vice"

POSTERIOR = f"{FIT}/pruned_params.npz"

CHOICES = ("train_90", "test_10")
"""What VICE is fitted to, and judged on; each .txt or .npy."""

SAMPLES = 50
"""R of the paper: samples of the posterior over which probabilities are averaged."""


def fit_people(folder: Path, n_concepts: int, recipe: ViceRecipe, *, zero_absent: bool = False) -> None:
    """Fit VICE to the folder's choices; nothing where it has a published embedding, or was fitted so already.

    Args:
        folder: the data folder; it must be writable.
        n_concepts: how many concepts there are; one without choices is allowed.
        recipe: constants and seed; its `n_objects` is of THINGS and does not count here.
        zero_absent: that concept 0 is in no choice is known; see `training.vice_data.read_triplets`.

    Raises:
        FileNotFoundError: neither an embedding nor choices.
        ValueError: bad choices (named), or the folder's fit is of another recipe or other choices.
    """
    if (folder / PUBLISHED).exists():
        return
    files = (_choices(folder, name) for name in CHOICES)
    train, test = (read_triplets(file, n_concepts, odd="last", zero_absent=zero_absent) for file in files)
    fit_vice(train, test, recipe.config, folder / FIT, recipe.seed, n_objects=n_concepts)


def doubt_choices(
    folder: Path, n_concepts: int, concept: NDArray[np.int64], features: NDArray[np.floating[Any]]
) -> None:
    """Warn where the photos say that the folder's choices have the odd one first, or are 1-based.

    A model's features see a little of what people see: where they clearly agree with the first column and not with the
    last, the file is hardly what it should be. Silence proves nothing.

    Args:
        folder: the data folder, whose choices VICE was fitted to.
        n_concepts: how many concepts there are.
        concept: [n] concept number of each photo; negative where it has none.
        features: [n, p] of the photos, of a model that was not aligned with these choices.
    """
    has = concept >= 0
    vectors = np.zeros((n_concepts, features.shape[1]))
    np.add.at(vectors, concept[has], features[has])  # of cosines, a sum is as good as a mean
    for file in (_choices(folder, name) for name in CHOICES):
        rows = read_triplets(file, n_concepts, odd="last", zero_absent=True)
        rows = rows[np.isin(rows, concept[has]).all(1)]
        if len(rows) and (said := misread(rows, vectors, odd="last", kernel="cosine")):
            warnings.warn(f"{file}: {said}. If so, mend the files and remove {folder / FIT}.", stacklevel=2)


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
