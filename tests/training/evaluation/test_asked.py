"""A vision-language model's answers beside the models: the same triplets, the same photos."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract import triplets
from tests.training.evaluation.worlds import tiny_setting
from training.evaluation.asked import FIGURE, asked
from training.evaluation.concepts import concept_data, vice_triplets
from training.evaluation.result import NotHere, Setting


def answered(tmp_path: Path, right: float) -> Setting:
    """The tiny world, and a model that was asked 300 triplets and is right in that share, else names no image."""
    setting = tiny_setting(tmp_path, people=0.0, noise=1e4)
    drawn, names = vice_triplets(setting), concept_data(setting.data).photos.names
    odd = triplets.odd_probabilities(drawn.vice).argmax(1)
    folder = setting.data / "vlm/seer"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps({"model": "seer-1"}))
    lines = [
        {
            "concepts": drawn.concepts[k].tolist(),
            "photos": [names[row] for row in drawn.photos[k]],
            "answer": "...",
            "choice": int(odd[k]) if k < 300 * right else -1,
        }
        for k in range(300)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return setting


def test_a_vision_language_model_stands_beside_the_models_on_its_triplets(tmp_path: Path) -> None:
    found = asked(answered(tmp_path, 0.8))
    value = {row.model: row.estimate.value for row in found.rows if row.figure == FIGURE}
    assert value["seer-1"] == pytest.approx(0.8)
    assert value["people"] > 0.95 and value["noise"] == pytest.approx(1 / 3, abs=0.1)
    assert {row.group for row in found.rows} == {"seer-1"}


def test_triplets_of_trained_concepts_are_left_out(tmp_path: Path) -> None:
    setting = answered(tmp_path, 1.0)
    held_out = np.arange(16)
    drawn = vice_triplets(setting)
    kept = int(np.isin(drawn.concepts[:300], held_out).all(1).sum())
    found = asked(replace(setting, held_out=held_out))
    assert f"{kept} of 300 triplets" in found.notes[0] and 30 <= kept < 300


def test_answers_that_are_none_and_photos_that_are_not_there_are_named(tmp_path: Path) -> None:
    setting = answered(tmp_path, 1.0)
    file = setting.data / "vlm/seer/answers.jsonl"
    text = file.read_text()
    file.write_text(text.replace("images/", "pictures/", 1))
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 1: 'pictures/.* no photo"):
        asked(setting)
    file.write_text(text + "no json\n")
    with pytest.raises(ValueError, match=r"line 301 is no answer"):
        asked(setting)
    file.unlink()
    with pytest.raises(NotHere, match="no vlm/NAME"):
        asked(setting)
