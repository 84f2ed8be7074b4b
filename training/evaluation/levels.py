"""Levels: odd-one-out choices at three levels of abstraction, with response times (Muttenthaler et al. 2025).

DATA/levels/responses/ holds the release: a file a participant, JSON lines, a trial a line. DATA/levels/images/ holds
the ImageNet photos, found by file name wherever they lie under it. What the release leaves to its reader is done so:

- Kept are trials with `exp_trial_type` "exp_trial" and a selected image, of participants with at most 10 unanswered
  trials in 330 and at least 90 % of catch trials right (the release has this done already; some files hold two
  participants' 660 trials).
- A triplet is its three file names, sorted. Its level is derived from the number of different synsets in the names:
  1 fine (within class), 2 boundary, 3 coarse (between classes); the column of the release is not used.
- Triplets with fewer than 4 responses are dropped; of more than 5, 5 are drawn.
- The majority is that of 4 responses drawn at random. Where two images tie, the triplet either counts a half for each
  ("ties half") or is left out ("ties out"); both are reported. The release's own code may move the wrong image there.
- Disagreement is the entropy of those 4. Response times are the mean of log seconds over a triplet's responses, of
  all, as in the release's notebook, and of those up to 10 s, as the paper says.
- A model's entropy needs a temperature, which the paper does not give: here it is fitted on the responses, by dot
  product, one for all levels, and reported.

Where the trials are as many as the release has, its own check values (`PUBLISHED`) are set beside what is found.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract import triplets
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import similarities, temperature_on
from training.evaluation.odd_one_out import JUDGED_BY, noise_ceiling
from training.evaluation.result import PEOPLE, NotHere, Plot, Result, Row, Setting
from training.images import FileImages, read_folder

LEVELS = {1: "fine", 2: "boundary", 3: "coarse"}
"""Level by the number of different synsets of a triplet."""
ORDER = ("coarse", "fine", "boundary")
FEWEST, MOST, VOTES = 4, 5, 4
TRIALS = {"coarse": 61_727, "fine": 62_549, "boundary": 30_826}
PUBLISHED = {
    ("disagreement with log time", "coarse"): 0.325,
    ("disagreement with log time", "fine"): 0.364,
    ("disagreement with log time", "boundary"): 0.443,
    ("noise ceiling", ""): 0.6896,
    ("mean largest share", ""): 0.7893,
}
"""Check values of the release, by figure and level, which do not depend on any model."""
SLOW = 10_000.0
"""Milliseconds above which the paper leaves a response time out."""
UNANSWERED, CATCH = 10 / 330, 0.9


@dataclass(frozen=True)
class Levels:
    """The release, one entry a triplet.

    Attributes:
        names: [t][3] file names, ascending in each.
        level: [t] coarse, fine or boundary.
        counts: [t, 3] of the responses kept, 4 or 5 each.
        votes: [t, 3] of the 4 that make the majority.
        log_time, log_time_10s: [t] mean log seconds; the second NaN where no response was that fast.
        trials: of each level, before triplets are dropped.
        dropped: what was left out, and how often.
    """

    names: tuple[tuple[str, str, str], ...]
    level: NDArray[np.str_]
    counts: NDArray[np.int64]
    votes: NDArray[np.int64]
    log_time: NDArray[np.float64]
    log_time_10s: NDArray[np.float64]
    trials: dict[str, int]
    dropped: dict[str, int]


Responses = dict[tuple[str, str, str], list[tuple[int, float]]]


def read_levels(folder: Path, *, seed: int = 42) -> Levels:
    """The responses under a folder, as the module docstring says.

    Args:
        folder: with one file a participant, at any depth.
        seed: of the responses that are drawn.

    Raises:
        NotHere: no such folder, or no file in it.
        ValueError: a line that is no JSON object or lacks a field (named), or no triplet with enough responses.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", ".txt"))
    if not files:
        raise NotHere(f"{folder} has no responses (.json, .jsonl or .txt, one a participant)")
    dropped: Counter[str] = Counter()
    responses: Responses = defaultdict(list)
    for file in tqdm(files, desc="levels", unit="participant"):
        _read_participant(file, responses, dropped)
    trials = Counter(dict.fromkeys(ORDER, 0))
    for names, given in responses.items():
        trials[level_of(names)] += len(given)
    return _gather(responses, trials, dropped, np.random.default_rng(seed))


def level_of(names: tuple[str, str, str]) -> str:
    """Level of a triplet, from the synsets that its file names begin with."""
    return LEVELS[len({name.partition("_")[0] for name in names})]


def _read_participant(file: Path, responses: Responses, dropped: Counter[str]) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    trials = [_trial(file, number, line) for number, line in enumerate(lines)]
    asked = [trial for trial in trials if trial["exp_trial_type"] == "exp_trial"]
    caught = [bool(t["catch_trial_correct"]) for t in trials if t["exp_trial_type"] == "catch_trial"]
    unanswered = sum(not _answered(trial) for trial in asked)
    if unanswered > UNANSWERED * max(330, len(asked)) or (caught and np.mean(caught) < CATCH):
        dropped["participants with too many unanswered or wrong catch trials"] += 1
        return
    dropped["trials without an answer"] += unanswered
    for trial in asked:
        if not _answered(trial):
            continue
        shown = [PurePosixPath(str(trial[f"image{k}Path"])).name for k in (1, 2, 3)]
        selected = PurePosixPath(trial["selected_image"]).name
        first, second, third = sorted(shown)
        if selected not in shown or len(set(shown)) < 3:
            dropped["trials that select no image of three different ones"] += 1
            continue
        names = (first, second, third)
        responses[names].append((names.index(selected), float(trial["rt"] or np.nan)))


def _trial(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        trial = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {number + 1} is no JSON: {error}") from error
    kind = trial.get("exp_trial_type") if isinstance(trial, dict) else None
    needed: dict[str, tuple[str, ...]] = {
        "exp_trial": ("rt", "image1Path", "image2Path", "image3Path", "selected_image"),
        "catch_trial": ("catch_trial_correct",),
    }
    if kind is None or (absent := [name for name in needed.get(kind, ()) if name not in trial]):
        what = "exp_trial_type" if kind is None else ", ".join(absent)
        raise ValueError(f"{file}, line {number + 1} has no {what}; expected a trial of the Levels release.")
    return dict(trial)


def _answered(trial: dict[str, Any]) -> bool:
    selected = trial["selected_image"]
    return isinstance(selected, str) and selected != "No image selected"


def _gather(responses: Responses, trials: Counter[str], dropped: Counter[str], rng: np.random.Generator) -> Levels:
    names, counts, votes, times = [], [], [], []
    for key in sorted(responses):
        given = responses[key]
        if len(given) < FEWEST:
            dropped[f"triplets with fewer than {FEWEST} responses"] += 1
            continue
        if len(given) > MOST:
            given = [given[i] for i in rng.choice(len(given), MOST, replace=False)]
        chosen = np.array([choice for choice, _ in given])
        names.append(key)
        counts.append(np.bincount(chosen, minlength=3))
        votes.append(np.bincount(rng.choice(chosen, VOTES, replace=False), minlength=3))
        milliseconds = np.array([time for _, time in given])
        times.append([_mean_log(milliseconds), _mean_log(milliseconds[milliseconds <= SLOW])])
    if not names:
        raise ValueError(f"no triplet has {FEWEST} responses or more; {len(responses)} triplets were read.")
    both = np.array(times)
    return Levels(
        names=tuple(names),
        level=np.array([level_of(key) for key in names]),
        counts=np.array(counts),
        votes=np.array(votes),
        log_time=both[:, 0],
        log_time_10s=both[:, 1],
        trials=dict(trials),
        dropped={what: n for what, n in dropped.items() if n},
    )


def _mean_log(milliseconds: NDArray[np.float64]) -> float:
    """Mean log seconds of those above 0; NaN where there are none."""
    positive = milliseconds[milliseconds > 0]
    return float(np.log(positive / 1000).mean()) if len(positive) else float("nan")


# --- the protocol ---------------------------------------------------------------------------------


def levels(setting: Setting) -> Result:
    """Accuracy, ceilings, and what model entropy says of disagreement and response time, at each level."""
    release = read_levels(setting.data / "levels/responses")
    images, rows, covered = _photos(setting.data / "levels/images", release)
    out = Result(rows=_people(release, setting), notes=_notes(release, covered))
    out.notes.append(_checked(release.trials, out.rows))
    vectors = setting.vectors(images)
    judged = {(m, k): similarities(x, rows, k) for m, x in vectors.items() for k in JUDGED_BY}
    level, votes, counts = release.level[covered], release.votes[covered], release.counts[covered]
    for kernel in JUDGED_BY:
        scores = {m: vote_scores(judged[m, kernel], votes) for m in vectors}
        out.rows += _accuracy_rows(scores, votes, level, setting, f"{kernel}, strict")
    entropies = {}
    share = counts / counts.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_p = np.log(share[:, ::-1])  # images 0, 1, 2 to pairs 01, 02, 12
    for model in vectors:
        t = temperature_on(judged[model, "dot"], log_p, model)
        out.rows.append(Row("temperature", model, Estimate(t, t, t, len(counts)), setting="dot", unit="similarity"))
        entropies[model] = triplets.entropy(triplets.pair_probabilities(judged[model, "dot"], t))
    for figure, target in _targets(release, covered).items():
        out.rows += _correlation_rows(entropies, target, level, setting, figure)
    out.plots += [
        Plot(
            "bars",
            "Levels: accuracy",
            {"figure": "accuracy", "setting": "dot, strict, ties half", "people": "noise ceiling"},
        ),
        Plot("bars", "Levels: entropy and response time", {"figure": "entropy with log time", "setting": "dot"}),
    ]
    return out


def vote_scores(sims: NDArray[np.float64], votes: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the model's odd one has the most votes alone, 1/k where k share them, 0 otherwise and for ties."""
    odd = triplets.odd_one_out(sims)
    best = votes == votes.max(1, keepdims=True)
    credit = best / best.sum(1, keepdims=True)
    picked = np.take_along_axis(credit, np.maximum(odd, 0)[:, None], 1)[:, 0]
    return np.where(odd == triplets.TIE, 0.0, picked)


def _photos(folder: Path, release: Levels) -> tuple[FileImages, NDArray[np.int64], NDArray[np.bool_]]:
    """(images used, triplets [u, 3] as rows of them, which triplets have all three [t])."""
    if not folder.is_dir():
        raise NotHere(f"no images at {folder}")
    all_images = read_folder(folder)
    place = {PurePosixPath(name).name: name for name in all_images.names}
    covered = np.array([all(name in place for name in key) for key in release.names])
    if not covered.any():
        raise NotHere(f"none of {len(covered)} triplets has its three images under {folder}")
    keys = [key for key, there in zip(release.names, covered, strict=True) if there]
    used = sorted({name for key in keys for name in key})
    number = {name: i for i, name in enumerate(used)}
    rows = np.array([[number[name] for name in key] for key in keys])
    return FileImages(folder, tuple(place[name] for name in used)), rows, covered


def _notes(release: Levels, covered: NDArray[np.bool_]) -> list[str]:
    trials = ", ".join(f"{level} {release.trials[level]}" for level in ORDER)
    dropped = ", ".join(f"{n} {what}" for what, n in release.dropped.items()) or "nothing"
    tied = int(((release.votes == release.votes.max(1, keepdims=True)).sum(1) > 1).sum())
    return [
        f"trials: {trials}; left out: {dropped}.",
        f"{int(covered.sum())} of {len(covered)} triplets have all three images here; {tied} have a tied majority.",
    ]


def _checked(trials: dict[str, int], people: list[Row]) -> str:
    """What was published of the release, and what is found in this one."""
    if trials != TRIALS:
        published = ", ".join(f"{level} {n}" for level, n in TRIALS.items())
        return f"not the published release, whose trials are {published}: its check values are not compared."
    found = {(row.figure, row.group): row.estimate.value for row in people}
    pairs = [
        f"{', '.join(part for part in key if part)} {found[key]:.4f} (published {value:g})"
        for key, value in PUBLISHED.items()
        if key in found
    ]
    return f"check values of the release: {'; '.join(pairs)}."


def _people(release: Levels, setting: Setting) -> list[Row]:
    """Ceilings, and disagreement with response time: the release's own check values, on all its triplets."""
    c = setting.constants
    rows = []
    ceiling = noise_ceiling(release.counts)
    largest = release.counts.max(1) / release.counts.sum(1)
    disagreement = triplets.entropy(release.votes / VOTES)
    for level in ("", *ORDER):
        mine = (release.level == level) | (not level)
        if not mine.any():
            continue
        for figure, values in (("noise ceiling", ceiling), ("mean largest share", largest)):
            estimate = intervals.mean_over_items(values[mine], c.repetitions, c.seed)
            rows.append(Row(figure, PEOPLE, estimate, level, "leave-one-out" if figure == "noise ceiling" else ""))
        for name, time in (("log time", release.log_time), ("log time to 10 s", release.log_time_10s)):
            estimate_of = intervals.spearman(disagreement[mine], time[mine], c.repetitions, c.seed)
            if estimate_of is not None:
                rows.append(Row(f"disagreement with {name}", PEOPLE, estimate_of, level, "", "Spearman"))
    return rows


def _accuracy_rows(
    scores: dict[str, NDArray[np.float64]],
    votes: NDArray[np.int64],
    level: NDArray[np.str_],
    setting: Setting,
    label: str,
) -> list[Row]:
    c = setting.constants
    untied = (votes == votes.max(1, keepdims=True)).sum(1) == 1
    rows = []
    differences = {f"{a} - {b}": scores[a] - scores[b] for a, b in setting.pairs}
    for name in ORDER:
        for rule, kept in (("ties half", np.ones(len(votes), bool)), ("ties out", untied)):
            mine = (level == name) & kept
            if not mine.any():
                continue
            for model, values in (scores | differences).items():
                estimate = intervals.mean_over_items(values[mine], c.repetitions, c.seed)
                rows.append(Row("accuracy", model, estimate, name, f"{label}, {rule}"))
    return rows


def _targets(release: Levels, covered: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    return {
        "entropy with log time": release.log_time[covered],
        "entropy with log time to 10 s": release.log_time_10s[covered],
        "entropy with disagreement": triplets.entropy(release.votes[covered] / VOTES),
    }


def _correlation_rows(
    entropies: dict[str, NDArray[np.float64]],
    target: NDArray[np.float64],
    level: NDArray[np.str_],
    setting: Setting,
    figure: str,
) -> list[Row]:
    c, rows = setting.constants, []
    for name in ORDER:
        mine = level == name
        by_model = {m: intervals.spearman(h[mine], target[mine], c.repetitions, c.seed) for m, h in entropies.items()}
        found = {model: estimate for model, estimate in by_model.items() if estimate is not None}
        both = [(a, b) for a, b in setting.pairs if a in found and b in found]
        found |= {f"{a} - {b}": intervals.difference(found[a], found[b]) for a, b in both}
        rows += [Row(figure, model, estimate, name, "dot", "Spearman") for model, estimate in found.items()]
    return rows
