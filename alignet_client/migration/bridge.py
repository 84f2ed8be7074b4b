"""A linear bridge from one space to another, fitted by ridge regression on photos that have a vector in both."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client.files import whole
from alignet_client.retrieval.index import Entry, Hit, Index, IndexFault, Space, Vectors, WrongSpace, unit

PENALTIES = tuple(10.0**power for power in range(-10, 3))
"""Tried, as multiples of the mean eigenvalue of the source vectors' covariance."""

_FEWEST = 50
_BLOCK = 500
_RESAMPLES = 2000


@dataclass(frozen=True)
class Recall:
    """Share of the `k` nearest of true re-embedding that are found, over held-out photos.

    Attributes:
        mean: over the queries.
        low, high: 95 % bootstrap interval over the queries.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What the bridge costs, on `photos` held-out photos that were neither fitted nor chosen by.

    Each photo asks for its `k` nearest among the others; the truth is the answer with true vectors of the target on
    both sides. Fewer photos make it easier: compare only figures of the same number.

    Attributes:
        photos: how many.
        k: neighbours.
        documents: true queries, mapped documents.
        queries: mapped queries, true documents.
        unchanged: queries and documents of the source: what one has who does not migrate.
        explained: share of the target vectors' variance that the map explains.
    """

    photos: int
    k: int
    documents: Recall
    queries: Recall
    unchanged: Recall
    explained: float


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Bridge:
    """`(x - source_mean) @ weights + target_mean`. In a cosine space vectors are scaled to length 1, before and after.

    Attributes:
        source: space of the vectors it takes.
        target: space that it leads to.
        weights: [source.size, target.size] float32.
        source_mean: [source.size] float32.
        target_mean: [target.size] float32.
        penalty: of the ridge, as a multiple of the mean eigenvalue.
        pairs: photos it was fitted on.
        measured: what it costs.
    """

    source: Space
    target: Space
    weights: Vectors
    source_mean: Vectors
    target_mean: Vectors
    penalty: float
    pairs: int
    measured: Measured

    @property
    def space(self) -> Space:
        """Of the vectors it makes: near the target's, but not of it, so with a fingerprint of their own."""
        digest = hashlib.sha256(f"{self.source.fingerprint} {self.target.fingerprint}".encode())
        for array in (self.weights, self.source_mean, self.target_mean):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        to = self.target
        return Space(digest.hexdigest()[:32], to.size, to.similarity, to.model, to.name, to.normalized)

    def apply(self, vectors: ArrayLike, fingerprint: str) -> Vectors:
        """Mapped vectors [n, target.size] of `self.space`.

        Raises:
            WrongSpace: they are not of the source.
            ValueError: another size, or not finite.
        """
        found = _scaled(self.source, self.source.vectors(vectors, fingerprint))
        mapped = (found - self.source_mean) @ self.weights + self.target_mean
        return _scaled(self.target, mapped.astype(np.float32))

    def save(self, file: Path | str) -> None:
        """Write one .npz, whole or not at all."""
        about = {
            "format": "alignet-bridge",
            "source": asdict(self.source),
            "target": asdict(self.target),
            "penalty": self.penalty,
            "pairs": self.pairs,
            "measured": asdict(self.measured),
        }
        arrays = {"weights": self.weights, "source_mean": self.source_mean, "target_mean": self.target_mean}
        with whole(Path(file)) as stream:
            np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path | str) -> Self:
        """Read what `save` wrote. Raises IndexFault, or OSError where it cannot be read."""
        try:
            with Path(file).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                about: dict[str, Any] = json.loads(str(archive["about"]))
                arrays = {name: archive[name] for name in ("weights", "source_mean", "target_mean")}
            measured = about["measured"]
            for name in ("documents", "queries", "unchanged"):
                measured[name] = Recall(**measured[name])
            spaces = Space(**about["source"]), Space(**about["target"])
            bridge = cls(
                *spaces, **arrays, penalty=about["penalty"], pairs=about["pairs"], measured=Measured(**measured)
            )
            expected = (bridge.source.size, bridge.target.size)
            if bridge.weights.shape != expected:
                raise ValueError(f"weights {bridge.weights.shape}, expected {expected}")
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise IndexFault(f"{file} is no bridge: {error!r}") from error
        return bridge


def fit(
    source_vectors: ArrayLike, target_vectors: ArrayLike, source: Space, target: Space, *, k: int = 10, seed: int = 0
) -> Bridge:
    """Fit a bridge on pairs: row i of both is the same photo.

    A fifth of the pairs is held out to choose the penalty by squared error, and another fifth to measure; the map is
    then fitted on the other four fifths.

    Args:
        source_vectors: [n, source.size].
        target_vectors: [n, target.size].
        source: space of the first.
        target: space of the second.
        k: neighbours whose recall is measured.
        seed: of the split and the bootstrap.

    Raises:
        ValueError: not the same number, fewer than 50, or too few for `k`.
    """
    x = _scaled(source, source.vectors(source_vectors, source.fingerprint))
    y = _scaled(target, target.vectors(target_vectors, target.fingerprint))
    if len(x) != len(y):
        raise ValueError(f"{len(x)} source vectors and {len(y)} target vectors; expected one pair a photo")
    if len(x) < _FEWEST or len(x) // 5 <= k:
        raise ValueError(f"{len(x)} pairs; expected {max(_FEWEST, 5 * (k + 1))} or more, to fit and to measure")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    measuring, choosing, fitting = np.split(order, [len(x) // 5, 2 * (len(x) // 5)])
    errors = []
    ridge = _Ridge(x[fitting], y[fitting])
    for penalty in PENALTIES:
        weights, x_mean, y_mean = ridge.solve(penalty)
        errors.append(float(np.square((x[choosing] - x_mean) @ weights + y_mean - y[choosing]).sum()))
    penalty = PENALTIES[int(np.argmin(errors))]
    rest = np.concatenate([choosing, fitting])
    last = [part.astype(np.float32) for part in _Ridge(x[rest], y[rest]).solve(penalty)]
    mapped = _scaled(target, ((x[measuring] - last[1]) @ last[0] + last[2]).astype(np.float32))
    measured = _measured(x[measuring], y[measuring], mapped, k, rng)
    return Bridge(source, target, last[0], last[1], last[2], penalty, len(rest), measured)


class _Ridge:
    """Ridge regression with an intercept, in float64; each penalty costs two products."""

    def __init__(self, x: Vectors, y: Vectors) -> None:
        self._x_mean, self._y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
        centred = x - self._x_mean
        values, self._vectors = np.linalg.eigh(centred.T @ centred)
        self._values = np.maximum(values, 0)
        self._projected = self._vectors.T @ (centred.T @ (y - self._y_mean))

    def solve(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(weights, mean of x, mean of y)."""
        added = penalty * self._values.mean() or 1.0  # all x alike: no direction, so any penalty gives zeros
        return self._vectors @ (self._projected / (self._values + added)[:, None]), self._x_mean, self._y_mean


def neighbours(queries: Vectors, documents: Vectors, k: int) -> NDArray[np.intp]:
    """Row i: the `k` documents other than i with the largest dot product with query i, the best first."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(found: NDArray[np.intp], truth: NDArray[np.intp]) -> NDArray[np.float64]:
    """Of each row, the share of the truth that was found."""
    return np.array([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


def interval(values: NDArray[np.float64], rng: np.random.Generator) -> Recall:
    """Mean, with the 95 % percentile bootstrap over the values."""
    means = rng.choice(values, (_RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Recall(float(values.mean()), float(low), float(high))


def _measured(x: Vectors, y: Vectors, mapped: Vectors, k: int, rng: np.random.Generator) -> Measured:
    truth = neighbours(y, y, k)
    sides = {"documents": (y, mapped), "queries": (mapped, y), "unchanged": (x, x)}
    recalls = {name: interval(recall(neighbours(*pair, k), truth), rng) for name, pair in sides.items()}
    spread = float(np.square(y - y.mean(0)).sum())
    explained = 1 - float(np.square(mapped - y).sum()) / spread if spread else 0.0
    return Measured(photos=len(x), k=k, explained=explained, **recalls)


def _scaled(space: Space, vectors: Vectors) -> Vectors:
    # Qdrant and the FAISS files keep only the direction where nothing else is compared.
    return unit(vectors) if space.similarity == "cosine" else vectors


class Bridged:
    """An index searched across a bridge.

    Either the index holds mapped documents (its space is `bridge.space`): it then answers queries of the bridge's
    target. Or it holds true vectors of the target: it then answers queries of the source, which are mapped.

    Raises:
        WrongSpace: the index is neither.
    """

    def __init__(self, index: Index, bridge: Bridge) -> None:
        self._index, self._bridge = index, bridge
        if index.space.fingerprint == bridge.space.fingerprint:
            self.space = bridge.target
        elif index.space.fingerprint == bridge.target.fingerprint:
            self.space = bridge.source
        else:
            raise WrongSpace(
                f"{index.place} holds {index.space.fingerprint!r}; this bridge serves an index of its target "
                f"{bridge.target.fingerprint!r}, or of documents that it mapped ({bridge.space.fingerprint!r})"
            )

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """As `Index.search`, with queries of `self.space`."""
        found = self.space.vectors(vectors, fingerprint)
        mark = self._index.space.fingerprint
        if self.space is self._bridge.source:
            found = self._bridge.apply(found, fingerprint)
        return self._index.search(found, k, mark)


def map_documents(source: Index, bridge: Bridge, target: Index) -> int:
    """Write the vectors of an index, mapped, to one of `bridge.space`; how many. Needs no photos and no service.

    Raises:
        WrongSpace: `source` is not of the bridge's source, or `target` not of `bridge.space`.
    """
    bridge.source.same_as(source.space, "the bridge's source")
    target.space.same_as(bridge.space, target.place)
    keys = [entry.sha256 for entry in source.entries()]
    for start in range(0, len(keys), _BLOCK):
        entries: Sequence[Entry]
        entries, vectors = source.fetch(keys[start : start + _BLOCK])
        if entries:
            target.upsert(entries, bridge.apply(vectors, source.space.fingerprint), bridge.space.fingerprint)
    target.flush()
    return len(keys)
