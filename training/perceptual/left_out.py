"""Every kind of trial held out once: as many trainings as there are kinds, each judged on the kind it has not seen.

One kind that is held out says what is learned beyond the others for that kind alone, and has few trials. Here every
reported trial is judged by a training that has not seen its kind, so that all of them are together one figure.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from training.perceptual.figures import Scores, accuracy
from training.perceptual.trials import Trials

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


def left_out_figures(
    trials: Trials,
    before: Scores,
    after: Mapping[str, Scores],
    *,
    repetitions: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy on the kind that each training has not seen, pooled and by kind, and on the kinds it has.

    Args:
        trials: that are reported, none of them trained on.
        before: what each judgment earns before training, of `judgment_scores`.
        after: the same after the training without each kind.
        repetitions: bootstrap samples; units are drawn, all kinds of a unit together.
        seed: of the samples.

    Returns:
        {"before", "after", "after - before": {group: estimate}}. A trial of the kinds that training saw earns the mean
        over the trainings that saw its kind.
    """
    _, first = np.unique(trials.judgment, return_index=True)
    kind, unit = trials.kind[first], trials.unit[first]
    unseen, seen = np.zeros_like(before), np.zeros_like(before)
    for name, score in after.items():
        unseen[kind == name] = score[kind == name]
        seen[kind != name] += score[kind != name] / (len(after) - 1)
    everything = np.ones(len(first), bool)
    groups = {HELD_OUT: (everything, unseen)}
    groups |= {name: (kind == name, unseen) for name in after}
    groups |= {TAUGHT: (everything, seen)}
    out: dict[str, Any] = {"before": {}, "after": {}, "after - before": {}}
    for group, (inside, score) in groups.items():
        for column, own in (("before", before), ("after", score), ("after - before", score - before)):
            found = accuracy(own[inside], unit[inside], repetitions=repetitions, seed=seed)
            out[column][group] = asdict(found)
    return out
