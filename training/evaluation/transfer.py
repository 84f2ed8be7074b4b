"""What features are worth to a classifier: few shots, all shots, nearest neighbours, shifted and odd images.

Features are frozen. The readout is, by `Constants.classifier`,

    ridge       ridge regression onto classes (one-hot, -1 and 1), as in big_vision's few-shot evaluator; the penalty by
                leave-one-out error on the shots, 1 for one shot. AligNet names no solver.
    logistic    gLocal's: multinomial logistic regression, l2, eleven C from 1e-4 to 1e6 by cross-validation with as
                many folds as shots (5 for all); no one-shot figure, as there.

Features are centred and divided by one standard deviation of all training features. Shots are drawn five times, the
test part stays; a class with fewer photos than shots gives what it has. Intervals are over test photos.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

from contract import triplets
from training.evaluation import intervals
from training.evaluation.breeds import BREEDS, superclasses
from training.evaluation.concepts import concept_data
from training.evaluation.image_sets import ImageSet, image_sets, imagenet
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import Vectors

SHOTS = (1, 10)
DRAWS = 5
PENALTIES = np.logspace(-2, 6, 9)
NEIGHBOURS = (1, 10)
UNTRAINED = "accuracy, classes not trained on"
NORMAL = 5
"""Nearest normal images whose mean cosine makes the anomaly score (gLocal's code)."""
MANY_CLASSES = "The number of unique classes is greater than 50%"
"""What scikit-learn warns of where there is one shot of each class."""

Hits = NDArray[np.float64]


def classification(setting: Setting) -> Result:
    """Few-shot and linear probes, one-shot and k nearest neighbours, on every labelled set."""
    sets = _sets(setting)
    out = Result(notes=[one.note for one in sets if one.note])
    for one in sets:
        scores: dict[str, dict[str, Hits]] = {}
        for name, x in tqdm(setting.vectors(one.images).items(), desc=f"probes on {one.name}", unit="model"):
            scores[name] = _probed(x[one.rows], one, setting)
        out.rows += hit_rows(scores, setting, "accuracy", one.name)
        unseen = untrained(setting, one)
        if unseen is not None and unseen.any() and not unseen.all():
            part = {model: {how: hits[unseen] for how, hits in by.items()} for model, by in scores.items()}
            out.rows += hit_rows(part, setting, UNTRAINED, one.name)
            seen = int((~unseen).sum())
            out.notes.append(f"{one.name}: {seen} photos tested on are of concepts that alignment was trained on.")
        train = int((~one.test).sum())
        out.notes.append(f"{one.name}: {train} photos to learn from, {int(one.test.sum())} tested on.")
    settings = dict.fromkeys(row.setting for row in out.rows)
    out.plots += [Plot("bars", f"Accuracy: {how}", {"figure": "accuracy", "setting": how}) for how in settings]
    return out


def untrained(setting: Setting, one: ImageSet) -> NDArray[np.bool_] | None:
    """Which of a set's test photos are of no concept that the split trained on; None without split or concepts."""
    if setting.held_out is None:
        return None
    photos = concept_data(setting.data).photos
    if photos.names != one.images.names:
        return None
    trained = np.setdiff1d(photos.concepts, setting.held_out)
    out: NDArray[np.bool_] = ~np.isin(photos.concept[one.rows[one.test]], trained)
    return out


def _probed(x: Vectors, one: ImageSet, setting: Setting) -> dict[str, Hits]:
    """Hits [tested] of every readout, mean over draws of shots."""
    classifier, seed = setting.constants.classifier, setting.constants.seed
    learn, test, label = x[~one.test], x[one.test], one.label
    given, truth = label[~one.test], label[one.test]
    scores = {}
    for shots in SHOTS:
        rows = [shot_rows(given, shots, seed + draw) for draw in range(DRAWS)]
        if shots > 1 or classifier == "ridge":
            fits = [readout(learn[r], given[r], classifier, shots)(test) == truth for r in rows]
            scores[f"{shots} shot{'s' * (shots > 1)}, {classifier}"] = np.mean(fits, axis=0)
        if shots == 1:
            near = [_nearest(learn[r], given[r], 1).predict(_unit(test)) == truth for r in rows]
            scores["1 shot, nearest"] = np.mean(near, axis=0)
    scores[f"all, {classifier}"] = (readout(learn, given, classifier, None)(test) == truth).astype(np.float64)
    for k in NEIGHBOURS:
        if k <= len(learn):
            scores[f"{k}-NN"] = (_nearest(learn, given, k).predict(_unit(test)) == truth).astype(np.float64)
    return scores


def shot_rows(label: NDArray[Any], shots: int, seed: int) -> NDArray[np.int64]:
    """Rows of `shots` images of each class, or all it has."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(label == one))[:shots] for one in np.unique(label)])


def readout(x: Vectors, label: NDArray[Any], classifier: str, shots: int | None) -> Callable[[Vectors], NDArray[Any]]:
    """A linear readout learned on features [n, d] and classes [n]; it maps features to classes.

    Args:
        x: to learn from.
        label: their classes.
        classifier: `ridge` or `logistic`.
        shots: of each class, None for all there are; decides how the penalty is chosen.
    """
    mean, std = x.mean(0), float(x.std()) or 1.0
    scaled = (x - mean) / std
    model: Any
    if classifier == "logistic":
        folds = 5 if shots is None else shots
        folds = max(2, min(folds, int(np.unique(label, return_counts=True)[1].min())))
        model = LogisticRegressionCV(
            Cs=11, cv=folds, max_iter=500, l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy"
        )
    elif shots == 1:
        model = RidgeClassifier(alpha=1.0)
    else:
        model = RidgeClassifierCV(alphas=PENALTIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # gLocal's 500 iterations are what is asked for
        warnings.filterwarnings("ignore", MANY_CLASSES)
        model.fit(scaled, label)
    return lambda features: np.asarray(model.predict((features - mean) / std))


def _unit(x: Vectors) -> Vectors:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)


def _nearest(x: Vectors, label: NDArray[Any], k: int) -> KNeighborsClassifier:
    """By cosine: of unit vectors, Euclidean distance has the same order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MANY_CLASSES)
        return KNeighborsClassifier(k, algorithm="brute").fit(_unit(x), label)


def hit_rows(
    scores: dict[str, dict[str, Hits]], setting: Setting, figure: str, group: str, unit: str = "fraction"
) -> list[Row]:
    """Rows of models and paired differences from scores of the same items, by setting."""
    c = setting.constants
    differences = {f"{a} - {b}": {how: scores[a][how] - scores[b][how] for how in scores[a]} for a, b in setting.pairs}
    return [
        Row(figure, model, intervals.mean_over_items(values, c.repetitions, c.seed), group, how, unit)
        for model, by in (scores | differences).items()
        for how, values in by.items()
    ]


def _sets(setting: Setting) -> list[ImageSet]:
    sets = image_sets(setting.data, setting.constants.seed)
    if not sets:
        raise NotHere(f"{setting.data} has no images.csv with classes and no classification/")
    return sets


# --- shifts ---------------------------------------------------------------------------------------


def breeds(setting: Setting) -> Result:
    """The four sets of BREEDS: a readout of superclasses, tested on subclasses that it has not seen."""
    found = imagenet(setting.data)
    if found is None:
        raise NotHere(f"{setting.data} has no ImageNet photos (imagenet/WNID/, or wordnet_id in images.csv)")
    images, rows, number = found
    out = Result()
    features = {name: x[rows] for name, x in setting.vectors(images).items()}
    for name in BREEDS:
        label, test = np.full(len(rows), -1), np.zeros(len(rows), bool)
        for i, one in enumerate(superclasses(name)):
            learn, shifted = np.isin(number, list(one.train)), np.isin(number, list(one.test))
            label[learn | shifted] = i
            test |= shifted
        mine = label >= 0
        if len(set(label[mine & ~test])) < 2 or not (mine & test).any():
            out.notes.append(f"{name}: too few photos of its classes.")
            continue
        classifier = setting.constants.classifier
        scores = {}
        for model, x in features.items():
            predict = readout(x[mine & ~test], label[mine & ~test], classifier, None)
            hits = (predict(x[mine & test]) == label[mine & test]).astype(np.float64)
            scores[model] = {f"linear, {classifier}": hits}
        out.rows += hit_rows(scores, setting, "accuracy under shift", name)
        counts = f"{int((mine & ~test).sum())} photos to learn from, {int((mine & test).sum())} tested on"
        out.notes.append(f"{name}: {counts}, {len(superclasses(name))} superclasses.")
    if not out.rows:
        raise NotHere(f"{setting.data} has too few photos of every BREEDS set")
    out.plots.append(Plot("bars", "BREEDS: unseen subclasses", {"figure": "accuracy under shift"}))
    return out


def anomaly(setting: Setting) -> Result:
    """Anomaly detection: mean cosine to the 5 nearest normal training images; AUROC, mean over classes.

    Both of gLocal's modes: one class is normal and the rest are anomalies, or the other way round. Items of the
    interval are classes.
    """
    out = Result()
    for one in _sets(setting):
        scores = {
            model: {
                "one normal class": auroc(x[one.rows], one.label, one.test, one_normal=True),
                "one anomalous class": auroc(x[one.rows], one.label, one.test, one_normal=False),
            }
            for model, x in setting.vectors(one.images).items()
        }
        if not all(len(values) for by in scores.values() for values in by.values()):
            out.notes.append(f"{one.name}: no class has normal and anomalous photos in both parts.")
            continue
        out.rows += hit_rows(scores, setting, "anomalies found", one.name, "AUROC")
    out.plots.append(Plot("bars", "Anomaly detection", {"figure": "anomalies found", "setting": "one normal class"}))
    return out


def auroc(x: Vectors, label: NDArray[Any], test: NDArray[np.bool_], *, one_normal: bool) -> Hits:
    """AUROC for each class [classes] of finding anomalies among the test images."""
    similarity = triplets.similarity_matrix(x[test], x[~test], "cosine")
    names, number = np.unique(label, return_inverse=True)
    given, tested = number[~test], number[test]
    # Without one class, the nearest are among so many of all: sorted once, not once a class.
    most = NORMAL + int(np.bincount(given).max(initial=0))
    order = np.argsort(-similarity, axis=1)[:, :most]
    near, whose = np.take_along_axis(similarity, order, 1), given[order]
    found = []
    for one in range(len(names)):
        normal = given == one if one_normal else given != one
        truth = tested != one if one_normal else tested == one
        if not normal.any() or truth.all() or not truth.any():
            continue
        k = min(NORMAL, int(normal.sum()))
        gallery = similarity[:, normal] if one_normal else np.where(whose != one, near, -np.inf)
        score = -np.partition(gallery, -k, axis=1)[:, -k:].mean(1)
        found.append(float(roc_auc_score(truth, score)))
    return np.array(found)
