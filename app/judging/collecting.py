"""A study that runs: photos made ready beside the service, trials handed out, choices stored."""

import asyncio
import contextlib
import hmac
import logging
import secrets
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np

from app.errors import ServiceError
from app.judging.choosing import Chooser, Key, Kind, NoneLeft, kinds
from app.judging.photos import Photo, Vectors, copy_file, embed_missing, read_photos
from app.judging.store import Session, Store, Trial
from app.judging.study import Study, StudyError
from app.metrics import Metrics, StudyCounts
from app.models import Models, Snapshot
from contract.manifest import space_fingerprint
from contract.pixels import PixelLimits

log = logging.getLogger("alignet")

RETRY_SECONDS = 2.0
"""Time between two tries to embed the photos where the engine is away."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """What trials are made from, until the model changes."""

    chooser: Chooser
    fingerprint: str


class State(NamedTuple):
    """Whether the study can be taken part in, and the share of the present step that is done."""

    name: Literal["preparing", "open", "failed"]
    share: float


@dataclass(frozen=True)
class Progress:
    """Where a participant stands.

    Attributes:
        done: trials answered, practice and catch trials among them.
        total: of the whole session.
        trial: the one to be answered now; None at the end.
    """

    done: int
    total: int
    trial: Trial | None


class Judging:
    """A study over the models of the service, between `open` and `close`.

    Every call of the database, and every draw of a triplet, runs in one thread of its own, in the order in which
    requests came: a sync of the disk holds up nobody who embeds.

    Args:
        study: what is asked.
        models: of the service; after a reload, the photos are embedded again beside the running study.
        limits: of one photo.
        metrics: of the service; how many take part, and how far they are, is counted there.
    """

    def __init__(self, study: Study, models: Models, limits: PixelLimits, metrics: Metrics) -> None:
        self.study = study
        self._counted = StudyCounts(metrics.registry, get_args(Kind))
        self._models, self._limits = models, limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judging")
        self._store: Store | None = None
        self._photos: list[Photo] = []
        self._contents: dict[int, str] = {}
        self._ready: Ready | None = None
        self._counts: Counter[Key] = Counter()
        self._preparing: asyncio.Task[None] | None = None
        self._step = ("photos", 0, 0)
        self._closed = False

    async def open(self, snapshot: Snapshot) -> None:
        """Open the database, before the models of `snapshot` are served.

        Raises:
            StudyError: the study's model or space is not among them.
            StoreError: the database is of another program.
        """
        study = self.study
        try:
            model = snapshot.named(study.model)
        except ServiceError:
            raise StudyError(f"the study's model is {study.model!r}, which is not served here.") from None
        if study.space not in model.manifest.spaces:
            raise StudyError(f"the study's space is {study.space!r}, which model {model.name!r} does not have.")
        await self._in_thread(self._open)

    def _open(self) -> None:
        self.study.data.mkdir(parents=True, exist_ok=True)
        self._store = Store(self.study.database)
        self._counts = self._store.judged()

    async def close(self) -> None:
        """Leave what is being prepared, and close the database."""
        self._closed = True
        if self._preparing is not None:
            while not self._preparing.done():  # a cancellation that meets the end of another wait is lost
                self._preparing.cancel()
                await asyncio.wait([self._preparing], timeout=0.1)
        if self._store is not None:
            await self._in_thread(self._store.close)
        self._thread.shutdown(wait=True)

    @property
    def state(self) -> State:
        """Whether trials can be had, and how far their photos are."""
        if self._ready is not None:
            return State("open", 1.0)
        step, done, total = self._step
        return State("failed" if step == "failed" else "preparing", done / max(total, 1))

    def invited(self, word: str) -> bool:
        """Whether this is the study's invitation; any word is, where it has none."""
        wanted = self.study.invitation
        return not wanted or hmac.compare_digest(wanted.encode(), word.encode())

    async def begin(self, code: str | None) -> str:
        """A new session of somebody who has agreed; its token, which is stored nowhere.

        Raises:
            ServiceError: 503 while photos are made ready.
            SessionsFull: see `Store.begin`.
        """
        self._require_ready()
        token = secrets.token_urlsafe(24)
        study = self.study
        await self._in_thread(self._db.begin, token, study.consent_sha256, code, study.most_sessions)
        self._counted.sessions.labels("begun").inc()
        return token

    async def progress(self, token: str) -> Progress:
        """The trial that a session is to answer now; the same one until it is answered.

        Raises:
            ServiceError: 404 no such session, 503 while photos are made ready.
        """
        ready = self._require_ready()
        session = await self._session(token)
        return await self._in_thread(self._next, session, ready)

    async def choose(self, token: str, trial: str, odd: int | None, rt_ms: float, by: str) -> tuple[Trial, bool]:
        """Store a choice; on the disk when this returns. See `Store.choose`."""
        session = await self._session(token)
        return await self._in_thread(self._choose, session, trial, odd, rt_ms, by)

    async def summary(self, token: str) -> dict[str, object]:
        """What a participant is told at the end: trials that counted, and the median time."""
        session = await self._session(token)
        trials = await self._in_thread(self._db.trials, session)
        times = [t.answer.rt_ms for t in trials if t.kind == "main" and t.answer and t.answer.odd is not None]
        return {"answered": len(times), "median_ms": statistics.median(times) if times else None}

    async def withdraw(self, token: str) -> int:
        """Delete a session and all of its answers; how many there were."""
        session = await self._session(token)
        return await self._in_thread(self._withdraw, session)

    async def photo(self, trial: str, position: int) -> bytes:
        """The picture at a position of a trial that waits for its answer, as JPEG.

        Raises:
            ServiceError: 404 there is no such trial, or it is over.
        """
        return await self._in_thread(self._photo, trial, position)

    # --- in the thread of the database -------------------------------------------------------------

    def _next(self, session: Session, ready: Ready) -> Progress:
        plan = kinds(self.study, session.number)
        done = self._db.answered(session)
        if (waiting := self._db.look(session)) is not None:
            return Progress(done, len(plan), waiting)
        if done >= len(plan):
            return Progress(done, len(plan), None)
        rng = np.random.default_rng([self.study.seed, session.number, done])
        kind = plan[done]
        try:
            if kind == "main":
                chosen = ready.chooser.main(rng, self._counts, self._db.seen(session))
            else:
                chosen = ready.chooser.obvious(rng)
        except NoneLeft:
            return Progress(done, done, None)
        trial = Trial(secrets.token_urlsafe(18), session.session, done, kind, chosen, ready.fingerprint)
        kept = self._db.add(trial)
        if kept.trial == trial.trial:  # another process may have handed one out meanwhile
            self._counted.trials.labels(kind).inc()
        return Progress(done, len(plan), kept)

    def _choose(self, session: Session, trial: str, odd: int | None, rt_ms: float, by: str) -> tuple[Trial, bool]:
        kept, new = self._db.choose(session, trial, odd, rt_ms, by)
        if new:
            self._counted.choices.labels(kept.kind).inc()
            if kept.kind == "main" and odd is not None:
                self._counts[_key(kept)] += 1
        return kept, new

    def _withdraw(self, session: Session) -> int:
        answered = self._db.withdraw(session)
        self._counted.sessions.labels("withdrawn").inc()
        self._counts = self._db.judged()
        return answered

    def _photo(self, trial: str, position: int) -> bytes:
        found = self._db.trial(trial)
        if found is None or found.answer is not None:
            raise ServiceError("trial_not_found", "there is no such picture, or its trial is over.")
        item, view = found.chosen.items[position], found.chosen.views[position]
        return copy_file(self.study.data, self._contents[item], view).read_bytes()

    # --- making ready ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Begin to make the photos ready for the model that is served now, beside the running service."""
        if self._step[0] != "failed" and (self._preparing is None or self._preparing.done()):
            self._preparing = asyncio.create_task(self._prepare(), name="judging")

    async def _prepare(self) -> None:
        """Make the photos ready for the model that is served now; tries again while the engine is away."""
        while not self._closed:
            try:
                self._ready = await self._make_ready()
            except ServiceError as error:
                log.warning("the photos of the study are not embedded yet: %s", error.kind)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # the service itself goes on
                log.exception("the study cannot be run: %s", type(error).__name__)
                self._step = ("failed", 0, 0)
                return
            else:
                return

    async def _make_ready(self) -> Ready:
        study = self.study
        if not self._photos:
            counted = self._counter("photos")
            found, refused = await asyncio.to_thread(read_photos, study.photos, study.data, self._limits, counted)
            if refused:
                log.warning("%d photos of the study cannot be used; see %s", len(refused), study.data / "refused.csv")
            self._photos = found
        with self._models.hold() as snapshot:
            model = snapshot.named(study.model)
            space = model.manifest.spaces[study.space]
            fingerprint = space_fingerprint(model.manifest, study.space, normalize=False)
            vectors = await asyncio.to_thread(Vectors, study.data, fingerprint, space.size)
            counted = self._counter("vectors")
            faults = await embed_missing(study.photos, self._photos, model.embedder, study.space, vectors, counted)
        if faults:
            log.warning("%d photos of the study could not be embedded: %s", len(faults), next(iter(faults.values())))
        usable = [photo for photo in self._photos if photo.sha256 not in faults]
        self._photos = usable
        numbers = await self._in_thread(self._db.register, [(photo.path, photo.sha256) for photo in usable])
        stored = await self._in_thread(self._db.items)
        self._contents = {item: sha256 for item, sha256, _ in stored}
        if len(usable) < 3:
            raise StudyError(f"the study has {len(usable)} photos that can be shown; a triplet needs three.")
        chooser = Chooser(np.array(numbers, np.int64), vectors.of(usable), space, study)
        log.info("the study is open: %d photos, space %s", len(usable), fingerprint)
        return Ready(chooser, fingerprint)

    def _counter(self, step: str) -> Callable[[int, int], None]:
        def counted(done: int, total: int) -> None:
            self._step = (step, done, total)

        return counted

    def _require_ready(self) -> Ready:
        if self._ready is None:
            if self._step[0] == "failed":
                raise ServiceError("internal", "the study cannot be run; the service's log says why.")
            raise ServiceError("not_ready", "the photos of the study are being made ready.", retry_after=2)
        with contextlib.suppress(ServiceError):  # no model at all: the service is ending
            model = self._models.current.named(self.study.model)
            if space_fingerprint(model.manifest, self.study.space, normalize=False) != self._ready.fingerprint:
                self.prepare()  # a new version is served: its doubts take over when they are known
        return self._ready

    async def _session(self, token: str) -> Session:
        session = await self._in_thread(self._db.session, token)
        if session is None:
            raise ServiceError("session_not_found", "there is no such session, or its answers have been taken back.")
        return session

    @property
    def _db(self) -> Store:
        assert self._store is not None
        return self._store

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))


def _key(trial: Trial) -> Key:
    a, b, c = sorted(trial.chosen.items)
    return a, b, c
