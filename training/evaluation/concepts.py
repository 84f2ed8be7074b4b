"""What protocols about THINGS concepts share: which concepts are judged, triplets of them, one photo for each place."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract import triplets
from contract.triplets import Kernel
from training import evaluate
from training.evaluation.result import NotHere, Setting
from training.evaluation.subjects import Vectors
from training.feeds import random_triplets
from training.run import Data, read_data

CHUNK_BYTES = 2**21
"""Of the vectors of the triplets that are compared at once: what fits in a cache is compared 20 to 40 times faster."""
LARGEST_GRAM = 6_000
"""Photos of the largest Gram matrix that is kept, 288 MB."""
GRAM_PAIRS = 30
"""Entries of a Gram matrix that cost as much as a triplet by itself."""


@cache
def concept_data(folder: Path) -> Data:
    """Photos, VICE, responses and categories of a data folder.

    Raises:
        NotHere: one of the files is missing.
        ValueError: a file is wrong; its row is named.
    """
    if absent := [name for name in ("images.csv", "things/concepts.csv") if not (folder / name).is_file()]:
        raise NotHere(f"{folder} has no {', '.join(absent)}")
    try:
        return read_data(folder)
    except FileNotFoundError as error:
        raise NotHere(str(error)) from error


def judged_concepts(setting: Setting) -> NDArray[np.int64]:
    """Concept numbers that have photos and, where models come from a split, were held out from it; ascending."""
    concepts = concept_data(setting.data).photos.concepts
    if setting.held_out is not None:
        concepts = np.intersect1d(concepts, setting.held_out)
    if len(concepts) < 3:
        raise NotHere(f"{len(concepts)} concepts have photos and may be judged; expected at least 3")
    return concepts


@dataclass(frozen=True)
class ConceptTriplets:
    """Triplets of concepts with photos, and what VICE says of them.

    Attributes:
        concepts: [t, 3] concept numbers.
        photos: [t, 3] rows of the photos that stand for them.
        vice: [t, 3] VICE's similarities of the pairs.
    """

    concepts: NDArray[np.int64]
    photos: NDArray[np.int64]
    vice: NDArray[np.float64]

    def select(self, rows: NDArray[np.bool_]) -> "ConceptTriplets":
        """Some of them."""
        return ConceptTriplets(self.concepts[rows], self.photos[rows], self.vice[rows])


def draw_photos(data: Data, concepts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random photo of each concept in an array of concept numbers, as an array of rows of the same shape."""
    order = np.argsort(data.photos.concept, kind="stable")
    first = np.searchsorted(data.photos.concept[order], concepts)
    count = np.searchsorted(data.photos.concept[order], concepts, side="right") - first
    if (count == 0).any():
        raise ValueError(f"concept {concepts[count == 0][0]} has no photo.")
    drawn = (np.random.default_rng(seed).random(concepts.shape) * count).astype(np.int64)
    out: NDArray[np.int64] = order[first + drawn]
    return out


def vice_triplets(setting: Setting) -> ConceptTriplets:
    """Random triplets of the judged concepts: the same for the same seed, whatever the models."""
    data, concepts = concept_data(setting.data), judged_concepts(setting)
    rng = np.random.default_rng(setting.constants.seed)
    rows = concepts[random_triplets(len(concepts), setting.constants.triplets, rng)]
    return of_concepts(data, rows, setting.constants.seed)


def of_concepts(data: Data, rows: NDArray[np.int64], seed: int) -> ConceptTriplets:
    """Triplets of the concepts in rows [t, 3], photos drawn."""
    return ConceptTriplets(rows, draw_photos(data, rows, seed), triplets.pair_similarities(data.vice[rows]))


def similarities(vectors: Vectors, rows: NDArray[np.int64], kernel: Kernel) -> NDArray[np.float64]:
    """Similarities [t, 3] of the pairs of triplets [t, 3] of photos, in double precision and bounded memory."""
    used, position = np.unique(rows, return_inverse=True)
    index: Any = position.reshape(rows.shape)
    # Multiplying matrices does more pairs a second than gathering vectors: worth it where most pairs are asked for.
    if len(used) <= LARGEST_GRAM and len(used) ** 2 < GRAM_PAIRS * len(rows):
        x = vectors[used].astype(np.float64)
        matrix: Any = triplets.similarity_matrix(x, x, kernel)
        out: NDArray[np.float64] = triplets.similarities_at(matrix, index)
        return out
    sims = np.empty((len(rows), 3))
    chunk = max(16, CHUNK_BYTES // (3 * vectors.shape[1] * np.dtype(np.float64).itemsize))
    with tqdm(total=len(rows), desc=f"triplets, {kernel}", unit="triplet", unit_scale=True, leave=False) as bar:
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            sims[start : start + len(part)] = triplets.pair_similarities(vectors[part].astype(np.float64), kernel)
            bar.update(len(part))
    return sims


def temperature_on(sims: NDArray[np.float64], log_p: NDArray[np.float64], model: str) -> float:
    """The temperature that fits a model's similarities [t, 3] to people's log-probabilities of the same pairs.

    Raises:
        ValueError: naming the model, where its similarities do not differ.
    """
    try:
        return evaluate.fit_temperature(sims, log_p)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
