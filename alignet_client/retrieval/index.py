"""What every index has in common: the space of its vectors, what is stored with them, and what it refuses."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignet_client import wire
from alignet_client.errors import AligNetError, UnexpectedReply
from alignet_client.files import content_id
from alignet_client.results import ModelCard

Vectors = NDArray[np.float32]


class IndexFault(AligNetError):
    """An index is missing, damaged, in use elsewhere, or none that this package made."""


class WrongSpace(AligNetError):
    """Vectors of another space than that of the index."""


@dataclass(frozen=True)
class Space:
    """Whose vectors they are, and how they are compared.

    Attributes:
        fingerprint: of the space; vectors are comparable only under one.
        size: numbers of a vector.
        similarity: `dot` or `cosine`, as the model card states it; it decides the engine's operator.
        model: name of the model that gives such vectors.
        name: `aligned` or `base`.
        normalized: whether they are scaled to length 1.
    """

    fingerprint: str
    size: int
    similarity: str
    model: str
    name: str
    normalized: bool = False

    def __post_init__(self) -> None:
        if self.similarity not in ("dot", "cosine"):
            raise ValueError(
                f"space {self.name} of {self.model} is compared by {self.similarity}, which no engine here has; "
                "expected dot or cosine"
            )

    @classmethod
    def of(cls, card: ModelCard, name: str = "aligned", *, normalize: bool = False) -> Self:
        """The space that a model card describes. Raises UnexpectedReply if the model has none of that name."""
        if name not in card.spaces:
            raise UnexpectedReply(f"model {card.name} has no space {name!r}; it has {', '.join(card.spaces)}")
        space = card.spaces[name]
        mark = space.fingerprint_normalized if normalize else space.fingerprint
        return cls(mark, space.size, space.similarity, card.name, name, normalize)

    @classmethod
    def read(cls, text: str, where: str) -> Self:
        """The space that `written` wrote. Raises IndexFault, which names `where`."""
        try:
            stored = json.loads(text)["alignet"]
            return cls(**{one.name: stored[one.name] for one in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise IndexFault(f"{where} says nothing of its space, so it is no index of AligNet ({error!r})") from error

    def written(self) -> str:
        """As JSON, to be stored with the index."""
        return json.dumps({"alignet": asdict(self)})

    def vectors(self, given: ArrayLike, fingerprint: str) -> Vectors:
        """`given` as float32 [n, size].

        Raises:
            WrongSpace: `fingerprint` is that of another space.
            ValueError: another shape, or not finite.
        """
        if fingerprint != self.fingerprint:
            raise WrongSpace(
                f"vectors of the space {fingerprint!r} were given; the index holds {self.fingerprint!r} "
                f"({self.name} of {self.model}). Embed with expect_fingerprint, or migrate the index."
            )
        found = wire.matrix(given)
        if found.shape[1] != self.size:
            raise ValueError(f"vectors have {found.shape[1]} numbers; the index holds {self.size}")
        return found

    def same_as(self, wanted: "Space | None", where: str) -> "Space":
        """Itself, the space of an index that is there. Raises WrongSpace if `wanted` is another."""
        if wanted is not None and wanted.fingerprint != self.fingerprint:
            raise WrongSpace(
                f"{where} holds vectors of the space {self.fingerprint!r} ({self.name} of {self.model}), not of "
                f"{wanted.fingerprint!r} ({wanted.name} of {wanted.model}). Choose another place, or migrate it."
            )
        return self


@dataclass(frozen=True)
class Entry:
    """What is stored with a vector: the hash of the photo's content (SHA-256, hex), and what you like, as JSON."""

    sha256: str
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A UUID that follows from the content: to write a photo twice changes nothing."""
        return content_id(self.sha256)


@dataclass(frozen=True)
class Hit:
    """An entry that was found, and its similarity to the query by the space's own measure."""

    entry: Entry
    similarity: float


class Index(Protocol):
    """Vectors of one space, each of one photo's content. Threads may share one."""

    @property
    def place(self) -> str:
        """Where it is, as `open_index` takes it."""

    @property
    def space(self) -> Space:
        """Of all its vectors; stored with the index."""

    def upsert(self, entries: Sequence[Entry], vectors: ArrayLike, fingerprint: str) -> None:
        """Write vectors [n, d], all or none; what has the same content is replaced.

        Raises:
            WrongSpace: they are of another space.
            ValueError: not a vector an entry, another size, or not finite.
        """

    def search(self, vectors: ArrayLike, k: int, fingerprint: str) -> list[list[Hit]]:
        """For each query of [n, d] the up to `k` most similar, the best first.

        Raises:
            WrongSpace: the queries are of another space.
            ValueError: `k` below 1, another size, or not finite.
        """

    def entries(self, sha256s: Sequence[str] | None = None) -> Iterator[Entry]:
        """All entries, or those of these contents that are here; in no order."""

    def fetch(self, sha256s: Sequence[str]) -> tuple[list[Entry], Vectors]:
        """Entries of these contents that are here, and their vectors [n, d]; of a cosine space, of any length."""

    def delete(self, sha256s: Sequence[str]) -> None:
        """Remove these contents; what is not here is no error."""

    def __len__(self) -> int:
        """How many there are."""

    def flush(self) -> None:
        """Make sure that what was written outlives this process."""

    def close(self) -> None:
        """Flush, and give up files and connections."""


def checked(
    space: Space, entries: Sequence[Entry], vectors: ArrayLike, fingerprint: str
) -> tuple[list[Entry], Vectors]:
    """What to write: one row a content, the last given. Raises WrongSpace or ValueError."""
    if not len(entries):
        space.vectors(np.zeros((1, space.size)), fingerprint)
        return [], np.empty((0, space.size), np.float32)
    found = space.vectors(vectors, fingerprint)
    if len(found) != len(entries):
        raise ValueError(f"{len(entries)} entries were given with {len(found)} vectors; expected one each")
    last = {entry.sha256: i for i, entry in enumerate(entries)}
    rows = sorted(last.values())
    return [entries[i] for i in rows], found[rows]


def asked(space: Space, vectors: ArrayLike, k: int, fingerprint: str) -> Vectors:
    """The queries. Raises WrongSpace or ValueError."""
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more")
    return space.vectors(vectors, fingerprint)


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a row of zeros stays one."""
    wide = vectors.astype(np.float64)
    scaled: Vectors = (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)).astype(np.float32)
    return scaled
