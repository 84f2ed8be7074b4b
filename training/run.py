"""A run: recipe and data to a run folder, stage by stage. A stage that is complete is not done again.

recipe.json              recipe, versions, sha256 of the inputs
features/                the encoder's features, as `training.embed` writes them
splits/seed-N.npz        the transform learned without split N's held-out concepts
human/...npz             transforms learned without the concepts of real human triplets
transform.npz            the transform learned on all concepts: this one is exported
figures.json             what the splits say about it, temperatures, intervals
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from contract.files import sha256_of
from contract.triplets import Kernel
from training import evaluate
from training.align import Transform, uncertainty_distillation
from training.embed import extract
from training.evaluate import Estimate, Judged
from training.models import build
from training.people import POSTERIOR, PUBLISHED, doubt_choices, fit_people, read_people
from training.photos import Photos, read_photos
from training.recipe import Recipe
from training.stage import claim, write_json
from training.tables import read_rows
from training.things import NO_RESPONSES, Responses, read_responses
from training.vice_fit import ViceRecipe

KERNEL: dict[str, Kernel] = {"aligned": "dot", "base": "cosine"}
"""Similarity of each space: the transform is fitted to dot products; raw features are compared by cosine."""

RESPONSES = "things/human_test_responses.csv"

INPUTS = ("images.csv", "things/concepts.csv", PUBLISHED, POSTERIOR, RESPONSES)
"""Of a data folder. The first two must be there, one of the next two, and the last may be; see `read_data`."""


@dataclass(frozen=True)
class Data:
    """What a run reads, from one folder.

    Attributes:
        photos: of `images.csv`.
        vice: [concepts, dimensions] mean embedding that stands for people.
        posterior: [R, concepts, dimensions] samples of it, where it was fitted here.
        responses: single human choices; none where the folder has no such file.
        categories: of each concept.
    """

    photos: Photos
    vice: NDArray[np.float64]
    posterior: NDArray[np.float32] | None
    responses: Responses
    categories: list[set[str]]

    @property
    def people(self) -> NDArray[np.floating[Any]]:
        """What uncertainty distillation learns from: the posterior where there is one, or else the mean."""
        return self.vice if self.posterior is None else self.posterior


def read_data(folder: Path) -> Data:
    """Read and check `INPUTS` under `folder`.

    `things/concepts.csv` has a row a concept; its `categories` may be empty, and then no figure is about them.

    Raises:
        ValueError, FileNotFoundError: naming the file and row.
    """
    categories = _read_categories(folder)
    vice, posterior = read_people(folder)
    if len(categories) != len(vice):
        raise ValueError(f"{folder}: {len(categories)} concepts, but VICE has {len(vice)} rows; they must match.")
    given = (folder / RESPONSES).exists()
    return Data(
        photos=read_photos(folder / "images.csv", len(vice)),
        vice=vice,
        posterior=posterior,
        responses=read_responses(folder / RESPONSES, len(vice)) if given else NO_RESPONSES,
        categories=categories,
    )


def _read_categories(folder: Path) -> list[set[str]]:
    concepts = read_rows(folder / "things/concepts.csv", ("categories",))
    return [{name.strip() for name in row["categories"].split(";")} for row in concepts]


def run(
    recipe: Recipe, data_folder: Path, out: Path, vice: ViceRecipe | None = None, *, zero_absent: bool = False
) -> dict[str, Any]:
    """Extract and learn what is not there yet, then measure, and return the figures.

    Args:
        recipe: of the model.
        data_folder: photos and judgments.
        out: run folder to make or to continue.
        vice: how to fit VICE first, where the data folder has choices and no embedding; see `training.people`.
        zero_absent: that concept 0 is in no choice is known; see `training.vice_data.read_triplets`.

    Raises:
        ValueError: bad data (named), or `out` belongs to another recipe or other inputs.
    """
    if vice is not None:
        fit_people(data_folder, len(_read_categories(data_folder)), vice, zero_absent=zero_absent)
    data = read_data(data_folder)
    out.mkdir(parents=True, exist_ok=True)
    identity = {"recipe": asdict(recipe), "inputs": input_hashes(data_folder)}
    claim(out / "recipe.json", identity, ("numpy", "pillow", "scipy", "torch"))
    encoder = build(recipe.encoder)
    features = extract(encoder, recipe.encoder, data.photos, out / "features")
    if vice is not None and data.posterior is not None:
        doubt_choices(data_folder, len(data.vice), data.photos.concept, features)
    splits = {seed: split_concepts(data.photos.concepts, recipe.held_out, seed) for seed in recipe.split_seeds}
    vectors = {
        seed: _fit(out / f"splits/seed-{seed}.npz", recipe, data, features, held_out, seed).apply(features)
        for seed, (_, held_out) in splits.items()
    }
    final = _fit(out / "transform.npz", recipe, data, features, np.empty(0, np.int64), recipe.seed)
    figures = _figures(recipe, data, features, splits, vectors)
    figures["figures"] += _human(recipe, data, features, out)
    figures["figures"] += _shipped(data, features, final.apply(features))
    write_json(out / "figures.json", figures)
    return figures


def split_concepts(
    concepts: NDArray[np.int64], held_out: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, held-out) concept numbers, each ascending."""
    order = np.random.default_rng(seed).permutation(concepts)
    k = round(held_out * len(order))
    return np.sort(order[k:]), np.sort(order[:k])


def input_hashes(data_folder: Path) -> dict[str, str]:
    """Sha256 of each of `INPUTS` that is there."""
    return {name: sha256_of(data_folder / name) for name in INPUTS if (data_folder / name).exists()}


def require_inputs(data_folder: Path, trained_on: dict[str, str]) -> None:
    """Raises ValueError naming the files that are not those a run was trained on."""
    given = input_hashes(data_folder)
    if other := sorted(name for name in trained_on if given.get(name) != trained_on[name]):
        raise ValueError(f"{data_folder}: {other} are not the files that the run was trained on.")


def _fit(
    file: Path, recipe: Recipe, data: Data, features: NDArray[np.float32], hidden: NDArray[np.int64], seed: int
) -> Transform:
    """The transform learned on every concept but the hidden ones; read if it is there already."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        transform = uncertainty_distillation(
            features,
            data.photos.concept,
            np.setdiff1d(data.photos.concepts, hidden),
            hidden,
            data.people,
            recipe.align,
            seed=seed,
            description=f"align {file.stem}",
        )
        transform.save(file)
    return Transform.load(file)


def _figures(
    recipe: Recipe,
    data: Data,
    features: NDArray[np.float32],
    splits: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
    vectors: dict[int, NDArray[np.float32]],
) -> dict[str, Any]:
    """Figures on held-out concepts, before (base) and after (aligned), and the temperature of each space."""
    out: dict[str, Any] = {"temperature": {}, "figures": []}
    for space in ("base", "aligned"):
        judged = []
        for seed, (_, held_out) in splits.items():
            x = features if space == "base" else vectors[seed]
            rows_of = [data.photos.of_concept(c) for c in held_out]
            vice = data.vice[held_out]
            judged.append(evaluate.judge_split(x, rows_of, vice, KERNEL[space], draws=recipe.draws, seed=seed))
        temperature = evaluate.fit_temperature(*evaluate.pooled(judged, per_split=20_000, seed=recipe.seed))
        out["temperature"][space] = temperature
        out["figures"] += _judged_figures(recipe, space, judged, temperature)
        out["figures"] += _split_figures(data, space, features, splits, vectors, temperature)
    return out


def _judged_figures(recipe: Recipe, space: str, judged: list[Judged], temperature: float) -> list[dict[str, Any]]:
    where = f"held-out concepts, {len(judged)} splits; 95 % bootstrap over splits and concepts; {KERNEL[space]} product"
    statistics: list[tuple[str, evaluate.Statistic, str, str]] = [
        ("agreement with VICE's most likely choice", evaluate.agreement, "fraction", "chance 1/3, ties count as wrong"),
        ("RSA with VICE", evaluate.rsa, "Spearman", "Pearson kernel, strict upper triangle"),
        ("entropy correlation with VICE", evaluate.entropy_correlation(temperature), "Spearman", "over triplets"),
        ("KL from VICE's posterior", evaluate.divergence(temperature), "nats", f"at T = {temperature:.4g}"),
    ]
    return [
        _figure(
            name,
            space,
            evaluate.estimate(judged, statistic, repetitions=recipe.bootstrap, seed=recipe.seed),
            unit,
            f"{note}; {where}",
        )
        for name, statistic, unit, note in statistics
    ]


def _split_figures(
    data: Data,
    space: str,
    features: NDArray[np.float32],
    splits: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
    vectors: dict[int, NDArray[np.float32]],
    temperature: float,
) -> list[dict[str, Any]]:
    """Nearest neighbours and animal/vehicle triplets, mean over the splits; none of what the data do not have."""
    caltech, label = data.photos.of_dataset("caltech101")
    neighbours, probabilities, hits = [], [], []
    for seed, (train, held_out) in splits.items():
        x = features if space == "base" else vectors[seed]
        unseen = ~np.isin(data.photos.concept[caltech], train)
        if unseen.any():
            neighbours.append(evaluate.nearest_neighbour(x[caltech], label, unseen))
        if has_animals_and_vehicles(data, held_out):
            sims = two_animals_and_a_vehicle(data, x, held_out, KERNEL[space], seed)
            hits.append(evaluate.proportion(float((triplets.odd_one_out(sims) == 2).sum()), len(sims)))
            probabilities.append(evaluate.mean(triplets.odd_probabilities(sims, temperature)[:, 2]))
    by_category = "held-out concepts by THINGS category"
    vehicle = "two animals and a vehicle:"
    found = (
        ("Caltech-101 1-NN, classes not trained on", neighbours, "fraction", "leave-one-out, cosine"),
        (f"{vehicle} the vehicle is odd", hits, "fraction", by_category),
        (f"{vehicle} probability of the vehicle", probabilities, "probability", by_category),
    )
    return [
        _figure(
            name,
            space,
            evaluate.average(estimates),
            unit,
            f"{note}; mean of {len(estimates)} splits, 95 % interval of one split",
        )
        for name, estimates, unit, note in found
        if estimates
    ]


def has_animals_and_vehicles(data: Data, concepts: Sequence[int] | NDArray[np.int64]) -> bool:
    """Whether `two_animals_and_a_vehicle` can be asked about these concepts."""
    animals, vehicles = (sum(name in data.categories[c] for c in concepts) for name in ("animal", "vehicle"))
    return animals >= 2 and vehicles >= 1


def two_animals_and_a_vehicle(
    data: Data, vectors: NDArray[np.float32], concepts: Sequence[int] | NDArray[np.int64], kernel: Kernel, seed: int
) -> NDArray[np.float64]:
    """Similarities [2000, 3] of photos of two different animals (images 0 and 1) and a vehicle (image 2).

    Raises:
        ValueError: the concepts hold fewer than two animals or no vehicle.
    """
    rng = np.random.default_rng(seed)
    animals = [c for c in concepts if "animal" in data.categories[c]]
    vehicles = [c for c in concepts if "vehicle" in data.categories[c]]
    if len(animals) < 2 or not vehicles:
        raise ValueError(f"{len(animals)} animals and {len(vehicles)} vehicles; expected at least two and one.")
    rows = []
    for _ in range(2_000):
        chosen = (*rng.choice(animals, 2, replace=False), rng.choice(vehicles))
        rows.append([rng.choice(data.photos.of_concept(c)) for c in chosen])
    return triplets.pair_similarities(vectors[np.array(rows)].astype(np.float64), kernel)


def _human(recipe: Recipe, data: Data, features: NDArray[np.float32], out: Path) -> list[dict[str, Any]]:
    """Agreement with single human responses, on the triplets of which all three concepts have photos.

    Each such triplet is judged by a transform that was learned without its three concepts.
    """
    covered = np.isin(data.responses.concepts, data.photos.concepts).all(1)
    concepts, odd = data.responses.concepts[covered], data.responses.odd[covered]
    triplet_of = np.sort(concepts, axis=1)
    expected: dict[str, list[float]] = {"base": [], "aligned": []}
    for triplet in np.unique(triplet_of, axis=0):
        name = "-".join(str(c) for c in triplet)
        fitted = _fit(out / f"human/without-{name}.npz", recipe, data, features, triplet, recipe.seed).apply(features)
        mine = (triplet_of == triplet).all(1)
        for space, x in (("base", features), ("aligned", fitted)):
            rng = np.random.default_rng(recipe.seed)
            for row, choice in zip(concepts[mine], odd[mine], strict=True):
                photos = [[rng.choice(data.photos.of_concept(c)) for c in row] for _ in range(recipe.draws)]
                sims = triplets.pair_similarities(x[np.array(photos)].astype(np.float64), KERNEL[space])
                expected[space].append(float((triplets.odd_one_out(sims) == choice).mean()))
    n_triplets = len(np.unique(triplet_of, axis=0))
    note = (
        f"{n_triplets} of the 1,000 human test triplets have photos of all three concepts here: anecdote, not evidence"
    )
    out_figures = []
    for space, values in expected.items():
        if values:
            figure = evaluate.proportion(sum(values), len(values))
            out_figures.append(_figure("agreement with single human responses", space, figure, "fraction", note))
    return out_figures


def _shipped(data: Data, features: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Nearest neighbours of all Caltech-101 photos, with the transform that is exported; nothing without them."""
    caltech, label = data.photos.of_dataset("caltech101")
    if not label:
        return []
    everything = np.ones(int(caltech.sum()), bool)
    note = "leave-one-out, cosine; the exported transform, which has seen the concepts of these classes; 95 % Wald"
    return [
        _figure("Caltech-101 1-NN", space, evaluate.nearest_neighbour(x[caltech], label, everything), "fraction", note)
        for space, x in (("base", features), ("aligned", vectors))
    ]


def _figure(name: str, space: str, estimate: Estimate, unit: str, note: str) -> dict[str, Any]:
    return {"name": name, "space": space, "unit": unit, "note": note, **asdict(estimate)}
