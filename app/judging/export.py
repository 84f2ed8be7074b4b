"""What has been collected, as training reads it; and the command `alignet-serve judgments STUDY --out FOLDER`.

    photos.csv      path,item,sha256: row i is object i; `python -m training embed MODEL OUT/photos.csv`
    triplets.txt    N x 3 object numbers from 0, the odd one last, as in THINGS' files; all choices that count
    train_90.txt    the same, without those of test_10.txt
    test_10.txt     a tenth of the triplets, with all of their choices: no triplet is in both
    choices.csv     image_0,image_1,image_2,odd_position: those of test_10.txt, for `python -m export ... --calibrate`
    responses.csv   every trial of every session, of practice and catch too, with times and the model's doubt
    summary.json    counts and the rule of exclusion; written last

Choices count unless they are of practice or catch trials, unanswered, or of an excluded session; nor do those of a
photo that has been removed from the folder, for nothing could be embedded for it. Object numbers run over the photos
that are there, in the order in which they were first seen; more photos or choices leave them as they are.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import statistics
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.judging.store import Session, Store, StoreError, Trial
from app.judging.study import Study, StudyError
from contract.files import whole

TEST_SHARE = 0.1
"""Of the triplets, as in THINGS' files."""


@dataclass(frozen=True)
class Rule:
    """Whose choices are left out. The defaults are those of the Levels study, where it says them.

    Attributes:
        min_catch: least share of a session's catch trials that must be right. Levels: 0.9, of 16. A single miss is
            forgiven however few there are, as it is there.
        max_unanswered: most trials that count without an answer. Levels: 10.
        min_median_ms: least median time of the trials that count. Levels has no such rule.
        finished: whether only sessions that were answered to the end count.
    """

    min_catch: float = 0.9
    max_unanswered: int = 10
    min_median_ms: float = 0.0
    finished: bool = False

    def broken_by(self, trials: Sequence[Trial], total: int) -> str:
        """Why a session is left out; empty if it is not.

        Args:
            trials: of one session.
            total: trials of a whole session.
        """
        answered = [trial for trial in trials if trial.answer is not None]
        catches = [trial.right for trial in answered if trial.kind == "catch"]
        main = [trial.answer for trial in answered if trial.kind == "main" and trial.answer]
        times = [answer.rt_ms for answer in main if answer.odd is not None]
        right = sum(map(bool, catches))
        if len(catches) - right > 1 and right / len(catches) < self.min_catch:
            return f"catch: {right} of {len(catches)} right"
        if (silent := len(main) - len(times)) > self.max_unanswered:
            return f"unanswered: {silent}"
        if times and (median := statistics.median(times)) < self.min_median_ms:
            return f"fast: median {median:.0f} ms"
        if self.finished and len(answered) < total:
            return f"unfinished: {len(answered)} of {total}"
        return ""


@dataclass
class Collected:
    """What the files are made of.

    Attributes:
        photos: (path relative to the study's photos, sha256) of each object.
        rows: (three objects, odd one last) of every choice that counts.
        shown: (three objects from left to right, odd position) of the same choices.
        test: which of them are of the test triplets.
        responses: a row a trial.
        excluded: why each excluded session is, by its digest.
        counts: of trials, by what became of them.
    """

    photos: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)
    shown: list[tuple[int, int, int, int]] = field(default_factory=list)
    test: list[bool] = field(default_factory=list)
    responses: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    sessions: int = 0


def collect(store: Store, study: Study, rule: Rule) -> Collected:
    """Read the database at one moment."""
    out = Collected()
    with store.reading():
        sessions, trials, items = store.sessions(), store.trials(), store.items()
    out.sessions = len(sessions)
    by_session: dict[str, list[Trial]] = {session.session: [] for session in sessions}
    for trial in trials:
        by_session[trial.session].append(trial)
    total = study.practice + study.trials + study.catch_trials
    for session in sessions:
        if why := rule.broken_by(by_session[session.session], total):
            out.excluded[session.session] = why
    present = [(item, sha256, path) for item, sha256, path in items if _is_there(study, path, sha256)]
    objects = {item: number for number, (item, _, _) in enumerate(present)}
    out.photos = [(path, sha256) for _, sha256, path in present]
    contents = {item: sha256 for item, sha256, _ in items}
    for session in sessions:
        for trial in by_session[session.session]:
            _add(out, session, trial, objects, contents, study.seed)
    return out


def _add(
    out: Collected, session: Session, trial: Trial, objects: dict[int, int], contents: dict[int, str], seed: int
) -> None:
    status = _status(out, trial, objects)
    out.counts[status] = out.counts.get(status, 0) + 1
    chosen, answer = trial.chosen, trial.answer
    numbers = [objects.get(item) for item in chosen.items]
    p = chosen.probabilities or (None, None, None)
    out.responses.append(
        {
            "session": session.session[:16],
            "code": session.code,
            "day": session.day,
            "number": trial.number,
            "kind": trial.kind,
            "source": chosen.source,
            **{f"image_{i}": numbers[i] for i in range(3)},
            **{f"view_{i}": chosen.views[i] for i in range(3)},
            "odd_position": None if answer is None else answer.odd,
            "expected_position": chosen.expected,
            "rt_ms": None if answer is None else round(answer.rt_ms, 1),
            "server_ms": None if answer is None else round(answer.server_ms, 1),
            "input": None if answer is None else answer.input,
            "looks": trial.looks,
            **{f"p_odd_{i}": p[i] for i in range(3)},
            "entropy": chosen.entropy,
            "fingerprint": trial.fingerprint,
            "status": status,
        }
    )
    if status != "counts" or answer is None or answer.odd is None:
        return
    a, b, c = (objects[item] for item in chosen.items)
    shown = (a, b, c)
    odd = shown[answer.odd]
    first, second = (number for number in shown if number != odd)
    out.rows.append((first, second, odd))
    out.shown.append((a, b, c, answer.odd))
    # By the contents, so that a triplet stays on its side whatever is collected or removed later.
    names = " ".join(sorted(contents[item] for item in chosen.items))
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {names}".encode()).digest()[:8]) / 2**64
    out.test.append(drawn < TEST_SHARE)


def _status(out: Collected, trial: Trial, objects: dict[int, int]) -> str:
    """What becomes of a trial: `counts`, or why it does not."""
    if trial.kind != "main":
        return trial.kind
    if trial.answer is None:
        return "open"
    if trial.answer.odd is None:
        return "unanswered"
    if why := out.excluded.get(trial.session):
        return f"excluded ({why})"
    return "counts" if all(item in objects for item in trial.chosen.items) else "photo removed"


def _is_there(study: Study, path: str, sha256: str) -> bool:
    """Whether the photo lies where it was, unchanged."""
    file = study.photos / path
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def files(collected: Collected, study: Study, rule: Rule, root: str) -> dict[str, bytes]:
    """Every file by its name, the summary last.

    Args:
        root: path of the study's photos as photos.csv and choices.csv should give it.
    """
    paths = [f"{root}/{path}" if root else path for path, _ in collected.photos]
    photos = [
        {"path": path, "item": i, "sha256": sha}
        for i, (path, (_, sha)) in enumerate(zip(paths, collected.photos, strict=True))
    ]
    choices = [
        {"image_0": paths[a], "image_1": paths[b], "image_2": paths[c], "odd_position": odd}
        for (a, b, c, odd), test in zip(collected.shown, collected.test, strict=True)
        if test
    ]
    both = list(zip(collected.rows, collected.test, strict=True))
    train, test = ([row for row, is_test in both if is_test == side] for side in (False, True))
    summary = {
        "title": study.title,
        "consent_sha256": study.consent_sha256,
        "sessions": collected.sessions,
        "sessions_excluded": {name[:16]: why for name, why in collected.excluded.items()},
        "rule": asdict(rule),
        "photos": len(photos),
        "trials": dict(sorted(collected.counts.items())),
        "choices": len(both),
        "choices_train": len(train),
        "choices_test": len(test),
        "triplets": len({tuple(sorted(row)) for row in collected.rows}),
        "odd_one": "last",
        "numbers_from": 0,
    }
    return {
        "photos.csv": _csv(photos, ["path", "item", "sha256"]),
        "triplets.txt": _text(collected.rows),
        "train_90.txt": _text(train),
        "test_10.txt": _text(test),
        "choices.csv": _csv(choices, ["image_0", "image_1", "image_2", "odd_position"]),
        "responses.csv": _csv(collected.responses, RESPONSES),
        "summary.json": (json.dumps(summary, indent=2) + "\n").encode(),
    }


# fmt: off
RESPONSES = (
    "session", "code", "day", "number", "kind", "source", "image_0", "image_1", "image_2", "view_0", "view_1",
    "view_2", "odd_position", "expected_position", "rt_ms", "server_ms", "input", "looks", "p_odd_0", "p_odd_1",
    "p_odd_2", "entropy", "fingerprint", "status",
)
# fmt: on
"""Columns of responses.csv; positions are from left to right, probabilities those of each being the odd one."""


def _text(rows: Sequence[tuple[int, int, int]]) -> bytes:
    return "".join(f"{a} {b} {c}\n" for a, b, c in rows).encode()


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def archive(study: Study, rule: Rule) -> bytes:
    """The files in a zip; paths of photos are relative to the study's folder of photos, where it is to be unpacked.

    Raises:
        StoreError: nothing has been collected, or the database is not this program's.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files(_read(study, rule), study, rule, "").items():
            packed.writestr(name, content)
    return stream.getvalue()


def _read(study: Study, rule: Rule) -> Collected:
    store = Store(study.database, write=False)
    try:
        return collect(store, study, rule)
    finally:
        store.close()


def write(study: Study, rule: Rule, out: Path) -> dict[str, Any]:
    """Write the files into a folder, each whole, the summary last; what the summary says.

    Raises:
        StoreError: nothing has been collected, or the database is not this program's.
        OSError: the folder cannot be written.
    """
    collected = _read(study, rule)
    out.mkdir(parents=True, exist_ok=True)
    root = Path(os.path.relpath(study.photos, out.resolve())).as_posix()
    contents = files(collected, study, rule, root)
    (out / "summary.json").unlink(missing_ok=True)  # an older one must not stand beside newer files
    for name, content in contents.items():
        with whole(out / name) as stream:
            stream.write(content)
    summary: dict[str, Any] = json.loads(contents["summary.json"])
    return summary


def main(arguments: list[str]) -> int:
    """The command; 0 when the files are written, 1 where they cannot be."""
    options = parser().parse_args(arguments)
    rule = Rule(**{rule.name: getattr(options, rule.name) for rule in fields(Rule)})
    try:
        summary = write(Study.read(options.study), rule, options.out)
    except (StudyError, StoreError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(
        f"{summary['choices']} choices of {summary['triplets']} triplets over {summary['photos']} photos, by "
        f"{summary['sessions'] - len(summary['sessions_excluded'])} participants; "
        f"{len(summary['sessions_excluded'])} excluded"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """All that `alignet-serve judgments` takes."""
    parser = argparse.ArgumentParser(
        prog="alignet-serve judgments",
        description="Write what a study has collected as training reads it. The service may run meanwhile.",
    )
    parser.add_argument("--version", action="version", version=f"alignet-serve {version('alignet-serve')}")
    parser.add_argument("study", type=Path, help="the study file, as --judging has it")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, or to write anew")
    kinds: dict[str, tuple[Callable[[str], Any], str]] = {
        "min_catch": (float, "least share of catch trials that must be right (%(default)s, as in Levels)"),
        "max_unanswered": (int, "most trials without an answer (%(default)s, as in Levels)"),
        "min_median_ms": (float, "least median time of a session (%(default)s)"),
    }
    for name, (kind, about) in kinds.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Rule, name), help=about)
    parser.add_argument("--finished", action="store_true", help="only sessions that were answered to the end")
    return parser
