"""A model that answers nobody: its decisions are compared with those that were given, on a share of the requests.

What leaves is counts. The comparison begins after the answer, runs one image at a time, and ends as soon as a
request has an image to embed: one that comes meanwhile waits for one image of the shadow at most. There is one
comparison at a time, and what it holds is one request's images: not counted as held bytes, so that nobody is
refused because of them.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.admission import House
from app.judgments import Thresholds, judge
from app.metrics import Metrics
from app.models import Models
from app.served import ServedModel
from app.timings import Timings

log = logging.getLogger("alignet")

PAUSE_SECONDS = 0.02
"""Before a comparison: the answer is on its way by then."""
IMAGE_SECONDS = 5.0
"""Time one image may take."""
MOST_TRIPLETS = 256
"""Triplets of a request that are compared, its first; a thread is busy with them for some milliseconds."""


@dataclass(frozen=True)
class Answered:
    """A request that was answered.

    Attributes:
        model: which answered.
        images: n encoded files.
        index: [t, 3] positions in `images`.
        decisions: t positions of the odd one; None where abstained.
    """

    model: ServedModel
    space: str
    images: Sequence[bytes]
    index: NDArray[np.int64]
    decisions: Sequence[int | None]
    thresholds: Thresholds


class Shadow:
    """Compares the model `name` on a `share` of what it is offered. Lives on the event loop."""

    def __init__(self, name: str, share: float, models: Models, house: House, metrics: Metrics) -> None:
        self._name, self._share = name, share
        self._models, self._house, self._metrics = models, house, metrics
        self._task: asyncio.Task[None] | None = None

    def wants(self, model: ServedModel) -> bool:
        """Whether this request of `model` is in the sample; drawn anew with every call."""
        return model.name != self._name and random.random() < self._share  # noqa: S311 - no secret

    def offer(self, answered: Answered) -> None:
        """Compare later, unless there is something else to do. Returns at once."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(answered), name="shadow")
        else:
            self._metrics.shadow_requests.labels("dropped").inc()

    async def close(self) -> None:
        """Leave what is being compared."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, answered: Answered) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            compared = await self._compare(answered)
        except Exception as error:  # the shadow's faults are nobody's but its own
            log.warning("shadow model %s: %s", self._name, type(error).__name__)
            self._metrics.shadow_requests.labels("failed").inc()
        else:
            self._metrics.shadow_requests.labels("compared" if compared else "dropped").inc()

    async def _compare(self, answered: Answered) -> bool:
        """Count how the decisions compare; False if a request came first."""
        index = answered.index[:MOST_TRIPLETS]
        used, local = np.unique(index, return_inverse=True)
        with self._models.hold() as snapshot:
            shadow = snapshot.models[self._name]
            space = shadow.manifest.spaces[answered.space]
            known: dict[bytes, NDArray[np.float32]] = {}
            for image in (answered.images[i] for i in used):
                if self._house.images:
                    return False
                if image not in known:
                    timings = Timings(until=asyncio.get_running_loop().time() + IMAGE_SECONDS)
                    async with asyncio.timeout(IMAGE_SECONDS):
                        known[image] = (await shadow.embedder.embed_aside(image, timings))[answered.space]
            vectors = np.stack([known[answered.images[i]] for i in used]).astype(np.float64)
            judged = await asyncio.to_thread(
                judge, vectors, local.reshape(-1, 3), space, shadow.manifest.tie_rule, answered.thresholds
            )
        counts: Counter[str] = Counter()
        for theirs, ours in zip(judged, answered.decisions, strict=False):  # theirs are the first ones
            odd = None if theirs["odd_one_out"] is None else int(used[theirs["odd_one_out"]])
            counts["same" if odd == ours else "one_abstained" if None in (odd, ours) else "different"] += 1
        for outcome, n in counts.items():
            self._metrics.shadow_triplets.labels(answered.model.name, self._name, outcome).inc(n)
        return True
