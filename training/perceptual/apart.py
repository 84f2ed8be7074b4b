"""What each split of a joint alignment may learn from, so that neither part gives away what the other is judged on.

Trials can be of, or made from, the very photos that have concepts. A photo of a held-out concept must not come back in
a training trial, nor a reported image as a photo of the semantic part. Two images are one photo where their encoded
bytes are equal, whatever folder they lie in. A photo that was scaled or encoded anew is not known again, and neither is
another photo of a held-out concept that is not among the photos: a data set of trials about the same objects, as THINGS
choices are, is not held out by this.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.images import MISSING, Images
from training.perceptual.generated import Distorted
from training.perceptual.trials import Trials
from training.photos import NO_CONCEPT, Photos

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one split learns from and chooses its weights on.

    Attributes:
        rows: of the photos that training sees.
        validation: rows of the photos that choose the weights.
        trials: of all three splits; training sees `train`, `val` chooses the weights, `test` is what it was.
        counts: {"training trials", "validation trials", "photos", "validation photos": {"kept", "left out"}}.
    """

    rows: Rows
    validation: Rows
    trials: Trials
    counts: dict[str, dict[str, int]]


class Apart:
    """Which photos and which trials show the same, found once for all splits."""

    def __init__(self, photos: Photos, trials: Trials) -> None:
        """Read the images whose size in bytes another one has too.

        Args:
            photos: with the concepts.
            trials: two-alternative judgments, with the splits `train`, `val` and `test`.
        """
        self.concept, self.trials = photos.concept, trials
        originals, shown = shown_by(trials)
        self.photo, content = contents((photos, originals))
        self.shown = content[shown]

    def seen(self, held_out: Rows, choosing: Rows) -> Seen:
        """What is left for a split when training, validation and report have no photo in common.

        Args:
            held_out: concepts that are judged at the end.
            choosing: concepts whose photos choose the weights.

        Raises:
            ValueError: no training or validation trial is left, or fewer than three photos of either.
        """
        split, hidden = self.trials.split, self._of(held_out)
        out = {
            "train": self._show(np.concatenate([hidden, self._of(choosing)])) & (split == "train"),
            "val": self._show(hidden) & (split == "val"),
        }
        reported = self.shown[split == "test"].ravel()
        validated = self.shown[(split == "val") & ~out["val"]].ravel()
        given = ~np.isin(self.concept, np.concatenate([held_out, choosing]))
        asked = (self.concept != NO_CONCEPT) & np.isin(self.concept, choosing)
        rows = given & ~np.isin(self.photo, np.concatenate([reported, validated, hidden, self._of(choosing)]))
        validation = asked & ~np.isin(self.photo, np.concatenate([reported, hidden]))
        counts = {
            "training trials": _count(split == "train", ~out["train"]),
            "validation trials": _count(split == "val", ~out["val"]),
            "photos": _count(given, rows),
            "validation photos": _count(asked, validation),
        }
        for name, least in (("training trials", 1), ("validation trials", 1), ("photos", 3), ("validation photos", 3)):
            if counts[name]["kept"] < least:
                raise ValueError(_too_few(self.trials.source, name, counts[name], least))
        kept = self.trials.take(~(out["train"] | out["val"]))
        return Seen(rows=np.flatnonzero(rows), validation=np.flatnonzero(validation), trials=kept, counts=counts)

    def _of(self, concepts: Rows) -> Rows:
        """What the photos of some concepts show."""
        found: Rows = self.photo[np.isin(self.concept, concepts) & (self.concept != NO_CONCEPT)]
        return found

    def _show(self, content: Rows) -> NDArray[np.bool_]:
        """Which trials [t] show any of it."""
        found: NDArray[np.bool_] = np.any(np.isin(self.shown, content), axis=1)
        return found


def shown_by(trials: Trials) -> tuple[Images, Rows]:
    """(images that the trials are of or made from, [t, k] rows of those that each trial shows)."""
    made = trials.images
    if not isinstance(made, Distorted):
        return made, trials.index
    trial = made.rows[trials.index] // 3
    own = made.unit[trial]
    # The partner is opened for the object that is pasted; trials of other kinds have one too, and do not show it.
    return made.images, np.concatenate([own, np.where(made.kind[trial] == "count", made.partner[trial], own)], 1)


def contents(sources: Sequence[Images]) -> list[Rows]:
    """A number for each image of each source, equal where the encoded bytes are equal.

    Images whose size no other has are not read; one that is known to be missing is equal to none.
    """
    size = np.concatenate([images.sizes for images in sources])
    _, group, count = np.unique(size, return_inverse=True, return_counts=True)
    doubtful = (count[group] > 1) & (size != MISSING)
    number = np.arange(len(size))
    first: dict[bytes, int] = {}
    start = 0
    for images in sources:
        for row in np.flatnonzero(doubtful[start : start + len(images)]).tolist():
            digest = hashlib.sha256(images.read(row)).digest()
            number[start + row] = first.setdefault(digest, start + row)
        start += len(images)
    return np.split(number, np.cumsum([len(images) for images in sources])[:-1])


def _count(given: NDArray[np.bool_], kept: NDArray[Any]) -> dict[str, int]:
    left = int((given & kept).sum())
    return {"kept": left, "left out": int(given.sum()) - left}


def _too_few(source: str, name: str, count: dict[str, int], least: int) -> str:
    total = count["kept"] + count["left out"]
    return (
        f"{source}: {count['kept']} of {total} {name} are left, because the others have a photo in common with "
        f"held-out concepts, reported trials or the other part's validation; expected {least} or more. Make trials "
        "from photos that no concept has, or give fewer of them to `test` (--shares)."
    )
