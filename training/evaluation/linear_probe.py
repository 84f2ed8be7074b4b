"""The linear probe: how much of human similarity a linear map can bring out of features (Muttenthaler et al. 2023).

"Human alignment of neural network representations", section 4.2: W minimises the cross-entropy of the odd-one-out
choices plus a penalty on its norm, cross-validated over OBJECTS, so that no validated object was trained on
(`training.probing`, objective `hard`). One vector an object: the mean of its photos' features. Choices are the
official files under things/triplets where they cover the objects that may be judged, else choices simulated from
VICE's probabilities. Left open by the paper: its early stopping; here the best validation step is kept, which
favours every model alike.
"""

import numpy as np

from training import evaluate
from training.evaluation.concepts import concept_data, judged_concepts
from training.evaluation.odd_one_out import RESPONSES, read_choices
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import identity_hash
from training.probe_grid import Grid, probe
from training.probing import ProbeConfig, ProbeData
from training.vice_data import odd_last, simulate_choices

GRID = Grid(penalties=(1e-1, 1e-3), learning_rates=(1e-3,), folds=3)
CONFIG = ProbeConfig(objective="hard", steps=2_000, validate_every=100, patience=5)
FEWEST = 3_000
"""Real choices below which simulated ones are taken."""


def linear_probe(setting: Setting) -> Result:
    """Accuracy on choices about unseen objects before and after the map, mean over folds."""
    data, concepts = concept_data(setting.data), judged_concepts(setting)
    if len(concepts) < 3 * GRID.folds:
        raise NotHere(f"{len(concepts)} concepts may be judged; {GRID.folds} folds of objects need {3 * GRID.folds}")
    rows, source = _choices(setting, concepts)
    out = Result(notes=[f"{len(rows)} choices on {len(concepts)} objects, {source}; {GRID.folds} folds of objects."])
    folder = setting.features.folder.parent / "probes"
    for name, x in setting.vectors(data.photos).items():
        means = np.stack([x[data.photos.of_concept(c)].mean(0) for c in concepts]).astype(np.float32)
        given = ProbeData(means, rows)
        into = folder / identity_hash(given.sha256())[:16]
        into.mkdir(parents=True, exist_ok=True)
        found = probe(given, CONFIG, GRID, into, seed=setting.constants.seed)
        best = [line for line in found.results if line["cell"] == found.summary["cell"]]
        for figure, key in (("accuracy, probed", "accuracy"), ("accuracy, as it is", "untransformed_accuracy")):
            folds = [
                evaluate.proportion(line[key] * line["triplets_validation"], line["triplets_validation"])
                for line in best
            ]
            out.rows.append(Row(figure, name, evaluate.average(folds), setting="dot, strict"))
    out.plots.append(
        Plot("bars", "Linear probe, objects not trained on", {"figure": "accuracy, probed", "chance": 1 / 3})
    )
    return out


def _choices(setting: Setting, concepts: np.ndarray) -> tuple[np.ndarray, str]:
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
