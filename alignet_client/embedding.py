"""One run of embedding, however many requests it takes: what to send next, and what came of it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignet_client import wire
from alignet_client.errors import ServiceProblem, SpaceMismatch, TooLarge, UnexpectedReply
from alignet_client.images import Batch
from alignet_client.results import Embeddings
from alignet_client.wire import Call, Reply

Progress = bool | Callable[[int], object]
"""True for a progress bar (needs tqdm), or a function that is told how many more images are done."""


@dataclass
class Run:
    """The images of one call, which go out in batches and whose vectors must all be of one space.

    Attributes:
        options: of every request.
        each: whether a bad image is noted, instead of ending the run.
    """

    options: dict[str, Any]
    each: bool
    _fingerprint: str = ""
    _model: str = ""
    _vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    _faults: list[ServiceProblem] = field(default_factory=list)

    def call(self, batch: Batch) -> Call | None:
        """The request of a batch, or None if nothing of it can be sent.

        Raises:
            OSError: without `each`, a file cannot be read.
            ServiceProblem: without `each`, an image is too large.
        """
        if batch.faults and not self.each:
            first = batch.faults[0]
            raise first.__cause__ if isinstance(first.__cause__, OSError) else first
        self._faults += batch.faults
        if not batch.payloads:
            return None
        # The service refuses at once, before the work, where its space has changed since the first batch.
        expected = self._fingerprint or self.options.get("expect_fingerprint")
        return wire.embed_call(batch.payloads, {**self.options, "expect_fingerprint": expected}, each=self.each)

    def take(self, batch: Batch, reply: Reply) -> int:
        """Note what came of a batch; the number of its images.

        Raises:
            SpaceMismatch: its vectors are of another space than those before.
            ServiceProblem: the request failed, or, without `each`, one of its images is bad.
            UnexpectedReply: it is no answer to this batch.
        """
        rows: NDArray[np.float32] | list[NDArray[np.float32] | ServiceProblem]
        try:
            if self.each:
                self._model, fingerprint, rows = wire.outcomes_of(reply)
            else:
                fingerprint, rows = wire.vectors_of(reply)
        except ServiceProblem as error:
            fault = self._placed(error, batch)
            # A batch of one that is too large as a request is an image that is too large.
            if not (self.each and isinstance(error, TooLarge) and len(batch.payloads) == 1):
                raise fault from None
            self._faults.append(
                fault if fault.index is not None else fault.at(batch.indices[0], batch.payloads[0].label)
            )
            return 1
        if len(rows) != len(batch.payloads):
            raise UnexpectedReply(f"{len(rows)} vectors came for {len(batch.payloads)} images")
        self._same_space(fingerprint)
        for index, row in zip(batch.indices, rows, strict=True):
            if isinstance(row, ServiceProblem):
                self._faults.append(self._placed(row, batch))
            else:
                self._vectors[index] = row
        return len(rows)

    def result(self) -> Embeddings:
        """All of it, in the order of the images. Raises ValueError if there were none."""
        if not self._vectors and not self._faults:
            raise ValueError("no images were given")
        indices = np.array(sorted(self._vectors), np.intp)
        return Embeddings(
            vectors=np.stack([self._vectors[i] for i in indices]) if len(indices) else np.empty((0, 0), np.float32),
            indices=indices,
            faults=sorted(self._faults, key=lambda fault: fault.index or 0),
            fingerprint=self._fingerprint,
            model=self._model,
            space=self.options["space"],
            normalized=self.options["normalize"],
        )

    def _placed(self, error: ServiceProblem, batch: Batch) -> ServiceProblem:
        """An error of a batch, with the position of its image among all images."""
        if error.index is None or not 0 <= error.index < len(batch.indices):
            return error
        return error.at(batch.indices[error.index], batch.payloads[error.index].label)

    def _same_space(self, fingerprint: str) -> None:
        expected = self._fingerprint or self.options.get("expect_fingerprint") or fingerprint
        if fingerprint != expected:
            raise SpaceMismatch(
                f"the vectors came with fingerprint {fingerprint!r}, but {expected!r} was expected; "
                "the model was changed meanwhile, or replicas serve different ones. Embed all of them again.",
                status=200,
                code="space_mismatch",
            )
        self._fingerprint = fingerprint


@contextlib.contextmanager
def reporting(progress: Progress, images: object) -> Iterator[Callable[[int], object]]:
    """What to tell of finished images. Raises ImportError: a bar was asked for, and there is no tqdm."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    else:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError("a progress bar needs tqdm; run: pip install 'alignet-serve[client]'") from error
        total = len(images) if hasattr(images, "__len__") else None
        with tqdm(total=total, unit="image") as bar:
            yield bar.update
