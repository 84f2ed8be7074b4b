"""/judge: a page of odd-one-out trials over the operator's own photos. The paths exist only if `judging` is set.

Participants need no API key; what they may do is bounded by the study. Who they are is a token that the page holds
and sends as X-Judge-Session: it stands in no URL, no cookie, no log and no file.
"""

import asyncio
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app import errors, intake
from app.errors import Kind, ServiceError
from app.exchange import service_of
from app.judging.collecting import Judging, Progress
from app.judging.export import Rule, archive
from app.judging.store import AnotherChoice, ImpossibleTime, NoSuchTrial, SessionsFull, Trial

router = APIRouter(prefix="/judge")
exporting = APIRouter(prefix="/judge")

BODY_BYTES = 4096
"""Largest body of these paths."""

_POSITION = re.compile(r"(?P<trial>[A-Za-z0-9_-]{24})-(?P<position>[012])")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Consent(_Strict):
    """Body of /judge/session."""

    consent: bool = Field(description="That the participant has agreed to the study's consent text.")
    invitation: str = Field(default="", max_length=100, description="The word of the link, where the study has one.")
    code: str | None = Field(
        default=None, min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$",
        description="A code of the participant's own; only where the study asks for it.",
    )  # fmt: skip

    @field_validator("consent")
    @classmethod
    def _agreed(cls, value: bool) -> bool:
        if not value:
            raise ValueError("expected true; nobody takes part who has not agreed")
        return value


class Choice(_Strict):
    """Body of /judge/choice."""

    trial: str = Field(max_length=64)
    odd: Annotated[int, Field(ge=0, le=2)] | None = Field(
        description="Position of the odd one out from left to right; null where the time was over."
    )
    rt_ms: float = Field(
        ge=0, allow_inf_nan=False, description="Milliseconds from the onset of the photos, by the browser's clock."
    )
    input: Literal["key", "pointer", "none"]


class StudyCard(BaseModel):
    """What the page shows before anybody has agreed to anything."""

    title: str
    consent: str
    instructions: str
    thanks: str
    needs_invitation: bool
    participant_codes: bool
    trials: int
    practice: int
    state: Literal["preparing", "open", "failed"]
    prepared: float = Field(description="Share of the photos that are ready.")


class Begun(BaseModel):
    """A session that has begun."""

    session: str = Field(description="To be sent as X-Judge-Session; it is stored nowhere else.")


class TrialCard(BaseModel):
    """One trial; a catch trial looks like any other."""

    trial: str
    photos: list[str] = Field(description="Paths of the three pictures, from left to right.")
    practice: bool
    pause: bool = Field(description="Whether a break comes before it.")
    fixation_ms: int
    answer_seconds: float = Field(description="0 waits for ever.")


class Standing(BaseModel):
    """Where a session stands; without a trial it is over."""

    done: int
    total: int
    trial: TrialCard | None
    summary: dict[str, Any] | None = Field(description="At the end: trials that counted, and the median time.")


class Stored(Standing):
    """Reply of /judge/choice: the choice is on the disk; and the next trial."""

    new: bool = Field(description="False where the same choice had been stored before.")
    right: bool | None = Field(description="Of a practice trial, whether the obvious one was chosen.")


class Withdrawn(BaseModel):
    """Reply of /judge/withdraw."""

    deleted: int


_KINDS: tuple[Kind, ...] = ("session_not_found", "not_ready", "internal")
_BODY_KINDS: tuple[Kind, ...] = ("invalid_json", "invalid_request", "body_timeout", "body_too_large", "overloaded",
                                 "unsupported_media_type")  # fmt: skip


@router.get("/study", response_model=StudyCard, summary="What the study asks")
async def study_card(request: Request) -> StudyCard:
    """The texts of the study, and whether it can be begun."""
    judging = _judging(request)
    study, state = judging.study, judging.state
    return StudyCard(
        title=study.title,
        consent=study.consent,
        instructions=study.instructions,
        thanks=study.thanks,
        needs_invitation=bool(study.invitation),
        participant_codes=study.participant_codes,
        trials=study.trials + study.catch_trials,
        practice=study.practice,
        state=state.name,
        prepared=state.share,
    )


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.post(
    "/session",
    response_model=Begun,
    responses=errors.responses("invitation_needed", "study_full", "not_ready", "internal", *_BODY_KINDS),
    openapi_extra=_body(Consent),
    summary="Agree and begin",
)
async def begin(request: Request) -> Begun:
    """Begin a session, after consent. Nothing of the person, the address or the browser is stored."""
    judging = _judging(request)
    given = await _read(request, Consent)
    if not judging.invited(given.invitation):
        raise ServiceError("invitation_needed", "this study is by invitation; open the link that you were sent.")
    if given.code is not None and not judging.study.participant_codes:
        raise ServiceError("invalid_request", "code: this study stores no codes of participants.")
    try:
        return Begun(session=await judging.begin(given.code))
    except SessionsFull as error:
        raise ServiceError("study_full", f"{error}", limit=judging.study.most_sessions) from error


@router.get("/trial", response_model=Standing, responses=errors.responses(*_KINDS), summary="The trial to answer now")
async def trial(request: Request) -> Standing:
    """The trial that the session of X-Judge-Session is to answer; the same one until it is answered."""
    judging, token = _judging(request), _token(request)
    return await _standing(judging, token, await judging.progress(token))


@router.get("/photo/{token}", responses=errors.responses("trial_not_found"), summary="A picture of a trial")
async def photo(request: Request, token: str) -> Response:
    """JPEG of a trial that waits for its answer; the path says nothing of the file."""
    match = _POSITION.fullmatch(token)
    if match is None:
        raise ServiceError("trial_not_found", "there is no such picture.")
    content = await _judging(request).photo(match["trial"], int(match["position"]))
    return Response(content, media_type="image/jpeg")


@router.post(
    "/choice",
    response_model=Stored,
    responses=errors.responses("trial_not_found", "choice_conflict", *_KINDS, *_BODY_KINDS),
    openapi_extra=_body(Choice),
    summary="Store a choice",
)
async def choose(request: Request) -> Stored:
    """Store a choice, and give the next trial. It is on the disk when the reply is sent; send it again if none comes.

    The same choice again is stored once; another one for the same trial is 409, and the first one counts. A time
    longer than the trial is old is 400.
    """
    judging, token = _judging(request), _token(request)
    given = await _read(request, Choice)
    if (given.odd is None) != (given.input == "none"):
        raise ServiceError("invalid_request", "input: none goes with odd: null, and with nothing else.")
    if given.odd is None and not judging.study.answer_seconds:
        raise ServiceError("invalid_request", "odd: this study waits for an answer; expected 0, 1 or 2.")
    try:
        kept, new = await judging.choose(token, given.trial, given.odd, given.rt_ms, given.input)
    except NoSuchTrial as error:
        raise ServiceError("trial_not_found", f"{error}") from error
    except AnotherChoice as error:
        raise ServiceError("choice_conflict", f"{error}") from error
    except ImpossibleTime as error:
        raise ServiceError("invalid_request", f"{error}") from error
    standing = await _standing(judging, token, await judging.progress(token))
    return Stored(**standing.model_dump(), new=new, right=kept.right if kept.kind == "practice" else None)


@router.post(
    "/withdraw", response_model=Withdrawn, responses=errors.responses(*_KINDS), summary="Take all answers back"
)
async def withdraw(request: Request) -> Withdrawn:
    """Delete the session of X-Judge-Session with everything that it has answered."""
    return Withdrawn(deleted=await _judging(request).withdraw(_token(request)))


@exporting.get(
    "/export",
    responses=errors.responses("unauthorized", "invalid_request")
    | {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
    summary="All choices, as training reads them",
)
async def export(request: Request) -> Response:
    """A zip of the files that `alignet-serve judgments` writes, by the default rule; needs an admin key."""
    service = service_of(request)
    service.admin_keys.admit(request.headers.get("authorization"))
    judging = _judging(request)
    content = await asyncio.to_thread(archive, judging.study, Rule())  # beside the choices that come in meanwhile
    return Response(content, headers={"Content-Disposition": 'attachment; filename="judgments.zip"'},
                    media_type="application/zip")  # fmt: skip


def _judging(request: Request) -> Judging:
    judging = service_of(request).judging
    if judging is None:
        raise ServiceError("not_ready", "the service is starting.", retry_after=2)
    return judging


def _token(request: Request) -> str:
    token = request.headers.get("x-judge-session", "")
    if not 0 < len(token) <= 64:
        raise ServiceError("session_not_found", "send the session of /judge/session as X-Judge-Session.")
    return token


async def _read(request: Request, model: type[Any]) -> Any:
    service = service_of(request)
    with service.body_bytes.hold() as take:
        limit = min(BODY_BYTES, service.settings.max_body_bytes)
        settings = service.settings.model_copy(update={"max_body_bytes": limit})
        body = await intake.read_body(request, settings, service.body_bytes.require, take)
        if not intake.is_json(body):
            raise ServiceError(
                "unsupported_media_type", f"content-type is {body.media_type!r}; expected application/json."
            )
        return intake.parse_json(body, model, settings)


async def _standing(judging: Judging, token: str, progress: Progress) -> Standing:
    if progress.trial is None:
        summary = await judging.summary(token)
        return Standing(done=progress.done, total=progress.total, trial=None, summary=summary)
    card = _card(judging, progress.trial)
    return Standing(done=progress.done, total=progress.total, trial=card, summary=None)


def _card(judging: Judging, trial: Trial) -> TrialCard:
    study = judging.study
    counted = trial.number - study.practice
    return TrialCard(
        trial=trial.trial,
        photos=[f"/judge/photo/{trial.trial}-{position}" for position in range(3)],
        practice=trial.kind == "practice",
        pause=bool(study.break_every) and counted > 0 and counted % study.break_every == 0,
        fixation_ms=study.fixation_ms,
        answer_seconds=study.answer_seconds,
    )
