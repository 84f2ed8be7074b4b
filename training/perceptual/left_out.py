"""Every kind of trial held out once: a training without each, judged on the kind that it has not seen.

One kind that is held out says what is learned beyond the others for that kind alone, and has few trials. Here every
reported trial is judged by a training that has not seen its kind, so that all of them are together one figure. A
training that has seen rotations has seen something of warps: related kinds of distortion are held out together.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from contract.files import whole
from training.images import digest_of
from training.perceptual.distortions import RELATED
from training.perceptual.figures import Scores, accuracy, columns
from training.perceptual.generated import Distorted
from training.perceptual.trials import Trials
from training.stage import read_npz

FILE = "left-out.npz"
"""What every reported judgment earned, in a run folder."""

HELD_OUT = "kinds held out"
TAUGHT = "kinds that training saw"


def related(kind: NDArray[np.str_]) -> NDArray[np.str_]:
    """What each of some kinds [j] is held out as: the kind of distortion that it is related to, or itself."""
    return np.array([RELATED.get(name, name) for name in kind.tolist()], np.str_)


def kinds_to_leave_out(trials: Trials) -> list[str]:
    """The kinds of the reported trials, by name, those that are related as one.

    Raises:
        ValueError: fewer than two, or a kind that is not in every split, which could not be held out in turn.
    """
    kinds = sorted(set(trials.of_split("test").kind.tolist()))
    groups = sorted(set(related(np.array(kinds)).tolist()))
    if len(groups) < 2:
        detail = f"the one kind {kinds[0]!r}" if len(kinds) == 1 else f"the related kinds {', '.join(kinds)}"
        raise ValueError(f"{trials.source} has {detail}; leaving it out leaves nothing to learn from.")
    for split in ("train", "val"):
        if absent := sorted(set(kinds) - set(trials.of_split(split).kind.tolist())):
            raise ValueError(
                f"{trials.source}: the split {split!r} has no trial of {absent}; expected every kind in it."
            )
    return groups


def without(trials: Trials, kind: str) -> Trials:
    """The trials that a training without a kind may see: its own and those of related kinds are reported alone."""
    return trials.take((related(trials.kind) != kind) | (trials.split == "test"))


@dataclass(frozen=True)
class LeftOut:
    """What each reported judgment earned, [j] each, in order of its number.

    Attributes:
        images: digest of those that units are rows of.
        kind: of the judgment, itself.
        unit: what a new experiment would draw anew, see `Trials`.
        before: earned by what the alignment is compared with.
        untrained: earned before the first step of the training that has not seen the judgment's kind.
        unseen: earned after it.
        seen: mean over the trainings that have seen it.
    """

    images: str
    kind: NDArray[np.str_]
    unit: NDArray[np.int64]
    before: Scores
    untrained: Scores
    unseen: Scores
    seen: Scores

    @classmethod
    def of(cls, trials: Trials, before: Scores, trainings: Mapping[str, tuple[Scores, Scores]]) -> Self:
        """Of the trials that are reported, none of them trained on.

        Args:
            trials: the reported ones.
            before: what each judgment earns, of `judgment_scores`, by what the alignment is compared with.
            trainings: the same before the first step of the training without each kind, and after the last.
        """
        _, first = np.unique(trials.judgment, return_index=True)
        kind, unit = trials.kind[first], trials.unit[first]
        group = related(kind)
        untrained, unseen, seen = (np.zeros_like(before) for _ in range(3))
        for name, (start, after) in trainings.items():
            own = group == name
            untrained[own], unseen[own] = start[own], after[own]
            seen[~own] += after[~own] / (len(trainings) - 1)
        drawn = trials.images.images if isinstance(trials.images, Distorted) else trials.images
        return cls(digest_of(drawn), kind, unit, before, untrained, unseen, seen)

    def write(self, file: Path) -> None:
        """Write an npz, whole or not at all."""
        with whole(file) as stream:
            np.savez(stream, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote. Raises ValueError naming the file where it is something else."""
        found = read_npz(file)
        names = [field.name for field in fields(cls)]
        if set(found) != set(names) or len({found[name].shape for name in names[1:]}) != 1:
            raise ValueError(f"{file} holds {sorted(found)}; expected {', '.join(names)}, all but the first as long.")
        return cls(str(found["images"]), *(found[name] for name in names[1:]))


def pooled(runs: Mapping[str, LeftOut]) -> LeftOut:
    """The judgments of several runs as one experiment. A unit that several runs reported on stays one unit.

    Args:
        runs: by the names that an error calls them.

    Raises:
        ValueError: a run over other images than the first: its units are others, whatever their numbers.
    """
    (first, one), *_ = runs.items()
    if others := [name for name, run in runs.items() if run.images != one.images]:
        raise ValueError(f"{', '.join(others)}: over other images than {first}; pool runs over the same images.")
    arrays = (field.name for field in fields(LeftOut) if field.name != "images")
    return LeftOut(one.images, *(np.concatenate([getattr(run, name) for run in runs.values()]) for name in arrays))


def left_out_figures(earned: LeftOut, *, repetitions: int, seed: int) -> dict[str, Any]:
    """Accuracy on the kind that each training has not seen, pooled and by kind, and on the kinds it has.

    Args:
        earned: by the reported judgments.
        repetitions: bootstrap samples; units are drawn, all judgments of a unit together.
        seed: of the samples.

    Returns:
        {column: {group: estimate}} for the columns of `training.perceptual.figures.columns`.
    """
    everything = np.ones(len(earned.kind), bool)
    groups = {HELD_OUT: (everything, earned.unseen)}
    groups |= {str(name): (earned.kind == name, earned.unseen) for name in np.unique(earned.kind)}
    groups |= {TAUGHT: (everything, earned.seen)}
    untrained = None if np.array_equal(earned.before, earned.untrained) else earned.untrained
    out: dict[str, Any] = {}
    for group, (inside, score) in groups.items():
        for column, own in columns(earned.before, score, untrained).items():
            found = accuracy(own[inside], earned.unit[inside], repetitions=repetitions, seed=seed)
            out.setdefault(column, {})[group] = asdict(found)
    return out
