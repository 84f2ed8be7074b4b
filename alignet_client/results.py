"""What the clients give back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignet_client.errors import ServiceProblem

SpaceName = Literal["aligned", "base"]
Kernel = Literal["dot", "cosine", "pearson"]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Embeddings:
    """Vectors of the images that have one.

    Attributes:
        vectors: [n, d] float32, a row for each of `indices`.
        indices: [n], the positions of these images in what was given, ascending.
        faults: what is wrong with the others; each has `index`, `image`, `code` and `detail`.
        fingerprint: of the space; store it with the vectors, and compare only vectors of the same. "" if no image
            was sent.
        model: name of the model; "" if no image was sent.
        space: `aligned` or `base`.
        normalized: whether each vector has length 1.
    """

    vectors: NDArray[np.float32]
    indices: NDArray[np.intp]
    faults: list[ServiceProblem]
    fingerprint: str
    model: str
    space: str
    normalized: bool


@dataclass(frozen=True)
class SharedDimension:
    """One named dimension that the most similar pair has in common; `share` is of their dot product."""

    name: str
    product: float
    share: float


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Explanation:
    """Why an image is the odd one.

    Attributes:
        log_probability: ln p(odd_one_out) of the whole images.
        maps: [3, rows, columns]: for the three images, in the order of the triplet, the drop of that with a place
            covered; above 0, what is there speaks for the answer.
        boxes: [3, rows, columns, 4]: left, top, right, bottom of each place, in pixels of the photo after its EXIF
            orientation.
        shared: what the most similar pair has in common; None unless the model names the dimensions of the space.
        method: in words.
    """

    log_probability: float
    maps: NDArray[np.float64]
    boxes: NDArray[np.float64]
    shared: list[SharedDimension] | None
    method: str


@dataclass(frozen=True)
class Judgment:
    """One judged triplet.

    Attributes:
        triplet: positions in what was given.
        odd_one_out: one of them; None where abstained.
        abstained: why: `tie`, `margin` or `entropy`.
        probabilities: of each image of the triplet being the odd one.
        similarities: of the pairs 01, 02, 12.
        entropy: of the probabilities, in nats.
        entropy_normalized: entropy / ln 3; 0 certain, 1 undecided.
        margin: largest minus second-largest probability.
        explanation: if it was asked for, and there is an answer.
    """

    triplet: tuple[int, int, int]
    odd_one_out: int | None
    abstained: str | None
    probabilities: tuple[float, float, float]
    similarities: tuple[float, float, float]
    entropy: float
    entropy_normalized: float
    margin: float
    explanation: Explanation | None = None


@dataclass(frozen=True)
class OddOneOut:
    """Answer to which of three is the odd one; `results` in the order of the triplets."""

    model: str
    space: str
    fingerprint: str
    similarity: str
    temperature: float
    calibrated: bool
    tie_rule: str
    results: list[Judgment]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Similarities:
    """Similarities [n, m] float32: a row a query, a column a candidate; all pairs where one list was given."""

    model: str
    space: str
    fingerprint: str
    kernel: str
    matrix: NDArray[np.float32]


@dataclass(frozen=True)
class ModelSummary:
    """One served model."""

    name: str
    description: str
    alignment: str
    fingerprint: str


@dataclass(frozen=True)
class SpaceCard:
    """One space of a model.

    Attributes:
        size: numbers of a vector.
        similarity: the kernel that the space was fitted with.
        temperature: of its odd-one-out probabilities.
        calibrated: whether that was fitted to people's choices.
        fingerprint: of vectors as the model gives them.
        fingerprint_normalized: of vectors scaled to length 1.
    """

    size: int
    similarity: str
    temperature: float
    calibrated: bool
    fingerprint: str
    fingerprint_normalized: str


@dataclass(frozen=True)
class ModelCard(ModelSummary):
    """The model card; `raw` has all that the service says of it."""

    spaces: dict[str, SpaceCard]
    limits: dict[str, float]
    raw: dict[str, Any] = field(repr=False)
