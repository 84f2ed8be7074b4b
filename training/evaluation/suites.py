"""The table of protocols and of suites, and the loop that runs one: what is done and unchanged is not done again."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract.files import sha256_of
from training.embed import EmbedConfig
from training.evaluation import (
    asked,
    dense,
    layers,
    levels,
    linear_probe,
    odd_one_out,
    perceptual,
    rag,
    retrieval,
    robustness,
    rsa,
    structure,
    tip_adapter,
    transfer,
    uncertainty,
)
from training.evaluation.concepts import concept_data
from training.evaluation.hierarchies import WORDNET
from training.evaluation.pooling import pool
from training.evaluation.report import Report, Section, write_report
from training.evaluation.result import Constants, NotHere, Result, Setting
from training.evaluation.stored_report import EVERY
from training.evaluation.subjects import Features, NoFeatures, Split, Subject, identity_hash
from training.images import SUFFIXES
from training.run import split_concepts
from training.stage import write_json

VERSION = 4
"""Of what protocols compute; raised when a stored result would be another today."""


@dataclass(frozen=True)
class Protocol:
    """One evaluation.

    Attributes:
        title, about: for the report.
        run: does it. Raises NotHere where the data lacks what it needs.
        headline: (figure, setting) of the figures for the overview.
        of_every_split: False where there are no figures to pool, and one split's pictures say what there is to say.
        held_out: figures that speak of new concepts only by a model that was not trained on them; `EVERY` for all.
    """

    title: str
    about: str
    run: Callable[[Setting], Result]
    headline: tuple[tuple[str, str], ...]
    of_every_split: bool = True
    held_out: tuple[str, ...] = ()


PROTOCOLS: dict[str, Protocol] = {
    "choices": Protocol(
        "Human choices",
        "Share of people's odd-one-out choices that a model makes too (THINGS triplets), under every tie rule, with "
        "the leave-one-out ceiling.",
        odd_one_out.human_choices,
        (),
        held_out=(EVERY,),
    ),
    "vice": Protocol(
        "Odd one out, by VICE",
        "Triplets of concepts that people were not asked about; VICE, learned from 4.7 million choices, stands in. "
        "By category: two of a category and an outsider, where VICE says that people find the outsider.",
        odd_one_out.vice_agreement,
        (("agreement with VICE", "dot, strict"), ("expected human agreement", "dot, strict")),
        held_out=(EVERY,),
    ),
    "vlm": Protocol(
        "Beside a vision-language model",
        "The triplets that a vision-language model was asked about, judged by every model.",
        asked.asked,
        ((asked.FIGURE, odd_one_out.HEADLINE),),
        held_out=(EVERY,),
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
        held_out=(EVERY,),
    ),
    "linear-probe": Protocol(
        "Linear probe",
        "What a linear map learned on choices makes of the features, on objects that it was not learned on.",
        linear_probe.linear_probe,
        tuple((one, odd_one_out.HEADLINE) for one in (linear_probe.BEFORE, linear_probe.AFTER, linear_probe.GAIN)),
        held_out=(EVERY,),
    ),
    "rsa-vice": Protocol(
        "RSA with VICE",
        "Spearman between a model's and VICE's similarities of all pairs of concepts.",
        rsa.rsa_with_vice,
        (("RSA with VICE", "pearson"),),
        held_out=(EVERY,),
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
            (transfer.UNTRAINED, "1-NN"),
        ),
        held_out=(transfer.UNTRAINED,),
    ),
    "tip-adapter": Protocol(
        "Tip-Adapter",
        "Few shots added to a model of images and text, without training and with the cache fine-tuned.",
        tip_adapter.tip_adapter,
        (("accuracy with text", "zero-shot"), ("accuracy with text", "10 shots, training-free")),
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
    "two-alternative": Protocol(
        "Two-alternative judgments",
        "Which of two images looks more like a third: share of judgments that a model makes too, distance 1 - cosine.",
        perceptual.two_alternative,
        (("two-alternative accuracy", "all"),),
    ),
    "instances": Protocol(
        "Instance retrieval",
        "Share of queries with a photo of the same item among the first 1, 3 and 5 of the gallery.",
        perceptual.instances,
        (("instance retrieval", "top 1"), ("instance retrieval", "top 5")),
    ),
    "counting": Protocol(
        "Counting",
        "Number of objects by nearest neighbours, k chosen on the training images.",
        perceptual.counting,
        (("MAE of counts", "nearest neighbours"), ("RMSE of counts", "nearest neighbours")),
    ),
    "segmentation": Protocol(
        "Segmentation",
        "A linear head on frozen patch tokens; Jaccard index, mean over images.",
        dense.segmentation,
        (("Jaccard index", "linear head"),),
    ),
    "depth": Protocol(
        "Depth",
        "A linear head on frozen patch tokens; root mean squared error, mean over images.",
        dense.depth,
        (("RMSE of depth", "linear head"),),
    ),
    "nearest-examples": Protocol(
        "Retrieval-augmented classification",
        "The class that most of a photo's three nearest labelled photos have.",
        rag.retrieval_augmented,
        (("retrieval-augmented accuracy", "3 nearest"),),
    ),
    "hierarchy": Protocol(
        "Hierarchy",
        "How far apart photos of one class, one category and none are, and how that changed.",
        structure.hierarchy_change,
        (("regression of the change", "mixed effects"),),
        held_out=(EVERY,),
    ),
    "layers": Protocol(
        "Layer by layer",
        "How far each block of a network tells categories apart, by the mean of its spatial tokens.",
        layers.layers,
        (),
        held_out=(EVERY,),
    ),
    "maps": Protocol(
        "Maps",
        "Photos in the plane, one colour a category.",
        structure.map_photos,
        (),
        of_every_split=False,
    ),
    "agreement": Protocol(
        "Agreement between models",
        "How often two models find the same odd one out, whoever is right.",
        structure.model_agreement,
        (),
    ),
}

SUITES: dict[str, tuple[str, ...]] = {
    "human": ("choices", "vice", "vlm", "uncertainty", "rsa-vice", "rsa", "levels"),
    "transfer": ("classification", "tip-adapter", "breeds", "robustness", "anomaly", "retrieval"),
    "perceptual": ("two-alternative", "instances", "counting", "segmentation", "depth", "nearest-examples"),
    "structure": ("hierarchy", "layers", "maps", "agreement"),
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
    *,
    differences: Sequence[tuple[str, str]] | None = None,
    wordnet: Path | None = None,
    command: str = "",
) -> Report:
    """Run a suite, write report.json, report.csv and report.html to `out`, and return what they say.

    features/           of every model and set of images, by content and fingerprint
    protocols/*.json    results, each with what it was computed from; kept while that does not change

    Args:
        subjects: the models, reference first.
        suite: names of `protocols_of`.
        data: folder with the data of the protocols.
        out: folder to make or to continue.
        constants: of the evaluation.
        computing: how features are computed.
        differences: (other, reference) by name for every difference to report; None for all others to the first.
        wordnet: folder with WordNet's data.noun and cntlist.rev, for the hierarchy; None for that of `data`.
        command: that asks for this, for the reader of the report.

    Raises:
        ValueError: two models of one name, models of different splits, a difference of models that are not there, or
            no protocol that this data has all for.
    """
    names = protocols_of(suite)
    _check_subjects(subjects)
    if not data.is_dir():
        raise ValueError(f"no data folder at {data}.")
    for folder in ("features", "protocols"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    constants = constants or Constants()
    pairs = _checked_differences(differences, subjects)
    features = Features(out / "features", computing or EmbedConfig())
    seeds = _common_seeds(subjects)
    parts = _by_split(subjects, seeds)
    splits = [split for _, split in parts]
    settings = [
        Setting(
            data=data,
            subjects=tuple(own),
            features=features,
            constants=constants,
            held_out=None if split is None else _held_out(data, split),
            differences=pairs,
            wordnet=wordnet,
        )
        for own, split in parts
    ]
    made_of = _made_of(settings, splits, out)
    sections = []
    with tqdm(names, desc="evaluate", unit="protocol") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            section = _one(name, settings, seeds, made_of, out / f"protocols/{name}.json")
            sections.append(_marked(section, PROTOCOLS[name], settings))
    if all(section.result is None for section in sections):
        why = "; ".join(f"{section.name}: {section.skipped}" for section in sections)
        raise ValueError(f"nothing in {data} to evaluate by {suite}. {why}.")
    report = Report(
        title="Evaluation: " + " against ".join(subject.name for subject in subjects),
        models=tuple(subject.name for subject in subjects),
        about_models={subject.name: subject.identity for subject in subjects},
        about={"suite": suite, "splits": _said(subjects, seeds)} | asdict(constants),
        notes=tuple(dict.fromkeys(one.seen for setting in settings for one in setting.subjects if one.seen)),
        sections=tuple(sections),
        command=command,
        splits=_described(settings, splits),
    )
    write_report(report, out)
    return report


def _made_of(settings: Sequence[Setting], splits: Sequence[Split | None], out: Path) -> dict[str, Any]:
    """All that a stored result depends on."""
    one = settings[0]
    return {
        "version": VERSION,
        "models": [{subject.name: subject.identity for subject in setting.subjects} for setting in settings],
        "data": data_digest(one.data, out),
        "constants": asdict(one.constants),
        "splits": [None if split is None else asdict(split) for split in splits],
        "differences": one.differences and [list(pair) for pair in one.differences],
        "wordnet": None if one.wordnet is None else {name: sha256_of(one.wordnet / name) for name in WORDNET},
    }


def _said(subjects: Sequence[Subject], seeds: Sequence[int]) -> str:
    split = next((own[1] for own in _by_split(subjects, seeds)), None)
    if split is None:
        return "none"
    return f"{', '.join(str(seed) for seed in seeds) or split.seed}, {split.held_out:g} held out of each"


def _described(settings: Sequence[Setting], splits: Sequence[Split | None]) -> tuple[dict[str, Any], ...]:
    """Of every split its number, the share that it held out, and which concepts those are."""
    return tuple(
        {
            "split": split.seed,
            "held_out": split.held_out,
            "concepts": [] if setting.held_out is None else setting.held_out.tolist(),
            "of": len(concept_data(setting.data).photos.concepts),
        }
        for setting, split in zip(settings, splits, strict=True)
        if split is not None
    )


def _marked(section: Section, protocol: Protocol, settings: Sequence[Setting]) -> Section:
    """The section with every figure marked that a model's training has spoilt. Nothing of it is stored."""
    tainted = {one.name for setting in settings for one in setting.subjects if one.seen}
    if section.result is None or not tainted or not protocol.held_out or not _has_concepts(settings[0].data):
        return section
    rows = [
        replace(row, seen=bool(tainted & set(row.model.split(" - "))))
        if EVERY in protocol.held_out or row.figure in protocol.held_out
        else row
        for row in section.result.rows
    ]
    return replace(section, result=replace(section.result, rows=rows))


def _has_concepts(data: Path) -> bool:
    try:
        return bool(len(concept_data(data).photos.concepts))
    except NotHere:
        return False


def _one(name: str, settings: Sequence[Setting], seeds: Sequence[int], made_of: dict[str, Any], file: Path) -> Section:
    protocol = PROTOCOLS[name]
    head = (name, protocol.title, protocol.about, protocol.headline)
    key = identity_hash(made_of)
    if file.is_file() and (stored := json.loads(file.read_text())).get("key") == key:
        return Section(*head, Result.from_json(stored), held_out=protocol.held_out)
    try:
        results = [protocol.run(setting) for setting in settings[: None if protocol.of_every_split else 1]]
    except (NotHere, NoFeatures) as error:
        return Section(*head, skipped=str(error))
    c = settings[0].constants
    result = results[0] if len(settings) == 1 else pool(results, seeds[: len(results)], c.repetitions, c.seed)
    write_json(file, {"key": key, "made_of": made_of} | result.to_json())
    return Section(*head, result, held_out=protocol.held_out)


def _check_subjects(subjects: Sequence[Subject]) -> None:
    names = [subject.name for subject in subjects]
    if not names:
        raise ValueError("no model given; expected at least one.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two models are called {', '.join(twice)}; give them names, as before=MODEL after=MODEL.")
    if odd := [name for name in names if " - " in name or name == "people"]:
        raise ValueError(f"a model cannot be called {odd[0]!r}: that is how differences and people are named.")


def _checked_differences(
    differences: Sequence[tuple[str, str]] | None, subjects: Sequence[Subject]
) -> tuple[tuple[str, str], ...] | None:
    """Raises ValueError naming what is no model of the report."""
    if differences is None:
        return None
    names = [subject.name for subject in subjects]
    for pair in differences:
        if unknown := [name for name in pair if name not in names]:
            raise ValueError(f"no model is called {unknown[0]!r}; models are {', '.join(names)}.")
    return tuple((a, b) for a, b in differences)


def _common_seeds(subjects: Sequence[Subject]) -> list[int]:
    """Splits that all models of several splits have; empty where no model has several.

    Raises:
        ValueError: none in common, or a model of a single split stands beside them.
    """
    several = [subject for subject in subjects if subject.splits]
    if not several:
        return []
    if single := [subject.name for subject in subjects if subject.split is not None]:
        raise ValueError(f"{single[0]} is of one split and {several[0].name} of all; give all of both, as RUN@all.")
    have = {s.name: [one.split.seed for one in s.splits if one.split is not None] for s in several}
    common = sorted(set.intersection(*map(set, have.values())))
    if not common:
        raise ValueError(f"the models have no split in common: {have}.")
    return common


def _by_split(subjects: Sequence[Subject], seeds: Sequence[int]) -> list[tuple[list[Subject], Split | None]]:
    """(models, their split) for each split to judge; one, perhaps of no split, where no model has several."""
    out = []
    for own in [[one.of_split(seed) for one in subjects] for seed in seeds] or [list(subjects)]:
        splits = {subject.split for subject in own if subject.split is not None}
        if len(splits) > 1:
            named = ", ".join(f"{s.name} has {s.split.seed}" for s in own if s.split is not None)
            raise ValueError(f"models of different splits saw different concepts and cannot be compared: {named}.")
        out.append((own, next(iter(splits), None)))
    return out


def _held_out(data: Path, split: Split) -> NDArray[np.int64]:
    """Concepts of a run's split; the data folder must be that of the run."""
    return split_concepts(concept_data(data).photos.concepts, split.held_out, split.seed)[1]


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
