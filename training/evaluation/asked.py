"""A vision-language model beside the models: answers that `ask-vlm` wrote, under DATA/vlm/NAME/.

Every model judges the triplets, by the same photos, that the answers are about; those of concepts that a model's
split was trained on are left out. An answer that names no image counts as wrong.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from training.evaluation.concepts import ConceptTriplets, concept_data, judged_concepts, similarities
from training.evaluation.intervals import over_concepts, weighted_mean
from training.evaluation.odd_one_out import HEADLINE, MIN_TRIPLETS, score_rows, vice_scores
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.run import Data

FIGURE = "agreement with VICE, triplets asked"


def asked(setting: Setting) -> Result:
    """Agreement with VICE of every vision-language model, and of every model on the same triplets."""
    files = sorted((setting.data / "vlm").glob("*/answers.jsonl"))
    if not files:
        raise NotHere(f"{setting.data} has no vlm/NAME/answers.jsonl, as `ask-vlm` writes them")
    data, out = concept_data(setting.data), Result()
    judged, vectors = judged_concepts(setting), setting.vectors(data.photos)
    for file in files:
        name = json.loads((file.parent / "identity.json").read_text())["model"]
        every, choice = read_answers(file, data)
        kept: NDArray[np.bool_] = np.asarray(np.isin(every.concepts, judged).all(1))
        out.notes.append(f"{name}: {int(kept.sum())} of {len(kept)} triplets are of concepts that may be judged.")
        if kept.sum() < MIN_TRIPLETS:
            continue
        drawn, p = every.select(kept), triplets.odd_probabilities(every.vice[kept])
        scores = {}
        for model, x in vectors.items():
            found = vice_scores(triplets.odd_one_out(similarities(x, drawn.photos, "dot")), p)
            scores[model] = {FIGURE: found["agreement with VICE"]}
        out.rows += score_rows(scores, drawn.concepts, setting, HEADLINE, name)
        own = vice_scores(choice[kept], p)["agreement with VICE"]
        c = setting.constants
        estimate = over_concepts(drawn.concepts, [weighted_mean(own)], c.repetitions, c.seed)[0]
        out.rows.append(Row(FIGURE, name, estimate, name, HEADLINE))
    if not out.rows:
        raise NotHere(f"fewer than {MIN_TRIPLETS} triplets asked may be judged. {' '.join(out.notes)}")
    out.plots.append(Plot("bars", "Beside a vision-language model", {"figure": FIGURE}))
    return out


def read_answers(file: Path, data: Data) -> tuple[ConceptTriplets, NDArray[np.int64]]:
    """(triplets, position of the image chosen or -1 [t]) of an answers.jsonl.

    Raises:
        ValueError: a line that is no answer, or a photo that the data folder lacks; it is named.
    """
    row_of = {name: i for i, name in enumerate(data.photos.names)}
    concepts, photos, choices = [], [], []
    for number, line in enumerate(file.read_text().splitlines()):
        try:
            answer = json.loads(line)
            rows = [row_of[name] for name in answer["photos"]]
            concepts.append([int(c) for c in answer["concepts"]])
            choices.append(int(answer["choice"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, line {number + 1} is no answer of `ask-vlm`: {error}.") from error
        except KeyError as error:
            raise ValueError(f"{file}, line {number + 1}: {error} is no field or no photo of this data.") from error
        photos.append(rows)
    found = np.array(concepts, np.int64).reshape(-1, 3)
    drawn = ConceptTriplets(
        found, np.array(photos, np.int64).reshape(-1, 3), triplets.pair_similarities(data.vice[found])
    )
    return drawn, np.array(choices, np.int64)
