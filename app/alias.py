"""A name that stands for several models by weight, so that a new one can be rolled out to some clients first."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Alias:
    """Models and their weights, in order.

    Raises:
        ValueError: a name that no client could ask for, a weight that is negative or not finite, or none above 0.
    """

    name: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check what was given."""
        for name in (self.name, *self.weights):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name: expected 1 to 64 letters, digits, '.', '_' or '-'")
        given = self.weights.values()
        if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not 0 < sum(given) < math.inf:
            raise ValueError(f"the weights of {self.name!r} must be numbers from 0, not all of them 0")

    @classmethod
    def parse(cls, text: str) -> "Alias":
        """`NAME=MODEL:WEIGHT,MODEL:WEIGHT`. Raises ValueError."""
        name, equals, rest = text.partition("=")
        weights: dict[str, float] = {}
        for share in rest.split(","):
            model, colon, weight = share.strip().partition(":")
            if not equals or not colon or model in weights:
                raise ValueError(f"{text!r} is no alias; expected NAME=MODEL:WEIGHT,MODEL:WEIGHT")
            weights[model] = float(weight)
        return cls(name.strip(), weights)

    def model(self, client: bytes) -> str:
        """The model for a client; the same for the same key, while the weights are.

        Where the weight of the last one grows, no client goes back to one before it. Only a digest of the key
        is looked at, another one for each alias: who is first in one roll-out is not first in all of them.
        """
        digest = hashlib.sha256(self.name.encode() + b"\0" + client).digest()
        point = int.from_bytes(digest[:8]) / 2**64 * sum(self.weights.values())
        chosen = ""
        for name, weight in self.weights.items():
            chosen = name if weight else chosen
            point -= weight
            if weight and point < 0:
                break
        return chosen
