"""The table of protocols and of suites, and the loop that runs one: what is done and unchanged is not done again."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.embed import EmbedConfig
from training.evaluation import (
    levels,
    linear_probe,
    odd_one_out,
    retrieval,
    robustness,
    rsa,
    structure,
    transfer,
    uncertainty,
)
from training.evaluation.report import Report, Section, write_report
from training.evaluation.result import Constants, NotHere, Result, Setting
from training.evaluation.subjects import Features, NoFeatures, Split, Subject, identity_hash
from training.images import SUFFIXES
from training.photos import read_photos
from training.run import split_concepts
from training.stage import write_json
from training.things import read_vice

VERSION = 1
"""Of what protocols compute; raised when a stored result would be another today."""


@dataclass(frozen=True)
class Protocol:
    """One evaluation.

    Attributes:
        title, about: for the report.
        run: does it. Raises NotHere where the data lacks what it needs.
        headline: (figure, setting) of the figures for the overview.
    """

    title: str
    about: str
    run: Callable[[Setting], Result]
    headline: tuple[tuple[str, str], ...]


PROTOCOLS: dict[str, Protocol] = {
    "choices": Protocol(
        "Human choices",
        "Share of people's odd-one-out choices that a model makes too (THINGS triplets), under every tie rule, with "
        "the leave-one-out ceiling.",
        odd_one_out.human_choices,
        (),
    ),
    "vice": Protocol(
        "Odd one out, by VICE",
        "Triplets of concepts that people were not asked about; VICE, learned from 4.7 million choices, stands in. "
        "By category: two of a category and an outsider, where VICE says that people find the outsider.",
        odd_one_out.vice_agreement,
        (("agreement with VICE", "dot, strict"), ("expected human agreement", "dot, strict")),
    ),
    "uncertainty": Protocol(
        "Uncertainty",
        "Whether a model is unsure where people disagree, and whether its probabilities are frequencies.",
        uncertainty.uncertainty,
        (
            ("entropy correlation with VICE", "dot"),
            ("KL from VICE", "dot"),
            ("Brier score", "dot"),
            ("expected calibration error", "dot"),
        ),
    ),
    "linear-probe": Protocol(
        "Linear probe",
        "What a linear map learned on choices makes of the features, on objects that it was not learned on.",
        linear_probe.linear_probe,
        (("accuracy, probed", "dot, strict"),),
    ),
    "rsa-vice": Protocol(
        "RSA with VICE",
        "Spearman between a model's and VICE's similarities of all pairs of concepts.",
        rsa.rsa_with_vice,
        (("RSA with VICE", "pearson"),),
    ),
    "rsa": Protocol(
        "RSA with people",
        "Spearman between a model's and people's similarities of all pairs of images.",
        rsa.rsa_with_people,
        (("RSA with people", "pearson"),),
    ),
    "levels": Protocol(
        "Levels",
        "Odd one out at three levels of abstraction, ceilings, and whether entropy tells response times and "
        "disagreement.",
        levels.levels,
        (("accuracy", "dot, strict, ties half"),),
    ),
    "classification": Protocol(
        "Few-shot and linear probes",
        "Accuracy of a linear readout of frozen features on 1, 10 and all photos a class, and of nearest neighbours.",
        transfer.classification,
        (
            ("accuracy", "1 shot, ridge"),
            ("accuracy", "10 shots, ridge"),
            ("accuracy", "all, ridge"),
            ("accuracy", "1-NN"),
            ("accuracy, classes not trained on", "1-NN"),
        ),
    ),
    "breeds": Protocol(
        "BREEDS",
        "A readout of superclasses, tested on subclasses that it has not seen.",
        transfer.breeds,
        (("accuracy under shift", "linear, ridge"),),
    ),
    "anomaly": Protocol(
        "Anomaly detection",
        "AUROC of the mean cosine to the five nearest normal images, mean over classes.",
        transfer.anomaly,
        (("anomalies found", "one normal class"),),
    ),
    "robustness": Protocol(
        "Robustness",
        "A readout learned on ImageNet, tested on its harder relatives.",
        robustness.robustness,
        (("robust accuracy", "linear"),),
    ),
    "retrieval": Protocol(
        "Retrieval",
        "Recall among the first 1, 5 and 10: photos of the same class, captions of images and images of captions.",
        retrieval.retrieval,
        (("image to image recall", "at 1"), ("text to image recall", "at 1"), ("image to text recall", "at 1")),
    ),
    "hierarchy": Protocol(
        "Hierarchy",
        "How far apart photos of one class, one category and none are, and how that changed.",
        structure.hierarchy_change,
        (("regression of the change", "mixed effects"),),
    ),
    "agreement": Protocol(
        "Agreement between models",
        "How often two models find the same odd one out, whoever is right.",
        structure.model_agreement,
        (),
    ),
}

SUITES: dict[str, tuple[str, ...]] = {
    "human": ("choices", "vice", "uncertainty", "rsa-vice", "rsa", "levels"),
    "transfer": ("classification", "breeds", "robustness", "anomaly", "retrieval"),
    "structure": ("hierarchy", "agreement"),
}
SUITES["all"] = tuple(PROTOCOLS)  # the linear probe is in no smaller suite: it takes minutes


def protocols_of(suite: str) -> list[str]:
    """Names of the protocols of a suite, or of several suites and protocols joined by commas; each once.

    Raises:
        ValueError: no such suite or protocol.
    """
    names: list[str] = []
    for word in suite.split(","):
        if word not in SUITES and word not in PROTOCOLS:
            raise ValueError(f"no suite {word!r}; suites: {', '.join(SUITES)}; protocols: {', '.join(PROTOCOLS)}.")
        names += SUITES.get(word, (word,))
    return list(dict.fromkeys(names))


def evaluate(
    subjects: Sequence[Subject],
    suite: str,
    data: Path,
    out: Path,
    constants: Constants | None = None,
    computing: EmbedConfig | None = None,
) -> Path:
    """Run a suite and write report.json, report.csv and report.html to `out`; returns the HTML's path.

    features/           of every model and set of images, by content and fingerprint
    protocols/*.json    results, each with what it was computed from; kept while that does not change

    Args:
        subjects: the models, reference first.
        suite: names of `protocols_of`.
        data: folder with the data of the protocols.
        out: folder to make or to continue.
        constants: of the evaluation.
        computing: how features are computed.

    Raises:
        ValueError: two models of one name, models of different splits, or no protocol that this data has all for.
    """
    names = protocols_of(suite)
    _check_subjects(subjects)
    if not data.is_dir():
        raise ValueError(f"no data folder at {data}.")
    for folder in ("features", "protocols"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    constants = constants or Constants()
    split = _common_split(subjects)
    setting = Setting(
        data=data,
        subjects=tuple(subjects),
        features=Features(out / "features", computing or EmbedConfig()),
        constants=constants,
        held_out=None if split is None else _held_out(data, split),
    )
    made_of = {
        "version": VERSION,
        "models": {subject.name: subject.identity for subject in subjects},
        "data": data_digest(data, out),
        "constants": asdict(constants),
        "split": None if split is None else asdict(split),
    }
    sections = []
    with tqdm(names, desc="evaluate", unit="protocol") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            sections.append(_one(name, setting, made_of, out / f"protocols/{name}.json"))
    if all(section.result is None for section in sections):
        why = "; ".join(f"{section.name}: {section.skipped}" for section in sections)
        raise ValueError(f"nothing in {data} to evaluate by {suite}. {why}.")
    seen = [subject.seen for subject in subjects if subject.seen]
    about = {"suite": suite, "split": "none" if split is None else f"{split.seed}, {split.held_out:g} held out"}
    report = Report(
        title="Evaluation: " + " against ".join(subject.name for subject in subjects),
        models=tuple(subject.name for subject in subjects),
        about_models={subject.name: subject.identity for subject in subjects},
        about=about | asdict(constants),
        notes=tuple(seen),
        sections=tuple(sections),
    )
    return write_report(report, out)


def _one(name: str, setting: Setting, made_of: dict[str, Any], file: Path) -> Section:
    protocol = PROTOCOLS[name]
    head = (name, protocol.title, protocol.about, protocol.headline)
    key = identity_hash(made_of)
    if file.is_file() and (stored := json.loads(file.read_text())).get("key") == key:
        return Section(*head, Result.from_json(stored))
    try:
        result = protocol.run(setting)
    except (NotHere, NoFeatures) as error:
        return Section(*head, skipped=str(error))
    write_json(file, {"key": key, "made_of": made_of} | result.to_json())
    return Section(*head, result)


def _check_subjects(subjects: Sequence[Subject]) -> None:
    names = [subject.name for subject in subjects]
    if not names:
        raise ValueError("no model given; expected at least one.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two models are called {', '.join(twice)}; give them names, as before=MODEL after=MODEL.")
    if odd := [name for name in names if " - " in name or name == "people"]:
        raise ValueError(f"a model cannot be called {odd[0]!r}: that is how differences and people are named.")


def _common_split(subjects: Sequence[Subject]) -> Split | None:
    splits = {subject.split for subject in subjects if subject.split is not None}
    if len(splits) > 1:
        named = ", ".join(f"{s.name} has {s.split.seed}" for s in subjects if s.split is not None)
        raise ValueError(f"models of different splits saw different concepts and cannot be compared: {named}.")
    return next(iter(splits), None)


def _held_out(data: Path, split: Split) -> NDArray[np.int64]:
    """Concepts of a run's split; the data folder must be that of the run."""
    photos = read_photos(data / "images.csv", len(read_vice(data / "things/vice_embedding.npy")))
    return split_concepts(photos.concepts, split.held_out, split.seed)[1]


def data_digest(data: Path, out: Path) -> str:
    """sha256 of every file's path and size, and of what is no image also its time; `out` is left out."""
    found = []
    for path, folders, files in os.walk(data, followlinks=True):
        folders[:] = sorted(name for name in folders if Path(path, name).resolve() != out.resolve())
        for name in sorted(files):
            file = Path(path, name)
            status = file.stat()
            time = 0 if name.lower().endswith(SUFFIXES) else status.st_mtime_ns
            found.append([str(file.relative_to(data)), status.st_size, time])
    return identity_hash(found)
