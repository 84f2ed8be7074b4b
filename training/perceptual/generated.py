"""Two-alternative trials with a known answer, made from any images: two distortions of one kind, one stronger.

They are no human judgments. They let the whole path run, and be measured, where no judged set is at hand, and hold
kinds of distortion back to see what is learned beyond them. Nothing is written: a trial's three images are rows of
an `Images`, made when they are read, each a function of (seed, trial) and the photos alone.

Strengths end in whole pixels, blocks, tiles, qualities and colours, so that two near ones can draw one picture, and the
answer would be known of nothing. Such a trial's strengths move apart until there are two pictures, see
`Distorted.read`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.images import Images
from training.perceptual.class_triplets import SHARES, split_images
from training.perceptual.distortions import COUNTS, DISTORTIONS, KINDS, RELATED, pasted
from training.perceptual.trials import SPLITS, Trials

PARTS = ("reference", "left", "right")

TRIES = 8
"""Equal steps in which a trial's strengths move apart, to none and to the strongest, while they draw one picture."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What trials are made.

    Attributes:
        per_image: trials of each image.
        kinds: of distortion.
        held_out: kinds of the test split alone.
        gap: least and largest difference in strength between the two alternatives; of counts, one object at least.
        own_draw: each alternative has a place, field or direction of its own; the answer is then the grade alone, and
            trials are harder. False changes nothing but the strength.
        longest: side that images are shrunk to first, in pixels, the reference too.
        shares: of the images, in training, validation and test.
        seed: of all that is drawn.
    """

    per_image: int = 4
    kinds: tuple[str, ...] = KINDS
    held_out: tuple[str, ...] = ()
    gap: tuple[float, ...] = (0.15, 0.4)
    own_draw: bool = False
    longest: int = 256
    shares: tuple[float, ...] = SHARES
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted({*self.kinds, *self.held_out} - {*KINDS, *RELATED}):
            raise ValueError(f"no kinds of distortion {unknown}; there are {', '.join((*KINDS, *RELATED))}.")
        if not set(self.kinds) - set(self.held_out):
            raise ValueError(f"all kinds {self.kinds} are held out; there is none to train on.")
        if len(self.gap) != 2 or not 0 < self.gap[0] <= self.gap[1] < 0.9:
            raise ValueError(f"gap is {self.gap}; expected two numbers from above 0 to below 0.9, the least first.")
        if self.per_image < 1 or self.longest < 8:
            raise ValueError(f"per_image {self.per_image}, longest {self.longest}; expected at least 1 and 8.")
        if len(self.shares) != len(SPLITS) or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares are {self.shares}; expected {', '.join(SPLITS)}, each above 0, 1 together.")


def generate(images: Images, source: str, config: GeneratorConfig) -> Trials:
    """Trials of every image; an image is in one split only, and `kind` is the kind of distortion.

    Args:
        images: to distort.
        source: what an error message calls them.
        config: what trials are made.

    Raises:
        ValueError: too few images for three splits.
    """
    n = len(images)
    split = split_images(n, config.seed, config.shares)
    if missing := sorted(set(SPLITS) - set(split.tolist())):
        raise ValueError(f"{source}: {n} images leave none for {', '.join(missing)}; give more of them.")
    rng = np.random.default_rng([config.seed, 1])
    unit = np.repeat(np.arange(n), config.per_image)
    t = len(unit)
    everything = tuple(dict.fromkeys((*config.kinds, *config.held_out)))
    taught = tuple(kind for kind in everything if kind not in config.held_out)
    drawn = rng.random(t)
    testing = split[unit] == "test"
    kind = np.where(
        testing,
        np.array(everything)[(drawn * len(everything)).astype(int)],
        np.array(taught)[(drawn * len(taught)).astype(int)],
    )
    gap = rng.uniform(config.gap[0], config.gap[1], size=t)
    gap[kind == "count"] = np.maximum(gap[kind == "count"], 1 / COUNTS)
    weak = rng.uniform(0.05, 1 - gap)
    right = rng.random(t) < 0.5  # is the weaker one on the right?
    strong = weak + gap
    strength = np.stack([np.zeros(t), np.where(right, strong, weak), np.where(right, weak, strong)], 1)
    # The object that is pasted comes out of an image of the same split.
    partner = np.empty(t, np.int64)
    for name in SPLITS:
        own = np.flatnonzero(split == name)
        inside = split[unit] == name
        partner[inside] = rng.choice(own, int(inside.sum()))
    # The reference is the image itself in all trials but those about counts: one row of it serves them all.
    index = np.arange(3 * t).reshape(t, 3)
    plain = np.flatnonzero(kind != "count")
    _, first, own = np.unique(unit[plain], return_index=True, return_inverse=True)
    index[plain, 0] = 3 * plain[first[own]]
    rows, index = np.unique(index, return_inverse=True)
    return Trials(
        source=source,
        images=Distorted(images, rows, unit, partner, kind, strength, config),
        index=index.reshape(t, 3),
        votes=right.astype(np.float64),
        split=split[unit],
        kind=kind,
        judgment=np.arange(t),
        unit=unit,
    )


@dataclass(frozen=True)
class Distorted:
    """The images of generated trials; an `Images`.

    Attributes:
        images: that are distorted.
        rows: [m] what each image is: 3t, 3t + 1, 3t + 2 is the reference, the left and the right one of trial t.
        unit, partner: [t] rows of the image of each trial, and of the one that an object is cut out of.
        kind: [t] of distortion.
        strength: [t, 3] of reference, left, right.
        config: the rest.
    """

    images: Images
    rows: NDArray[np.int64]
    unit: NDArray[np.int64]
    partner: NDArray[np.int64]
    kind: NDArray[np.str_]
    strength: NDArray[np.float64]
    config: GeneratorConfig

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> Sequence[str]:
        """All that the pixels are made of: two sets of trials share a name only where they share the image."""
        own, config = self.images.names, self.config
        how = f"{config.seed}-{config.longest}{'-own' if config.own_draw else ''}"
        out = []
        for trial, part in zip(*self._parts(), strict=True):
            kind, strength = self.kind[trial], self.strength[trial, part]
            other = f"-{own[self.partner[trial]]}" if kind == "count" else ""
            out.append(f"{own[self.unit[trial]]}#{trial}-{kind}-{PARTS[part]}-{strength:.6f}{other}-{how}")
        return out

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Encoded bytes of the image itself."""
        return self.images.sizes[self.unit[self.rows // 3]]

    @property
    def labels(self) -> Sequence[str] | None:
        """Of the image itself."""
        own = self.images.labels
        return None if own is None else [own[image] for image in self.unit[self.rows // 3].tolist()]

    def where(self, row: int) -> str:
        """See `Images`."""
        trial, part = divmod(int(self.rows[row]), 3)
        return f"{PARTS[part]} of trial {trial}, {self.kind[trial]} of {self.images.where(int(self.unit[trial]))}"

    def read(self, row: int) -> bytes:
        """The image of a row as PNG, which loses nothing.

        Alternatives are drawn at the strengths of their trial, or, where these draw one picture, at the next of `TRIES`
        pairs farther apart that draw two.

        Raises:
            ValueError: the photo is too plain or too small for its kind: every pair draws one picture.
        """
        trial, part = divmod(int(self.rows[row]), 3)
        sources = self._sources(trial)
        if not part:
            image = self._drawn(trial, part, float(self.strength[trial, 0]), sources)
        elif trial in self._settled:
            image = self._drawn(trial, part, self._settled[trial][part - 1], sources)
        else:
            image = self._alternatives(trial, sources)[part - 1]
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=0)  # it is decoded at once: nothing is gained by packing it
        return out.getvalue()

    @cached_property
    def _settled(self) -> dict[int, tuple[float, float]]:
        """Strengths of left and right, of trials that were read: threads that settle one together settle it alike."""
        return {}

    def _alternatives(self, trial: int, sources: Sequence[Image.Image]) -> list[Image.Image]:
        """The left and the right image, which are two pictures. Raises ValueError, see `read`."""
        drawn = self.strength[trial, 1:]
        end = (drawn == drawn.max()).astype(np.float64)
        for k in range(TRIES + 1):
            left, right = (drawn + (end - drawn) * k / TRIES).tolist()
            own = [self._drawn(trial, part, grade, sources) for part, grade in ((1, left), (2, right))]
            # Where each has a draw of its own, they differ in it; that their grades differ, equal draws show.
            graded = [self._drawn(trial, 0, grade, sources) for grade in (left, right)] if self.config.own_draw else own
            if not (_alike(*own) or _alike(*graded)):
                self._settled[trial] = (left, right)
                return own
        raise ValueError(
            f"{self.images.where(int(self.unit[trial]))} is the same picture after {self.kind[trial]} of any strength "
            f"(trial {trial}). It is too plain, or with its longest side shrunk to {self.config.longest} pixels too "
            "small: leave the photo or the kind out, or give a larger longest."
        )

    def _drawn(self, trial: int, part: int, strength: float, sources: Sequence[Image.Image]) -> Image.Image:
        """One image of a trial, by the draws of that part."""
        kind = str(self.kind[trial])
        rng = np.random.default_rng([self.config.seed, 2, trial, part if self.config.own_draw else 0])
        if kind == "count":
            return pasted(sources[0], sources[1], strength, rng)
        return DISTORTIONS[kind](sources[0], strength, rng) if strength else sources[0]

    def _sources(self, trial: int) -> list[Image.Image]:
        """The photo of a trial and, where objects are counted, the one that they are cut out of."""
        rows = [self.unit[trial], *([self.partner[trial]] if self.kind[trial] == "count" else [])]
        return [self._open(int(row)) for row in rows]

    def _parts(self) -> tuple[list[int], list[int]]:
        """(trial of each row, which of `PARTS` it is)."""
        trial, part = np.divmod(self.rows, 3)
        return trial.tolist(), part.tolist()

    def _open(self, row: int) -> Image.Image:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(self.images.read(row)))).convert("RGB")
        image.thumbnail((self.config.longest, self.config.longest), Image.Resampling.BICUBIC)
        return image


def _alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images are one picture; a crop is as large as what it shows."""
    if one.size != other.size:
        one = one.resize(other.size, Image.Resampling.BICUBIC)
    return one.tobytes() == other.tobytes()
