"""How far a model's probabilities can be believed: fitted to people's choices, and measured on others.

    temperature   fitted by maximum likelihood (Guo et al. 2017)
    ECE           expected calibration error: the gap between the probability of the model's choice and the share of
                  people who make it, mean over fifteen bins of equally many triplets
    Brier         mean squared difference between probabilities and choices, summed over the three images
    table         entropy of a triplet to the share of people who agree with the model's choice

Everything but the temperature is measured on one half of the judgments with a temperature fitted on the other half,
and the other way round; a half has its own concepts, splits or triplets.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.triplets import Kernel
from training.align import Transform
from training.evaluate import Judged, fit_temperature, judge_split, pooled
from training.feeds import random_triplets
from training.images import FileImages, Images, require_present
from training.photos import read_photos
from training.run import KERNEL, read_data, split_concepts
from training.tables import read_rows, to_int
from training.things import read_held_out, read_vice

TRIPLETS = 20_000
"""Drawn from VICE, half of them in each half of the concepts."""

PHOTOS = 2
"""Of each concept, at most."""

LEAST = 100
"""Judgments below which nothing is fitted."""

ECE_BINS, TABLE_BINS = 15, 10

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Judgments:
    """What people choose in triplets of photos.

    Attributes:
        images: where the photos come from.
        rows: [m] which of them are needed.
        index: [t, 3] triplets of positions in `rows`.
        chosen: [t, 3] probability that people pair (0, 1), (0, 2), (1, 2).
        half: [t] 0 or 1, which half a triplet is of.
        people: who they are, in words.
    """

    images: Images
    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    chosen: Matrix
    half: NDArray[np.int64]
    people: str


def read_judgments(source: Path, held_out: Path | None = None) -> Judgments:
    """VICE's probabilities for the concepts of a data folder, or a CSV of people's own choices.

    Args:
        source: a folder with images.csv and things/vice_embedding.npy; or a CSV with the columns image_0, image_1,
            image_2 (paths, relative to the file) and odd_position (0, 1, 2), a row a choice.
        held_out: of a folder, the concepts that the model was not fitted on; all are used if None.

    Raises:
        ValueError: bad files (the row is named), or fewer than six concepts with photos.
    """
    if source.is_dir():
        return _of_vice(source, held_out)
    if held_out is not None:
        raise ValueError("held-out concepts are for a data folder; a CSV holds held-out choices only.")
    return _of_choices(source)


def _of_vice(folder: Path, held_out: Path | None) -> Judgments:
    vice = read_vice(folder / "things/vice_embedding.npy")
    photos = read_photos(folder / "images.csv", len(vice))
    concepts, which = photos.concepts, "all concepts with photos"
    if held_out is not None:
        concepts = np.intersect1d(concepts, read_held_out(held_out, len(vice)))
        which = f"the held-out concepts of {held_out.name}"
    if len(concepts) < 6:
        raise ValueError(f"{folder} has photos of {len(concepts)} concepts to judge; expected 6 or more.")
    rng = np.random.default_rng(0)
    rows: list[NDArray[np.int64]] = []
    index: list[NDArray[np.int64]] = []
    chosen: list[Matrix] = []
    half: list[NDArray[np.int64]] = []
    for number, mine in enumerate(np.array_split(rng.permutation(concepts), 2)):
        first = sum(len(row) for row in rows)
        drawn = [rng.permutation(photos.of_concept(c))[:PHOTOS] for c in mine]
        starts = first + np.cumsum([0, *(len(d) for d in drawn)])
        rows += drawn
        of: Any = random_triplets(len(mine), TRIPLETS // 2, rng)  # [t, 3] positions in `mine`
        photo = (rng.random(of.shape) * np.array([len(d) for d in drawn])[of]).astype(np.int64)
        index.append(starts[of] + photo)
        gram = vice[mine] @ vice[mine].T
        chosen.append(triplets.pair_probabilities(triplets.similarities_at(gram, of)))
        half.append(np.full(len(of), number))
    people = f"VICE posterior probabilities (4.7 million human choices) of triplets of THINGS concepts: {which}"
    return Judgments(
        photos, np.concatenate(rows), np.concatenate(index), np.concatenate(chosen), np.concatenate(half), people
    )


def _of_choices(file: Path) -> Judgments:
    columns = ("image_0", "image_1", "image_2", "odd_position")
    table = read_rows(file, columns)
    odd = np.array([to_int(file, i, row, "odd_position") for i, row in enumerate(table)], np.int64)
    for i, row in enumerate(table):
        if odd[i] not in (0, 1, 2) or len({row[name] for name in columns[:3]}) < 3:
            raise ValueError(f"{file}, row {i}: expected three different images and an odd_position of 0, 1 or 2.")
    names = sorted({row[name] for row in table for name in columns[:3]})
    number = {name: i for i, name in enumerate(names)}
    index = np.array([[number[row[name]] for name in columns[:3]] for row in table], np.int64).reshape(-1, 3)
    images = FileImages(file.parent, tuple(names))
    require_present(images, str(file))
    # All choices of one triplet, in whatever order it was shown, are in one half.
    _, same = np.unique(np.sort(index, 1), axis=0, return_inverse=True)
    half = np.random.default_rng(0).permutation(same.max(initial=0) + 1)[same.ravel()] % 2
    chosen = np.eye(3)[2 - odd]
    return Judgments(images, np.arange(len(names)), index, chosen, half, f"{len(odd)} human choices of {file.name}")


def calibrate(similarities: Matrix, chosen: Matrix, half: NDArray[np.int64], people: str) -> dict[str, Any]:
    """Temperature, errors and table of one space, as the manifest holds them.

    Args:
        similarities: [t, 3] of the model, in the order of `contract.triplets.PAIRS`.
        chosen: [t, 3] probabilities of people's choices, in the same order.
        half: [t] 0 or 1.
        people: who chose.

    Raises:
        ValueError: fewer than a hundred judgments in a half, or similarities that do not differ.
    """
    counts = [int((half == number).sum()) for number in (0, 1)]
    if min(counts) < LEAST:
        raise ValueError(f"{sum(counts)} judgments, {min(counts)} in the smaller half; expected {LEAST} in each.")
    log_p = np.log(np.maximum(chosen, np.finfo(np.float64).tiny))
    q = np.empty_like(similarities)
    for number in (0, 1):
        other, mine = half != number, half == number
        q[mine] = triplets.pair_probabilities(similarities[mine], fit_temperature(similarities[other], log_p[other]))
    return {
        "people": people,
        "triplets": len(q),
        "temperature": fit_temperature(similarities, log_p),
        **_errors(q, chosen),
        "table": _table(triplets.entropy(q), _agreement(q, chosen)),
    }


def _agreement(q: Matrix, chosen: Matrix) -> Matrix:
    """Share of people [t] who choose as the model does; 0 where the model has a tie."""
    odd = triplets.odd_one_out(q)
    pair = np.where(odd == triplets.TIE, 0, 2 - odd)
    return np.where(odd == triplets.TIE, 0.0, chosen[np.arange(len(chosen)), pair])


def _errors(q: Matrix, chosen: Matrix) -> dict[str, float]:
    confidence, agreement = q.max(1), _agreement(q, chosen)
    bins = np.array_split(np.argsort(confidence, kind="stable"), ECE_BINS)
    gaps = [abs(confidence[b].mean() - agreement[b].mean()) * len(b) for b in bins]
    likelihood = (chosen * np.log(np.maximum(q, np.finfo(np.float64).tiny))).sum(1)
    return {
        "expected_calibration_error": float(sum(gaps) / len(q)),
        # E (q - y)^2 over choices y drawn from people's probabilities p: q^2 - 2 q p + p, and p sums to 1.
        "brier": float((q**2 - 2 * q * chosen + chosen).sum(1).mean()),
        "negative_log_likelihood": float(-likelihood.mean()),
        "agreement": float(agreement.mean()),
    }


def _table(entropy: Matrix, agreement: Matrix) -> list[dict[str, float]]:
    """Bins of equally many triplets, from certain to uncertain."""
    bins = np.array_split(np.argsort(entropy, kind="stable"), TABLE_BINS)
    return [
        {
            "entropy_from": float(entropy[b].min()),
            "entropy_to": float(entropy[b].max()),
            "agreement": float(agreement[b].mean()),
            "triplets": len(b),
        }
        for b in bins
    ]


def of_vectors(
    judgments: Judgments,
    embed: Callable[[Images, NDArray[np.int64]], dict[str, NDArray[np.float32]]],
    kernel: dict[str, Kernel],
) -> dict[str, Any]:
    """The calibration of every space that a model serves.

    Args:
        judgments: of people.
        embed: (images, rows [m]) to {space: [m, d]}.
        kernel: of each of these spaces, and maybe of others.
    """
    vectors = embed(judgments.images, judgments.rows)
    return {
        space: calibrate(
            triplets.pair_similarities(matrix[judgments.index].astype(np.float64), kernel[space]),
            judgments.chosen,
            judgments.half,
            judgments.people,
        )
        for space, matrix in vectors.items()
    }


def of_run(run: Path, data_folder: Path) -> dict[str, Any]:
    """The calibration of every space of a run, each split judged by the model that was not shown its concepts.

    Args:
        run: a complete run folder, of a teacher or of a student.
        data_folder: what it was trained on.

    Raises:
        ValueError: bad data, or a split is missing.
    """
    data, identity = read_data(data_folder), json.loads((run / "recipe.json").read_text())
    is_student = "student" in identity
    recipe = identity["student"] if is_student else identity["recipe"]
    teacher = recipe["teacher"] if is_student else recipe
    features = None if is_student else _features(run / "features")
    judged: dict[str, list[Judged]] = {}
    for seed in recipe["split_seeds"]:
        _, held_out = split_concepts(data.photos.concepts, teacher["held_out"], seed)
        if features is None:
            vectors = {"aligned": _features(run / f"split-{seed}/features")}
        else:
            vectors = {"aligned": Transform.load(run / f"splits/seed-{seed}.npz").apply(features), "base": features}
        rows_of = [data.photos.of_concept(c) for c in held_out]
        for space, x in vectors.items():
            judged.setdefault(space, []).append(
                judge_split(x, rows_of, data.vice[held_out], KERNEL[space], draws=teacher["draws"], seed=seed)
            )
    people = (
        f"VICE posterior probabilities of triplets of held-out THINGS concepts, {len(recipe['split_seeds'])} splits"
    )
    return {space: _of_splits(splits, people, teacher["seed"]) for space, splits in judged.items()}


def _features(folder: Path) -> NDArray[np.float32]:
    if not (folder / "features.npy").is_file():
        raise ValueError(f"{folder} lacks features.npy; finish the run with `python -m training run` first.")
    features: NDArray[np.float32] = np.load(folder / "features.npy", allow_pickle=False)
    return features


def _of_splits(splits: list[Judged], people: str, seed: int) -> dict[str, Any]:
    """One space of a run; its halves are the even and the odd splits."""
    parts = [pooled([split], per_split=TRIPLETS, seed=seed) for split in splits]
    sims, log_p = (np.concatenate(part) for part in zip(*parts, strict=True))
    number = np.concatenate([np.full(len(part), i) for i, (part, _) in enumerate(parts)])
    half = number % 2 if len(parts) > 1 else np.arange(len(number)) % 2
    return calibrate(sims, np.exp(log_p), half, people)
