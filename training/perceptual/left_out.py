"""Every kind of trial held out once: as many trainings as there are kinds, each judged on the kind it has not seen.

One kind that is held out says what is learned beyond the others for that kind alone, and has few trials. Here every
reported trial is judged by a training that has not seen its kind, so that all of them are together one figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from contract.files import whole
from training.perceptual.figures import Scores, accuracy
from training.perceptual.trials import Trials
from training.stage import read_npz

FILE = "left-out.npz"
"""What every reported judgment earned, in a run folder."""

HELD_OUT = "kinds held out"
TAUGHT = "kinds that training saw"


def kinds_to_leave_out(trials: Trials) -> list[str]:
    """The kinds of the reported trials, by name.

    Raises:
        ValueError: fewer than two kinds, or one that is not in every split, which could not be held out in turn.
    """
    kinds = sorted(set(trials.of_split("test").kind.tolist()))
    if len(kinds) < 2:
        raise ValueError(f"{trials.source} has the one kind {kinds[0]!r}; leaving it out leaves nothing to learn from.")
    for split in ("train", "val"):
        if absent := sorted(set(kinds) - set(trials.of_split(split).kind.tolist())):
            raise ValueError(
                f"{trials.source}: the split {split!r} has no trial of {absent}; expected every kind in it."
            )
    return kinds


def without(trials: Trials, kind: str) -> Trials:
    """The trials that a training without one kind may see: the kind's own are reported and nothing else."""
    return trials.take((trials.kind != kind) | (trials.split == "test"))


@dataclass(frozen=True)
class LeftOut:
    """What each reported judgment earned, [j] each, in order of its number.

    Attributes:
        kind: of the judgment.
        unit: what a new experiment would draw anew, see `Trials`.
        before: earned before training.
        unseen: earned after the training that has not seen the judgment's kind.
        seen: mean over the trainings that have seen it.
    """

    kind: NDArray[np.str_]
    unit: NDArray[np.int64]
    before: Scores
    unseen: Scores
    seen: Scores

    @classmethod
    def of(cls, trials: Trials, before: Scores, after: Mapping[str, Scores]) -> Self:
        """Of the trials that are reported, none of them trained on.

        Args:
            trials: the reported ones.
            before: what each judgment earns before training, of `judgment_scores`.
            after: the same after the training without each kind.
        """
        _, first = np.unique(trials.judgment, return_index=True)
        kind, unit = trials.kind[first], trials.unit[first]
        unseen, seen = np.zeros_like(before), np.zeros_like(before)
        for name, score in after.items():
            unseen[kind == name] = score[kind == name]
            seen[kind != name] += score[kind != name] / (len(after) - 1)
        return cls(kind, unit, before, unseen, seen)

    def write(self, file: Path) -> None:
        """Write an npz, whole or not at all."""
        with whole(file) as stream:
            np.savez(stream, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote. Raises ValueError naming the file where it is something else."""
        found = read_npz(file)
        names = [field.name for field in fields(cls)]
        if set(found) != set(names) or len({array.shape for array in found.values()}) != 1:
            raise ValueError(f"{file} holds {sorted(found)}; expected {', '.join(names)}, as long as each other.")
        return cls(**found)


def pooled(runs: Sequence[LeftOut]) -> LeftOut:
    """The judgments of several runs as one experiment. A unit that several runs reported on stays one unit."""
    return LeftOut(*(np.concatenate([getattr(run, field.name) for run in runs]) for field in fields(LeftOut)))


def left_out_figures(earned: LeftOut, *, repetitions: int, seed: int) -> dict[str, Any]:
    """Accuracy on the kind that each training has not seen, pooled and by kind, and on the kinds it has.

    Args:
        earned: by the reported judgments.
        repetitions: bootstrap samples; units are drawn, all judgments of a unit together.
        seed: of the samples.

    Returns:
        {"before", "after", "after - before": {group: estimate}}.
    """
    everything = np.ones(len(earned.kind), bool)
    groups = {HELD_OUT: (everything, earned.unseen)}
    groups |= {str(name): (earned.kind == name, earned.unseen) for name in np.unique(earned.kind)}
    groups |= {TAUGHT: (everything, earned.seen)}
    out: dict[str, Any] = {"before": {}, "after": {}, "after - before": {}}
    for group, (inside, score) in groups.items():
        for column, own in (("before", earned.before), ("after", score), ("after - before", score - earned.before)):
            found = accuracy(own[inside], earned.unit[inside], repetitions=repetitions, seed=seed)
            out[column][group] = asdict(found)
    return out
