"""Client of AligNet Serve: `Client`, `AsyncClient`, and the command `alignet`. Needs httpx2 and numpy."""

from alignet_client.aio import AsyncClient
from alignet_client.client import Client
from alignet_client.errors import (
    AligNetError,
    BadImage,
    BadRequest,
    ConnectionFailed,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    ServiceProblem,
    SpaceMismatch,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnexpectedReply,
)
from alignet_client.results import (
    Embeddings,
    Explanation,
    Judgment,
    ModelCard,
    ModelSummary,
    OddOneOut,
    SharedDimension,
    Similarities,
    SpaceCard,
)
from alignet_client.retrying import Retries

__all__ = [
    "AligNetError",
    "AsyncClient",
    "BadImage",
    "BadRequest",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Embeddings",
    "Explanation",
    "Judgment",
    "ModelCard",
    "ModelSummary",
    "NotFound",
    "OddOneOut",
    "Overloaded",
    "Retries",
    "ServiceProblem",
    "SharedDimension",
    "Similarities",
    "SpaceCard",
    "SpaceMismatch",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnexpectedReply",
]
