"""What protocols are given and what they return; plain values that JSON can hold, so that results can be kept."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from training.evaluate import Estimate
from training.evaluation.subjects import Features, Subject, Vectors
from training.images import Images

PEOPLE = "people"
"""Model of the rows that say what people themselves reach."""
SEEN = "†"
"""Mark of figures on concepts that the model was trained on."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Of a whole evaluation.

    Attributes:
        seed: of all that is drawn.
        repetitions: bootstrap samples of every interval.
        triplets: of concepts, drawn for the comparison with VICE.
        draws: photos of each concept that RSA averages over.
        classifier: the readout of frozen features, see `training.evaluation.transfer`.
    """

    seed: int = 0
    repetitions: int = 200
    triplets: int = 20_000
    draws: int = 5
    classifier: Literal["ridge", "logistic"] = "ridge"

    def __post_init__(self) -> None:
        for name in ("repetitions", "triplets", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")


@dataclass(frozen=True)
class Setting:
    """What a protocol works on.

    Attributes:
        data: folder that --data names.
        subjects: the models; the first is the reference, the "before".
        features: of any images by any subject.
        constants: of the evaluation.
        held_out: concept numbers to judge, or None for all that have photos.
        differences: (other, reference) for every difference that is reported; None for all others to the first.
        wordnet: folder of WordNet's files, or None.
    """

    data: Path
    subjects: tuple[Subject, ...]
    features: Features
    constants: Constants
    held_out: NDArray[Any] | None = None
    differences: tuple[tuple[str, str], ...] | None = None
    wordnet: Path | None = None

    def vectors(self, images: Images) -> dict[str, Vectors]:
        """Every subject's features [n, d] of the images, by name."""
        return {subject.name: self.features.of(subject, images) for subject in self.subjects}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(other, reference) for every difference `other - reference` that is reported."""
        if self.differences is not None:
            return list(self.differences)
        return [(subject.name, self.subjects[0].name) for subject in self.subjects[1:]]


@dataclass(frozen=True)
class Row:
    """One figure of one model, or of the difference of two.

    Attributes:
        figure: what is measured.
        model: a subject's name, `people`, or `B - A`.
        estimate: value and interval.
        group: level, category, data set; empty where the figure has no parts.
        setting: kernel, tie rule, shots: what the figure depends on.
        unit: fraction, Spearman, nats...
        seen: of concepts that a model of the row was trained on, or may have been: no evidence for new ones.
    """

    figure: str
    model: str
    estimate: Estimate
    group: str = ""
    setting: str = ""
    unit: str = "fraction"
    seen: bool = False

    @property
    def is_difference(self) -> bool:
        """Whether the row is of two models."""
        return " - " in self.model

    def to_json(self) -> dict[str, Any]:
        """Flat, as report.csv has it."""
        out = asdict(self)
        return {k: v for k, v in out.items() if k != "estimate"} | asdict(self.estimate)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """What `to_json` gave."""
        names = ("value", "low", "high", "n")
        rest = {k: v for k, v in values.items() if k not in names}
        return cls(**rest, estimate=Estimate(**{k: values[k] for k in names}))


@dataclass(frozen=True)
class Plot:
    """What to draw, without how.

    Attributes:
        kind: `bars` (of rows: keys figure, setting), `lines` (series with x, y), `map` (points with colours),
            `heatmap` (a matrix for each model), `pairs` (photos side by side).
        title: above it.
        values: what `training.evaluation.plots` reads for the kind.
    """

    kind: Literal["bars", "lines", "map", "heatmap", "pairs"]
    title: str
    values: dict[str, Any]


@dataclass
class Result:
    """What a protocol found.

    Attributes:
        rows: figures.
        notes: sentences that a reader of the figures must know, counts of what was left out among them.
        plots: what to draw.
    """

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plots = [asdict(plot) for plot in self.plots]
        return {"rows": [row.to_json() for row in self.rows], "notes": self.notes, "plots": plots}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Result":
        """What `to_json` gave."""
        rows = [Row.from_json(row) for row in values["rows"]]
        return cls(rows, list(values["notes"]), [Plot(**plot) for plot in values["plots"]])


class NotHere(ValueError):
    """The data folder lacks what a protocol needs, or a model cannot take part; the message says what."""
