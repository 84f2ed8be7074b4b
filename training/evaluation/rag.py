"""Retrieval-augmented classification: the nearest labelled photos as a classifier's few examples.

Of every test photo the 3 nearest training photos by cosine are taken (Sundaram et al. 2024, section 4.4). They answer
alone, by the class that most of them have, the nearest's among equals; or they are shown with their classes to a
vision-language model behind any OpenAI-compatible endpoint, before the photo itself (`ask-nearest`). Answers are
compared with the classes' names without regard to case; one that names no class, or several, is wrong, and counted.
The paper does not print its prompt: this one is ours.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract import triplets
from training.embed import EmbedConfig
from training.evaluation import intervals
from training.evaluation.image_sets import ImageSet, image_sets
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Features, Subject, Vectors, identity_hash
from training.evaluation.transfer import hit_rows
from training.evaluation.vlm import VlmConfig, ask, picture
from training.stage import claim, write_json

EXAMPLES = 3
EXAMPLE = "This photo shows: {}."
QUESTION = "What does the next photo show? Answer with one of these names and nothing else: {}."
UNCLEAR = ""
"""Answer that names no class, or several."""


def retrieval_augmented(setting: Setting) -> Result:
    """Accuracy of the nearest labelled photos' vote on every labelled set."""
    sets = image_sets(setting.data, setting.constants.seed)
    if not sets:
        raise NotHere(f"{setting.data} has no images.csv with classes and no classification/")
    out = Result()
    for one in sets:
        scores = {}
        for name, x in setting.vectors(one.images).items():
            given = one.label[~one.test][nearest(x[one.rows], one.test)]
            scores[name] = {f"{EXAMPLES} nearest": (vote(given) == one.label[one.test]).astype(np.float64)}
        out.rows += hit_rows(scores, setting, "retrieval-augmented accuracy", one.name)
    out.plots.append(Plot("bars", "Nearest labelled photos", {"figure": "retrieval-augmented accuracy"}))
    return out


def nearest(x: Vectors, test: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions [tested, 3] among the training photos, the nearest first, by cosine.

    Raises:
        ValueError: fewer than three photos to learn from.
    """
    if (~test).sum() < EXAMPLES:
        raise ValueError(f"{int((~test).sum())} labelled photos; expected {EXAMPLES} or more to show.")
    sims = triplets.similarity_matrix(x[test], x[~test], "cosine")
    order: NDArray[np.int64] = np.argsort(-sims, axis=1, kind="stable")
    return order[:, :EXAMPLES]


def vote(classes: NDArray[Any]) -> NDArray[Any]:
    """[n] the class that most of [n, k] have; of classes that are equally frequent, the one that comes first."""
    times = (classes[:, :, None] == classes[:, None, :]).sum(2)
    out: NDArray[Any] = classes[np.arange(len(classes)), times.argmax(1)]
    return out


def ask_nearest(
    subjects: Sequence[Subject], data: Path, out: Path, config: VlmConfig, computing: EmbedConfig | None = None
) -> dict[str, Any]:
    """Show the nearest labelled photos of each model to the endpoint, ask for the class, and return accuracies.

    OUT/features/            of every model
    OUT/SET.jsonl            a line an answer: model, photo, answer; what is there is not asked again
    OUT/nearest.json         accuracy of every model, and differences to the first

    Args:
        subjects: the models that retrieve, the reference first.
        data: folder with labelled photos.
        out: folder to make or to continue.
        config: how to ask; `triplets` is the number of test photos of each set.
        computing: how features are computed.

    Raises:
        ValueError: no labelled photos, the endpoint refuses, or `out` belongs to other photos or another model.
    """
    features = Features(out / "features", computing or EmbedConfig())
    sets = image_sets(data, config.seed)
    if not sets:
        raise ValueError(f"{data} has no images.csv with classes and no classification/.")
    out.mkdir(parents=True, exist_ok=True)
    asked = {"model": config.model, "prompt": [EXAMPLE, QUESTION], "side": config.side, "seed": config.seed}
    models = {subject.name: subject.identity for subject in subjects}
    claim(out / "identity.json", asked | {"models": identity_hash(models)}, ("numpy", "pillow"))
    figures: dict[str, Any] = {}
    for one in sets:
        answers = _answers(one, subjects, features, out / f"{one.name}.jsonl", config)
        names = list(answers)
        hits = {name: np.array([hit for hit, _ in answers[name]], np.float64) for name in names}
        hits |= {f"{name} - {names[0]}": hits[name] - hits[names[0]] for name in names[1:]}
        figures[one.name] = {
            model: asdict(intervals.mean_over_items(values, config.repetitions, config.seed))
            for model, values in hits.items()
        } | {"unclear": {name: sum(unclear for _, unclear in answers[name]) for name in names}}
    write_json(out / "nearest.json", figures)
    return figures


def _answers(
    one: ImageSet, subjects: Sequence[Subject], features: Features, file: Path, config: VlmConfig
) -> dict[str, list[tuple[bool, bool]]]:
    """(right, unclear) of every model and photo; every answer is on disk before the next is asked."""
    learn, tested = one.rows[~one.test], one.rows[one.test]
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(tested))[: config.triplets])
    classes = sorted(set(one.label.tolist()))
    question = QUESTION.format(", ".join(classes))
    known = _stored(file)
    out: dict[str, list[tuple[bool, bool]]] = {subject.name: [] for subject in subjects}
    with (
        file.open("a") as stream,
        tqdm(total=len(subjects) * len(chosen), desc=f"ask {config.model}", unit="photo") as bar,
    ):
        for subject in subjects:
            near = nearest(features.of(subject, one.images)[one.rows], one.test)
            for k in chosen.tolist():
                photo = one.images.names[tested[k]]
                answer = known.get((subject.name, photo))
                if answer is None:
                    parts = []
                    for i in near[k].tolist():
                        parts += [EXAMPLE.format(one.label[~one.test][i])]
                        parts += [picture(one.images, int(learn[i]), config.side)]
                    answer = ask([*parts, question, picture(one.images, int(tested[k]), config.side)], config)
                    stream.write(json.dumps({"model": subject.name, "photo": photo, "answer": answer}) + "\n")
                    stream.flush()
                said = class_of(answer, classes)
                out[subject.name].append((said == one.label[one.test][k], said == UNCLEAR))
                bar.update()
    return out


def class_of(answer: str, classes: Sequence[str]) -> str:
    """The class that an answer names, or `UNCLEAR`; a name within a longer name that is there too does not count."""
    text = answer.lower()
    named = [name for name in classes if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", text)]
    longest = [name for name in named if not any(name != other and name.lower() in other.lower() for other in named)]
    return longest[0] if len(longest) == 1 else UNCLEAR


def _stored(file: Path) -> dict[tuple[str, str], str]:
    """Answers on disk; a last line that a kill cut short is removed."""
    if not file.exists():
        return {}
    complete, _, rest = file.read_text().rpartition("\n")
    if rest:
        file.write_text(complete + "\n" * bool(complete))
    lines = [json.loads(line) for line in complete.splitlines()]
    return {(line["model"], line["photo"]): line["answer"] for line in lines}
