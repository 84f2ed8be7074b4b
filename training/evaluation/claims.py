"""What the paper says alignment does, and whether these models do it: the sign of a difference and its interval.

Claims are of Muttenthaler et al. 2025 ("Aligning machine and human visual representations across abstraction
levels"), its tables 1 to 3 and supplement. They speak of models by role: `base` before anything, `aligned` the student
of an aligned teacher (AligNet), `unaligned` the same student of the teacher without its transform (UnAligNet), and
`transform-only` the base model's features by a transform learned on human judgments (UD). A report whose models have
these names, and whose differences these are, gets a table of them; what follows in parentheses tells two models of
one role apart, as `aligned (150 steps)`. Only the sign is compared: other networks, photos and measures have other
sizes. Where a model was trained on the concepts that it is judged on, nothing is claimed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.evaluation.result import Row

SAME, OPPOSITE, OPEN = "as in the paper", "OPPOSITE to the paper", "not told apart from zero"
UNTOLD = "of concepts trained on: not counted"


@dataclass(frozen=True)
class Claim:
    """One statement, and the figure that answers to it.

    Attributes:
        says: the statement, in words, with the paper's own numbers where it has them.
        figure, setting: of the row.
        difference: `a - b`, of roles.
        sign: 1 where the paper has a above b, -1 below.
        group: of the row; None for every group of the figure.
    """

    says: str
    figure: str
    setting: str
    difference: str
    sign: int
    group: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim and a row that it was compared with."""

    claim: Claim
    row: Row

    @property
    def outcome(self) -> str:
        """Whether the interval of the difference lies on the paper's side of zero, on the other, or on both."""
        if self.row.seen:
            return UNTOLD
        low, high = sorted((self.claim.sign * self.row.estimate.low, self.claim.sign * self.row.estimate.high))
        return SAME if low > 0 else OPPOSITE if high < 0 else OPEN


VICE = "agreement with VICE", "dot, strict"
SLOPE = "regression of the change", "mixed effects"
CLAIMS = (
    Claim("Alignment finds people's odd one out (DINOv2-B 51.2 to 62.1 %).", *VICE, "aligned - base", 1),
    Claim("Distillation without human judgments does less (49.5 %).", *VICE, "aligned - unaligned", 1),
    Claim("For DINOv2-B it even does harm (51.2 to 49.5 %).", *VICE, "unaligned - base", -1),
    Claim("The transform alone helps too (60.5 %).", *VICE, "transform-only - base", 1),
    Claim("Training the network goes beyond the transform.", *VICE, "aligned - transform-only", 1),
    Claim("Similarities come closer to people's (RSA).", "RSA with VICE", "pearson", "aligned - base", 1),
    Claim("More so than without judgments.", "RSA with VICE", "pearson", "aligned - unaligned", 1),
    Claim("The model is unsure where people are.", "entropy correlation with VICE", "dot", "aligned - base", 1),
    Claim("One-shot classification gets better.", "accuracy", "1 shot, ridge", "aligned - base", 1),
    Claim(
        "Most of that is the teacher; judgments add a little.", "accuracy", "1 shot, ridge", "aligned - unaligned", 1
    ),
    Claim("So does ten-shot.", "accuracy", "10 shots, ridge", "aligned - base", 1),
    Claim("All four BREEDS shifts get easier.", "accuracy under shift", "linear, ridge", "aligned - base", 1),
    Claim(
        "Photos of one class move together (-1.11 for DINOv2-B).",
        *SLOPE,
        "aligned - base",
        -1,
        "same class (intercept)",
    ),
    Claim("Of one basic category a little less (+.200).", *SLOPE, "aligned - base", 1, "same basic"),
    Claim("Of one superordinate category less still (+.633).", *SLOPE, "aligned - base", 1, "same superordinate"),
    Claim("Unrelated photos move apart (+1.402).", *SLOPE, "aligned - base", 1, "different"),
    Claim("Without judgments the order is the wrong way round (ViT-B).", *SLOPE, "unaligned - base", -1, "different"),
    Claim(
        "Last blocks tell categories apart better.", "separation by layer", "cosine", "aligned - base", 1, "block 12"
    ),
)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every claim with each row that answers to it, in the order of the claims."""
    return [
        Verdict(claim, row)
        for claim in CLAIMS
        for row in rows
        if (row.figure, row.setting, _roles(row.model)) == (claim.figure, claim.setting, claim.difference)
        and claim.group in (None, row.group)
    ]


def _roles(model: str) -> str:
    """`aligned (150 steps) - base` to `aligned - base`."""
    return " - ".join(name.partition(" (")[0] for name in model.split(" - "))
