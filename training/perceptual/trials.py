"""Two-alternative judgments: which of two images looks more like a third. One type for every data set.

A trial is (reference, left, right) with the share of people who chose the right one. Distances are 1 - cosine; the
right one is chosen where its distance is smaller. What a tie earns is the data set's own rule and stands in every
result.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from training.images import Images, require_present

SPLITS = ("train", "val", "test")

BLOCK = 4096
"""Trials whose vectors are gathered at once."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Two-alternative judgments.

    Attributes:
        source: what an error message calls them.
        images: of all trials.
        index: [t, 3] rows of reference, left and right image.
        votes: [t] share of people who found the right image nearer to the reference.
        split: [t] `train`, `val` or `test`.
        kind: [t] what sort of trial it is, for figures of their own.
        judgment: [t] number of the judgment that a trial is part of. A judgment is right if all its trials are; an
            odd-one-out choice is two trials.
        unit: [t] what a new experiment would draw anew; intervals resample these.
        graded: a trial earns the share of people who chose as the model did (BAPPS) instead of 1 or 0.
        tie: what equal distances earn.
    """

    source: str
    images: Images
    index: NDArray[np.int64]
    votes: NDArray[np.float64]
    split: NDArray[np.str_]
    kind: NDArray[np.str_]
    judgment: NDArray[np.int64]
    unit: NDArray[np.int64]
    graded: bool = False
    tie: float = 0.5

    def __post_init__(self) -> None:
        t = len(self.index)
        if not t:
            raise ValueError(f"{self.source} has no trial.")
        if self.index.shape != (t, 3) or self.index.min() < 0 or self.index.max() >= len(self.images):
            raise ValueError(f"{self.source}: an index {self.index.shape} outside 0..{len(self.images) - 1}.")
        for name in ("votes", "split", "kind", "judgment", "unit"):
            if getattr(self, name).shape != (t,):
                raise ValueError(f"{self.source}: {name} is {getattr(self, name).shape}; expected ({t},).")
        bad = ~((self.votes >= 0) & (self.votes <= 1))  # NaN is neither
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{self.source}, trial {row}: votes {self.votes[row]}; expected a share from 0 to 1.")
        if unknown := sorted(set(self.split.tolist()) - set(SPLITS)):
            raise ValueError(f"{self.source}: splits {unknown}; expected {', '.join(SPLITS)}.")

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: NDArray[Any]) -> "Trials":
        """The trials at these positions, or where a mask [t] is true; all images stay.

        Raises:
            ValueError: none is left.
        """
        names = ("index", "votes", "split", "kind", "judgment", "unit")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def of_split(self, split: str) -> "Trials":
        """The trials of one split. Raises ValueError naming the splits there are."""
        inside = self.split == split
        if not inside.any():
            raise ValueError(f"{self.source} has no trial of the split {split!r}; it has {sorted(set(self.split))}.")
        return self.take(inside)

    def decided(self) -> "Trials":
        """The trials in which one alternative has more votes than the other: the others teach and judge nothing.

        Raises:
            ValueError: every trial is a tie.
        """
        clear = self.votes != 0.5
        if not clear.any():
            where = ", ".join(sorted(set(self.split.tolist())))
            raise ValueError(
                f"{self.source}: people tie in all {len(self)} trials of the split {where}; expected some with more "
                "votes for one side, since a tie teaches nothing and judges no model."
            )
        return self.take(clear)

    @property
    def rule(self) -> str:
        """How trials are scored, in words."""
        earns = "the share of people who chose alike" if self.graded else "1 where the model chooses as most people did"
        return f"a trial earns {earns}; equal distances earn {self.tie:g}"


def present(trials: Trials) -> Trials:
    """The same trials. Raises ValueError where an image is known to be missing, counting them."""
    require_present(trials.images, trials.source)
    return trials


def distances(vectors: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 - cosine between the reference and each alternative, [t, 2].

    Args:
        vectors: [n, d] of all images.
        index: [t, 3] rows.
    """
    out = np.empty((len(index), 2))
    for start in range(0, len(index), BLOCK):
        rows = index[start : start + BLOCK]
        out[start : start + BLOCK] = 1 - triplets.pair_similarities(vectors[rows].astype(np.float64), "cosine")[:, :2]
    return out


def scores(trials: Trials, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each trial earns, [t], by the rule of its data set.

    Args:
        distance: [t, 2] from the reference to the left and the right image.
    """
    share = trials.votes if trials.graded else np.where(trials.votes >= 0.5, 1.0, 0.0)
    chosen = np.where(distance[:, 1] < distance[:, 0], share, 1 - share)
    return np.where(distance[:, 0] == distance[:, 1], trials.tie, chosen)
