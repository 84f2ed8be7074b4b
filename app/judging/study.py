"""A study: the file in which an operator says which photos are judged, by what rules, and what people agree to."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

INSTRUCTIONS = (
    "You will see three photos at a time. Choose the one that is least like the other two. "
    "There is no right or wrong answer: what counts is what you see."
)


class StudyError(ValueError):
    """A study that cannot be run as its file says."""


class Study(BaseModel):
    """The content of a study file (TOML). Paths are relative to the file.

    The defaults follow the Levels study (Muttenthaler et al. 2025) where it says what it did: one catch trial to
    about twenty others; participants below 90 % in them, or with more than 10 unanswered trials, are left out of
    the export (`app.judging.export`).

    Attributes:
        photos: folder, searched with all folders inside.
        data: folder of the database, the vectors and the copies of photos that people see.
        consent: what a participant agrees to before anything is stored.
        invitation: a word that the link must carry (`/judge#WORD`); none if empty.
        participant_codes: whether participants may give a code of their own. It is the one field that could
            hold personal data, so it is off.
        trials: that count, for each participant.
        practice: trials with feedback before them; 0 for none.
        catch: share of catch trials, which come on top of `trials`.
        responses: most judgments of one triplet, by different participants.
        repeats: share of trials that ask what somebody else has been asked.
        explore: share of trials that are drawn by chance; the rest is where the model is least sure.
        candidates: random triplets of which the least sure is asked.
        break_every: trials between two breaks; 0 for none.
        fixation_ms: of the cross before each trial.
        answer_seconds: after which a trial counts as unanswered; 0 waits for ever.
        most_sessions: after which nobody can begin any more: a bound on the disk.
        model, space: whose doubts choose the triplets; the first model served if not given.
        seed: of everything drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    photos: Path
    data: Path
    title: str = Field(default="Which photo is the odd one out?", min_length=1, max_length=200)
    consent: str = Field(min_length=20, max_length=20_000)
    instructions: str = Field(default=INSTRUCTIONS, min_length=1, max_length=5_000)
    thanks: str = Field(default="Thank you. Your answers are stored.", min_length=1, max_length=5_000)
    invitation: str = Field(default="", max_length=100)
    participant_codes: bool = False
    trials: int = Field(default=100, ge=1, le=2_000)
    practice: int = Field(default=3, ge=0, le=20)
    catch: float = Field(default=0.05, ge=0, le=0.5)
    responses: int = Field(default=5, ge=1, le=1_000)
    repeats: float = Field(default=0.1, ge=0, le=1)
    explore: float = Field(default=0.2, ge=0, le=1)
    candidates: int = Field(default=200, ge=1, le=10_000)
    break_every: int = Field(default=50, ge=0)
    fixation_ms: int = Field(default=500, ge=0, le=5_000)
    answer_seconds: float = Field(default=0, ge=0, le=600)
    most_sessions: int = Field(default=1_000, ge=1, le=1_000_000)
    model: str | None = None
    space: Literal["aligned", "base"] = "aligned"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("photos", "data")
    @classmethod
    def _a_path(cls, value: Path) -> Path:
        if not str(value).strip() or value == Path():
            raise ValueError("expected a folder")
        return value

    @classmethod
    def read(cls, file: Path) -> "Study":
        """The study of a file, its folders made absolute.

        Raises:
            StudyError: no such file, no TOML, a field that is missing, unknown or wrong, or no folder of photos.
        """
        try:
            values: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StudyError(f"the study {file} cannot be read: {error}.") from error
        values.setdefault("data", f"{file.stem}-data")
        try:
            study = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise StudyError(f"the study {file}, {where}: {first['msg']}.") from None
        home = file.resolve().parent
        study = study.model_copy(update={name: (home / getattr(study, name)).resolve() for name in ("photos", "data")})
        if not study.photos.is_dir():
            raise StudyError(f"the study {file}: photos is {study.photos}, which is no folder.")
        if study.data.is_relative_to(study.photos):
            raise StudyError(f"the study {file}: data is inside photos; copies of photos would become photos.")
        return study

    @property
    def database(self) -> Path:
        """The SQLite file of sessions, trials and choices."""
        return self.data / "judgments.sqlite"

    @property
    def consent_sha256(self) -> str:
        """Of the text that people agree to, as it is stored with each session."""
        return hashlib.sha256(self.consent.encode()).hexdigest()

    @property
    def catch_trials(self) -> int:
        """Catch trials of one participant: the share of all trials after the practice that `catch` asks for."""
        return round(self.trials * self.catch / (1 - self.catch))
