"""Which triplet is asked next: mostly where the model is least sure of its answer.

A trial is drawn in one of four ways, by the shares of the study:

    unsure    of `candidates` random triplets that nobody has judged, the one of the highest entropy
    explore   a random triplet that nobody has judged
    repeat    a random one of those that others have judged, and this participant has not; fewer than
              `responses` times each
    obvious   two views of one photo, and another photo that the model finds unlike it: catch trials and practice

Entropy is that of the service's own probabilities (`contract.triplets`), in nats. It is high where the three photos
are equally alike, and where all three are unlike; people disagree there too, so a share of exploration and of repeats
is needed to tell one from the other. Everything follows from the generator that is given.
"""

import itertools
import math
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.judging.study import Study
from contract import triplets
from contract.manifest import Space

Kind = Literal["practice", "main", "catch"]
Source = Literal["unsure", "explore", "repeat", "obvious"]
Key = tuple[int, int, int]

OTHERS = 30
"""Random photos of which the least alike becomes the odd one of an obvious trial."""
TRIES = 4
"""Rounds in which random triplets are looked for that have not been judged."""
COUNTED = 100_000
"""Triplets that are all looked through if it must be: where photos are few, chance does not find the last ones."""
WHOLE, PART = 0, 1
"""Views of a photo: all of it, or its middle."""


@dataclass(frozen=True)
class Chosen:
    """What a trial shows, from left to right.

    Attributes:
        items: numbers of the photos.
        views: WHOLE or PART, of each.
        source: how it was drawn.
        probabilities: of each being the odd one, by the model; None in an obvious trial, which shows a photo twice.
        entropy: of them, in nats.
        expected: position of the odd one where it is obvious.
    """

    items: Key
    views: tuple[int, int, int]
    source: Source
    probabilities: tuple[float, float, float] | None = None
    entropy: float | None = None
    expected: int | None = None


class NoneLeft(LookupError):
    """Every triplet has been judged as often as the study wants, or there are too few photos."""


def kinds(study: Study, seed: int) -> list[Kind]:
    """The kinds of one participant's trials, in order.

    Practice comes first. The others are cut into as many pieces as there are catch trials, with one in each, so
    that attention is checked from beginning to end.
    """
    rng = np.random.default_rng([study.seed, seed])
    catches = study.catch_trials
    total = study.trials + catches
    out: list[Kind] = ["main"] * total
    edges = [total * i // catches for i in range(catches + 1)] if catches else []
    for start, end in itertools.pairwise(edges):
        out[int(rng.integers(start, end))] = "catch"
    practice: list[Kind] = ["practice"] * study.practice
    return practice + out


class Chooser:
    """Draws triplets of photos.

    Args:
        items: [n] numbers of the photos that can be shown.
        vectors: [n, d], one a photo, in the space that chooses.
        space: its similarity and temperature.
        study: shares and counts.

    Raises:
        NoneLeft: fewer than three photos.
    """

    def __init__(self, items: NDArray[np.int64], vectors: NDArray[np.floating], space: Space, study: Study) -> None:
        if len(items) < 3:
            raise NoneLeft(f"{len(items)} photos can be shown; a triplet needs three.")
        self.items = items
        self._vectors = np.asarray(vectors, np.float64)
        self._space = space
        self._study = study
        self._shown = set(items.tolist())

    def main(self, rng: np.random.Generator, judged: Counter[Key], seen: Set[Key]) -> Chosen:
        """The next trial that counts.

        Args:
            rng: of this trial.
            judged: how often each triplet has been judged, by its sorted numbers.
            seen: triplets that this participant has been shown.

        Raises:
            NoneLeft: nothing is left to ask this participant.
        """
        study = self._study
        draw = rng.random()
        if draw < study.repeats and (again := self._judged_by_others(judged, seen)):
            return self._of(rng, again[int(rng.integers(len(again)))], "repeat")
        fresh = self._fresh(rng, judged, seen, study.candidates)
        if not len(fresh):  # few photos: everything has been judged once
            if again := self._judged_by_others(judged, seen):
                return self._of(rng, again[int(rng.integers(len(again)))], "repeat")
            raise NoneLeft(f"every triplet of {len(self.items)} photos has been judged {study.responses} times.")
        if draw < study.repeats + (1 - study.repeats) * study.explore:
            return self._of(rng, _key(fresh[0]), "explore")
        return self._of(rng, _key(fresh[int(self.entropies(fresh).argmax())]), "unsure")

    def obvious(self, rng: np.random.Generator) -> Chosen:
        """Two views of one photo and, of `OTHERS` random photos, the one that is the least like it."""
        rows = rng.choice(len(self.items), min(len(self.items), OTHERS + 1), replace=False)
        twice, others = rows[:1], rows[1:]
        alike = triplets.similarity_matrix(self._vectors[twice], self._vectors[others], "cosine")[0]
        a, b = (int(self.items[row]) for row in (twice[0], others[int(alike.argmin())]))
        order = rng.permutation(3)
        shown = [((a, WHOLE), (a, PART), (b, WHOLE))[i] for i in order]
        items, views = zip(*shown, strict=True)
        return Chosen(items, views, "obvious", expected=int(np.flatnonzero(order == 2)[0]))

    def probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """That each photo is the odd one: [t, 3], of triplets [t, 3] of rows of the vectors."""
        sims = triplets.pair_similarities(self._vectors[rows], self._space.similarity)
        return triplets.odd_probabilities(sims, self._space.temperature)

    def entropies(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Entropy in nats [t], of triplets [t, 3] of photo numbers."""
        return triplets.entropy(self.probabilities(self._rows(keys)))

    def _rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        order = np.argsort(self.items)
        rows: NDArray[np.int64] = order[np.searchsorted(self.items, keys, sorter=order)]
        return rows

    def _of(self, rng: np.random.Generator, key: Key, source: Source) -> Chosen:
        """The triplet in a random order: where a photo stands must say nothing."""
        items = rng.permutation(np.array(key, np.int64))
        p = self.probabilities(self._rows(items[None]))
        left, middle, right = p[0].tolist()
        shown = _triple(items)
        return Chosen(shown, (WHOLE, WHOLE, WHOLE), source, (left, middle, right), float(triplets.entropy(p)[0]))

    def _fresh(self, rng: np.random.Generator, judged: Counter[Key], seen: Set[Key], n: int) -> NDArray[np.int64]:
        """At most n different random triplets that nobody has judged, sorted each: [t, 3]."""
        found: dict[Key, None] = {}
        for _ in range(TRIES):
            drawn = rng.integers(len(self.items), size=(max(n, 16), 3))
            drawn = drawn[(drawn != np.roll(drawn, 1, axis=1)).all(1)]
            for a, b, c in np.sort(self.items[drawn], axis=1).tolist():
                if (a, b, c) not in seen and not judged[a, b, c]:
                    found.setdefault((a, b, c))
            if len(found) >= n:
                break
        else:
            if math.comb(len(self.items), 3) <= COUNTED:
                every = itertools.combinations(sorted(self._shown), 3)
                left = [key for key in every if key not in seen and not judged[key]]
                found = dict.fromkeys(left[i] for i in rng.permutation(len(left)))
        return np.array(list(found)[:n], np.int64).reshape(-1, 3)

    def _judged_by_others(self, judged: Counter[Key], seen: Set[Key]) -> list[Key]:
        return [
            key
            for key, times in judged.items()
            if 0 < times < self._study.responses and key not in seen and self._shown.issuperset(key)
        ]


def _key(items: NDArray[np.int64]) -> Key:
    a, b, c = sorted(items.tolist())
    return a, b, c


def _triple(items: NDArray[np.int64]) -> Key:
    a, b, c = items.tolist()
    return a, b, c
