"""Levels: a release with the real one's quirks, read as documented, and models scored as worked by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.evaluation.levels import level_of, levels, read_levels, vote_scores
from training.evaluation.result import Constants, NotHere, Setting
from training.evaluation.subjects import Features, Subject

COARSE = ("n01_1.JPEG", "n02_1.JPEG", "n03_1.JPEG")
FINE = ("n01_1.JPEG", "n01_2.JPEG", "n01_3.JPEG")
BOUNDARY = ("n01_1.JPEG", "n01_2.JPEG", "n02_1.JPEG")


def trial(names: Sequence[str], odd: int | None, rt: float = 2000.0, **other: Any) -> dict[str, Any]:
    """A trial as the release writes it: paths, another order of images, a type that is not to be trusted."""
    shown = {f"image{k + 1}Path": f"stimuli/{names[(k + 1) % 3]}" for k in range(3)}
    selected = "No image selected" if odd is None else f"stimuli/{names[odd]}"
    return {"exp_trial_type": "exp_trial", "rt": rt, "selected_image": selected, "triplet_class": "?", **shown, **other}


def catch(right: bool) -> dict[str, Any]:
    return {"exp_trial_type": "catch_trial", "catch_trial_correct": right}


def write(folder: Path, participants: Sequence[Sequence[dict[str, Any]]]) -> Path:
    (folder / "responses").mkdir(parents=True)
    for i, trials in enumerate(participants):
        lines = [{"exp_trial_type": "training_trial"}, *trials, {"exp_trial_type": "break"}]
        (folder / f"responses/participant_{i}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "responses"


def test_levels_are_told_by_the_synsets() -> None:
    assert [level_of(names) for names in (COARSE, FINE, BOUNDARY)] == ["coarse", "fine", "boundary"]


def test_responses_are_gathered_by_triplet_whatever_the_order_shown(tmp_path: Path) -> None:
    release = read_levels(
        write(tmp_path, [[trial(COARSE, k, rt)] for k, rt in ((2, 1e3), (2, 2e3), (0, 4e3), (2, 2e4))])
    )
    assert release.names == (COARSE,)
    assert release.counts.tolist() == release.votes.tolist() == [[1, 0, 3]]
    assert release.log_time[0] == pytest.approx(np.log([1, 2, 4, 20]).mean())
    assert release.log_time_10s[0] == pytest.approx(np.log([1, 2, 4]).mean())  # the slow one is left out


def test_too_few_responses_are_dropped_and_too_many_are_drawn_from(tmp_path: Path) -> None:
    people = [[trial(COARSE, 0), *([trial(FINE, 1)] if i < 3 else [])] for i in range(9)]
    release = read_levels(write(tmp_path, people))
    assert release.counts.tolist() == [[5, 0, 0]]
    assert release.votes.tolist() == [[4, 0, 0]]
    assert release.dropped == {"triplets with fewer than 4 responses": 1}
    assert release.trials == {"coarse": 9, "fine": 3, "boundary": 0}


def test_careless_participants_and_empty_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [trial(COARSE, 1), trial(FINE, None), catch(True)]
    failing = [trial(COARSE, 0), catch(True), catch(False)]
    silent = [trial(COARSE, 0), *[trial(FINE, None)] * 11]
    release = read_levels(write(tmp_path, [good] * 4 + [failing, silent]))
    assert release.counts.tolist() == [[0, 4, 0]]
    assert release.dropped["participants with too many unanswered or wrong catch trials"] == 2
    assert release.dropped["trials without an answer"] == 4


def test_two_participants_in_one_file_may_leave_twice_as_many_unanswered(tmp_path: Path) -> None:
    both = [trial(COARSE, 1)] * 640 + [trial(FINE, None)] * 20
    assert len(read_levels(write(tmp_path, [both])).names) == 1


def test_a_selected_image_that_was_not_shown_is_left_out(tmp_path: Path) -> None:
    stray = trial(COARSE, 0, selected_image="stimuli/n09_9.JPEG")
    release = read_levels(write(tmp_path, [[trial(COARSE, 0)]] * 4 + [[stray]]))
    assert release.dropped == {"trials that select no image of three different ones": 1}


@pytest.mark.parametrize(
    ("line", "said"), [("{", "line 1 is no JSON"), ('{"exp_trial_type": "exp_trial"}', "line 1 has no rt, image1Path")]
)
def test_lines_that_are_no_trials_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "p.json").write_text(line)
    with pytest.raises(ValueError, match=said):
        read_levels(tmp_path)


def test_no_release_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="no responses"):
        read_levels(tmp_path)


def test_a_tied_majority_is_worth_a_half_and_a_tied_model_nothing() -> None:
    votes = np.array([[2, 2, 0], [0, 2, 2], [4, 0, 0], [4, 0, 0]])
    first_is_odd, tie = [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]
    sims = np.array([first_is_odd, first_is_odd, first_is_odd, tie])
    assert vote_scores(sims, votes).tolist() == [0.5, 0, 1, 0]


def test_the_protocol_scores_models_on_photos(tmp_path: Path) -> None:
    names = sorted({*COARSE, *FINE, *BOUNDARY})
    for name in names:
        (tmp_path / "levels/images" / name.partition("_")[0]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "levels/images" / name.partition("_")[0] / name, "PNG")
    # People leave the last of the sorted names out; sure and fast at the boundary, slow and unsure elsewhere.
    people = [[trial(COARSE, 2 if i else 0, 9e3), trial(FINE, 2, 4e3), trial(BOUNDARY, 2, 1e3)] for i in range(4)]
    write(tmp_path / "levels", people)
    vector = dict.fromkeys(names, (1.0, 0.2)) | {
        "n02_1.JPEG": (0.3, 1.0),
        "n03_1.JPEG": (-1.0, 0.0),
        FINE[2]: (0.5, 0.1),
    }
    np.save(tmp_path / "x.npy", np.array([vector[name] for name in names], np.float32))
    subject = Subject("model", {}, stored=(tmp_path / "x.npy", None))
    result = levels(Setting(tmp_path, (subject,), Features(tmp_path / "f"), Constants(repetitions=5)))
    value = {(r.figure, r.group, r.model): r.estimate.value for r in result.rows if "cosine" not in r.setting}
    assert [value["accuracy", level, "model"] for level in ("coarse", "fine", "boundary")] == [1, 1, 1]
    assert value["noise ceiling", "fine", "people"] == 1
    assert value["disagreement with log time", "", "people"] > 0.8


def test_entropies_are_compared_on_the_same_triplets_and_check_values_where_they_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{k:02}_{i}.JPEG" for k in range(5) for i in range(3)]
    for name in names:
        (tmp_path / "levels/images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "levels/images" / name, "PNG")
    fine = [tuple(names[3 * k : 3 * k + 3]) for k in range(5)]  # of the k-th, k of four people disagree
    people = [[trial(one, 0 if i < min(k, 2) else 2, 1e3 * (k + 1)) for k, one in enumerate(fine)] for i in range(4)]
    write(tmp_path / "levels", people)
    subjects = []
    for seed, model in enumerate(("a", "b")):
        np.save(tmp_path / f"{model}.npy", np.random.default_rng(seed).normal(size=(15, 4)).astype(np.float32))
        subjects.append(Subject(model, {"x": model}, stored=(tmp_path / f"{model}.npy", None)))
    setting = Setting(tmp_path, tuple(subjects), Features(tmp_path / "f"), Constants(repetitions=5))
    result = levels(setting)
    assert any("not the published release, whose trials are coarse 61727" in note for note in result.notes)
    monkeypatch.setattr("training.evaluation.levels.TRIALS", {"coarse": 0, "fine": 20, "boundary": 0})
    ceiling = next(r.estimate.value for r in result.rows if (r.figure, r.group) == ("noise ceiling", ""))
    assert f"noise ceiling {ceiling:.4f} (published 0.6896)" in levels(setting).notes[-1]
    found = result.rows
    for figure in ("entropy with log time", "entropy with disagreement"):
        value = {row.model: row.estimate.value for row in found if (row.figure, row.group) == (figure, "fine")}
        assert value["b - a"] == pytest.approx(value["b"] - value["a"]) and value["b - a"] != 0
