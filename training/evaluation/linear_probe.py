"""The linear probe: how much of human similarity a linear map can bring out of features (Muttenthaler et al. 2023).

"Human alignment of neural network representations", section 4.2: W minimises the cross-entropy of the odd-one-out
choices plus a penalty on its norm, cross-validated over OBJECTS, so that no validated object was trained on
(`training.probing`, objective `hard`). One vector an object: the mean of its photos' features. Choices are the
official files under things/triplets where they cover the objects that may be judged, else choices simulated from
VICE's probabilities. Left open by the paper: its early stopping; here the best validation step is kept, which
favours every model alike. Where features are wider than there are objects, the vectors are first rotated into their
own span: no dot product changes, the maps and the best of them are the same, since the penalty lets none leave that
span, and a wide model takes no longer than a narrow one.

Every model sees the same choices and folds. A figure is the share of right choices among the triplets that were
validated, of all folds; its interval is over objects, paired between models, with the maps as they were learned.
"""

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract import triplets
from training.evaluation.concepts import concept_data, judged_concepts
from training.evaluation.odd_one_out import HEADLINE, RESPONSES, read_choices, score_rows
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Vectors, identity_hash
from training.folds import Fold, object_folds
from training.probe_grid import Grid, fold_transform, probe
from training.probing import TIE_RULE, ProbeConfig, ProbeData
from training.vice_data import odd_last, simulate_choices

GRID = Grid(penalties=(1e-1, 1e-3), learning_rates=(1e-3,), folds=3)
CONFIG = ProbeConfig(objective="hard", steps=2_000, validate_every=100, patience=5)
FEWEST = 3_000
"""Real choices below which simulated ones are taken."""
BEFORE, AFTER, GAIN = "accuracy, as it is", "accuracy, probed", "gained by the probe"


def linear_probe(setting: Setting) -> Result:
    """Accuracy on choices about unseen objects before and after the map, and what the map gained."""
    data, concepts = concept_data(setting.data), judged_concepts(setting)
    if len(concepts) < 3 * GRID.folds:
        raise NotHere(f"{len(concepts)} concepts may be judged; {GRID.folds} folds of objects need {3 * GRID.folds}")
    rows, source = _choices(setting, concepts)
    folds = object_folds(rows, len(concepts), GRID.folds, seed=setting.constants.seed)
    validated = np.concatenate([fold.validation for fold in folds])
    scores = {}
    for name, x in tqdm(setting.vectors(data.photos).items(), desc="linear probes", unit="model"):
        means = np.stack([x[data.photos.of_concept(c)].mean(0) for c in concepts]).astype(np.float32)
        scores[name] = _probed(ProbeData(_standardised(means), rows), folds, setting)
    out = Result(score_rows(scores, concepts[rows[validated]], setting, HEADLINE))
    out.notes.append(
        f"{len(rows)} choices on {len(concepts)} objects, {source}; {GRID.folds} folds of objects, {len(validated)} "
        "choices validated; intervals are over objects, not over maps learned anew."
    )
    out.plots.append(Plot("bars", "Linear probe, objects not trained on", {"figure": AFTER, "chance": 1 / 3}))
    return out


def _standardised(features: Vectors) -> Vectors:
    """Objects' features [n, p] as a probe sees them before it learns [n, min(n, p)]: mean 0, deviation 1."""
    mean, std = ProbeData(features, np.zeros((0, 3), np.int64)).standardisation()
    x = ((features.astype(np.float64) - mean) / std) if std > 0 else features.astype(np.float64)
    return (x if x.shape[1] <= len(x) else in_their_span(x)).astype(np.float32)


def in_their_span(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors [n, p], rotated to [n, n]: their dot products are the same, and the mean of all numbers is 0.

    A mean of 0, because `fit_probe` subtracts the mean from every number, which would move the rotated vectors.
    """
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    y: NDArray[np.float64] = u * s
    centre, goal = y.mean(0), np.zeros(y.shape[1])
    goal[0], goal[1] = np.array([1, -1]) * np.linalg.norm(centre) / np.sqrt(2)
    mirror = centre - goal  # a reflection takes the mean vector to one whose numbers sum to 0
    if not mirror.any():
        return y
    reflected: NDArray[np.float64] = y - 2 * np.outer(y @ mirror, mirror) / (mirror @ mirror)
    return reflected


def _probed(given: ProbeData, folds: list[Fold], setting: Setting) -> dict[str, NDArray[np.float64]]:
    """Of each validated choice, fold after fold, whether the model makes it: as it is, and by the fold's own map."""
    seed = setting.constants.seed
    made_of = [given.sha256(), asdict(CONFIG), asdict(GRID), seed]
    into = setting.features.folder.parent / f"probes/{identity_hash(made_of)[:16]}"
    into.mkdir(parents=True, exist_ok=True)
    found = probe(given, CONFIG, GRID, into, seed=seed, every_fold=True)
    before = [_right(given.features, given.rows[fold.validation]) for fold in folds]
    after = [
        _right(fold_transform(into, found, fold.number).apply(given.features), given.rows[fold.validation])
        for fold in folds
    ]
    hits = {BEFORE: np.concatenate(before), AFTER: np.concatenate(after)}
    return hits | {GAIN: hits[AFTER] - hits[BEFORE]}


def _right(vectors: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the odd one, which stands last, is found by dot products [t]."""
    odd = triplets.odd_one_out(triplets.pair_similarities(vectors[rows].astype(np.float64)), TIE_RULE)
    right: NDArray[np.float64] = (odd == 2).astype(np.float64)
    return right


def _choices(setting: Setting, concepts: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Choices [n, 3] as positions among the concepts, odd one last, and where they come from."""
    data, number = concept_data(setting.data), {int(c): i for i, c in enumerate(concepts)}
    for choices in read_choices(setting.data, data):
        if choices.source == RESPONSES:  # of a test set: never learned from
            continue
        covered = np.isin(choices.objects, concepts).all(1)
        objects, counts = choices.objects[covered], choices.counts[covered]
        which, odd = np.repeat(np.arange(len(counts)), counts.sum(1)), []
        for row in counts:
            odd += [k for k in range(3) for _ in range(row[k])]
        if len(which) >= FEWEST:
            rows = odd_last(objects[which], np.array(odd))
            return np.vectorize(number.__getitem__)(rows), f"people's, of {choices.source}"
    simulated = simulate_choices(data.vice[concepts], setting.constants.triplets, seed=setting.constants.seed)
    return simulated, "simulated from VICE"
