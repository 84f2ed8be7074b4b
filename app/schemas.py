"""What clients send and get. These models are the validation and the OpenAPI document alike.

Options may come as JSON fields, as multipart form fields, or, with a raw image body, as query
parameters: the same names everywhere.
"""

from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from app.errors import Problem, require_count
from app.settings import Settings
from contract.triplets import Kernel

SpaceName = Literal["aligned", "base"]
Encoding = Literal["float", "base64"]
Measure = Literal["similarity", "distance"]

# Vectors are converted by numpy, a matrix at a time, not number by number here.
Vector = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}},
                {"type": "string", "format": "byte", "description": "base64 of little-endian float32"},
            ]
        }
    ),
]


class Strict(BaseModel):
    """What clients send: unknown fields are refused, and no field is quoted."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, value: Any) -> Any:
        """Of many unknown fields the first alone: pydantic makes an error of each, and one of them is told."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        unknown = next(name for name in value if name not in cls.model_fields)
        return {name: value[name] for name in (*cls.model_fields, unknown) if name in value}


def at_most(what: Literal["images", "vectors", "triplets"]) -> BeforeValidator:
    """Counts a list before its items are looked at; the limit is that of the settings, the context of validation."""

    def count(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list) and isinstance(info.context, Settings):
            require_count(len(value), what, getattr(info.context, f"max_{what}"))
        return value

    return BeforeValidator(count)


# Every list ends at its first wrong item, which is the one that is told: see `app.intake.validate`.


class ImageItem(Strict):
    """One image of a JSON body."""

    image: str = Field(
        description="Encoded file as base64, or as a data URI `data:image/...;base64,...`; or its http(s) URL, "
        "where the service fetches from that origin."
    )


class Options(Strict):
    """Options of every request that embeds or compares."""

    model: str | None = Field(default=None, description="Name of the model; the one served if not given.")
    space: SpaceName = Field(
        default="aligned", description="`base` is the backbone before alignment, from the same pass."
    )
    expect_fingerprint: str | None = Field(
        default=None, description="Refuse with 409 unless answers are in the space with this fingerprint."
    )


class EmbedOptions(Options):
    """Options of /embed."""

    encoding: Encoding = Field(default="float", description="`base64` is little-endian float32, a third of the size.")
    normalize: bool = Field(default=False, description="Scale vectors to length 1 (which is a space of its own).")
    on_error: Literal["fail", "partial"] = Field(
        default="fail",
        description="`partial` answers for the good images of a request, with a problem in the place of each bad one.",
    )


class EmbedRequest(EmbedOptions):
    """JSON body of /embed."""

    images: Annotated[list[ImageItem], FailFast(), at_most("images")] = Field(min_length=1)


class Collection(Strict):
    """Images, or vectors that the client already has."""

    images: Annotated[list[ImageItem] | None, FailFast(), at_most("images")] = Field(default=None, min_length=1)
    vectors: Annotated[list[Vector] | None, at_most("vectors")] = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.images is None) == (self.vectors is None):
            raise ValueError("give either `images` or `vectors`")
        return self


def _integers(value: Any) -> Any:
    # Lax validation would read true as 1 and "2" as 2; a triplet of those is a mistake.
    if isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    raise ValueError("a triplet is a list of three integers")


def _whole_numbers(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Lists of three integers are triplets as they stand; looking at each by itself would take five times as long."""
    lists_of_three = isinstance(value, list) and set(map(type, value)) == {list} and set(map(len, value)) == {3}
    return value if lists_of_three and set(map(type, chain.from_iterable(value))) == {int} else check(value)


Triplet = Annotated[tuple[int, int, int], BeforeValidator(_integers)]
Triplets = Annotated[list[Triplet] | None, FailFast(), WrapValidator(_whole_numbers), at_most("triplets")]


class OddOneOutOptions(Options):
    """Options of /odd-one-out."""

    triplets: Triplets = Field(
        default=None,
        min_length=1,
        description="Positions in `images` or `vectors`; [[0, 1, 2]] if exactly three are given.",
    )
    min_margin: float | None = Field(
        default=None, ge=0, le=1, description="Abstain where the top probability leads by less than this."
    )
    max_entropy: float | None = Field(
        default=None, ge=0, le=1, description="Abstain where the normalised entropy is above this."
    )
    explain: bool = Field(
        default=False,
        description="Show which parts of the images made the answer: slow, 147 more images a triplet, images only.",
    )


class OddOneOutRequest(OddOneOutOptions, Collection):
    """JSON body of /odd-one-out."""


class SimilarityOptions(Options):
    """Options of /similarity."""

    kernel: Kernel | None = Field(default=None, description="The space's own similarity if not given.")
    measure: Measure = Field(
        default="similarity",
        description="`distance` is 1 - similarity, by cosine (perceptual models: DreamSim's) or pearson; 0 is equal.",
    )
    encoding: Encoding = Field(default="float", description="`base64` is little-endian float32, row by row.")


class SimilarityRequest(SimilarityOptions):
    """JSON body of /similarity: all pairs of one collection, or queries against candidates."""

    images: Annotated[list[ImageItem] | None, FailFast(), at_most("images")] = Field(default=None, min_length=1)
    vectors: Annotated[list[Vector] | None, at_most("vectors")] = Field(default=None, min_length=1)
    queries: Collection | None = None
    candidates: Collection | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        collections = (self.images is not None) + (self.vectors is not None)
        sides = (self.queries is not None) + (self.candidates is not None)
        if (collections, sides) not in ((1, 0), (0, 2)):
            raise ValueError("give `images` or `vectors` for all pairs, or both `queries` and `candidates`")
        return self


# --- replies ------------------------------------------------------------------------------------


class Usage(BaseModel):
    """What the request cost."""

    images: int
    unique_images: int


class SpaceReply(BaseModel):
    """Which model and space an answer is in."""

    model: str
    space: SpaceName
    fingerprint: str = Field(description="Compare and store vectors only with vectors of the same fingerprint.")
    usage: Usage


class Embedding(BaseModel):
    """One vector."""

    index: int
    embedding: list[float] | str


class FailedImage(BaseModel):
    """What stands in the place of a vector, with `on_error: partial`."""

    index: int
    error: Problem


class EmbedReply(SpaceReply):
    """Answer of /embed, in the order of the images."""

    size: int
    normalized: bool
    encoding: Encoding
    data: list[Embedding | FailedImage]


class ExplainedImage(BaseModel):
    """What the parts of one image do for the answer."""

    image: int = Field(description="Position in `images`.")
    size: tuple[int, int] = Field(description="Width and height of the photo after its EXIF orientation.")
    map: list[list[float]] = Field(description="By rows: the drop of ln p(odd_one_out) with that place covered.")
    boxes: list[list[tuple[float, float, float, float]]] = Field(
        description="Left, top, right, bottom of each place, in pixels of the photo after its EXIF orientation."
    )


class SharedDimension(BaseModel):
    """One dimension that two images have in common."""

    name: str
    product: float
    share: float = Field(description="Of the pair's dot product.")


class Shared(BaseModel):
    """What the most similar pair has in common."""

    pair: tuple[int, int] = Field(description="Positions in `images`.")
    similarity: float
    dimensions: list[SharedDimension] = Field(description="At most five, the largest product first.")


class Explanation(BaseModel):
    """Why an image is the odd one."""

    odd_one_out: int
    log_probability: float = Field(description="ln p(odd_one_out) of the whole images.")
    grid: tuple[int, int] = Field(description="Rows and columns of the maps.")
    images: list[ExplainedImage] = Field(description="The three of the triplet, in its order.")
    shared: Shared | None = Field(description="Null unless the bundle names the dimensions of the space.")
    method: str


class Judgment(BaseModel):
    """One judged triplet."""

    triplet: tuple[int, int, int]
    odd_one_out: int | None = Field(description="Position in `images` or `vectors`; null where abstained.")
    abstained: Literal["tie", "margin", "entropy"] | None = Field(
        description="Why there is no answer: an exact tie, `min_margin` or `max_entropy`; null if there is one."
    )
    probabilities: tuple[float, float, float] = Field(description="Of each image of the triplet being the odd one.")
    similarities: tuple[float, float, float] = Field(description="Of the pairs 01, 02, 12.")
    entropy: float = Field(description="Of the probabilities, in nats.")
    entropy_normalized: float = Field(description="Entropy divided by ln 3: 0 certain, 1 undecided.")
    margin: float = Field(description="Largest minus second-largest probability.")
    explanation: Explanation | None = Field(
        default=None, description="There if `explain` was asked for; null where abstained."
    )


class OddOneOutReply(SpaceReply):
    """Answer of /odd-one-out, in the order of the triplets."""

    similarity: Kernel
    temperature: float
    calibrated: bool
    tie_rule: str
    results: list[Judgment]


class SimilarityReply(SpaceReply):
    """Answer of /similarity: one row a query, one column a candidate."""

    kernel: Kernel
    measure: Measure
    shape: tuple[int, int]
    encoding: Encoding
    similarities: list[list[float]] | str = Field(description="Distances, where `measure` is `distance`.")


class SpaceCard(BaseModel):
    """One space of a model card."""

    size: int
    similarity: Kernel
    temperature: float
    calibrated: bool
    calibrated_on: str
    fingerprint: str = Field(description="Of vectors as the graph gives them.")
    fingerprint_normalized: str = Field(description="Of vectors scaled to length 1.")


class ModelSummary(BaseModel):
    """One line of /models."""

    name: str
    description: str
    alignment: str
    fingerprint: str


class ModelList(BaseModel):
    """Answer of /models."""

    models: list[ModelSummary]


class AliasedModelList(ModelList):
    """Answer of /models where names stand for several models."""

    aliases: dict[str, dict[str, float]] = Field(description="For each such name, the models and their weights.")


class Memory(BaseModel):
    """What one model takes in this process."""

    graph_bytes: int = Field(description="Of the graph's file.")
    resident_bytes: int | None = Field(
        description="By how much the process grew while the model was opened and warmed; null if Triton has it."
    )


class ModelCard(ModelSummary):
    """Answer of /models/{name}: the manifest's figures, the limits, the fingerprints."""

    created: str
    license: str
    base_model: dict[str, Any]
    training: dict[str, Any]
    precision: str
    tie_rule: str
    pixels: dict[str, Any]
    spaces: dict[str, SpaceCard]
    figures: list[dict[str, Any]]
    parity: dict[str, Any]
    limits: dict[str, float]
    providers: list[str]
    memory: Memory


class AliasWeights(Strict):
    """JSON body that changes an alias; and its answer."""

    weights: dict[str, float] = Field(min_length=1, description="Models and the weights by which they share.")


class Reloaded(BaseModel):
    """Answer of a reload."""

    model: str
    fingerprint: str = Field(description="Of the aligned space, now.")
    previous_fingerprint: str
    changed: bool = Field(description="False if the bundle in the folder is the one that was served already.")


class Health(BaseModel):
    """Answer of the health paths."""

    status: str
