"""What a recipe is: every constant of a run, frozen. Recipes themselves are in training/recipes/."""

from dataclasses import dataclass

from training.align import AlignConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One aligned model.

    Attributes:
        name: of the run and of the bundle made from it.
        description: one sentence for the model card.
        encoder: a name for `training.models.build`.
        align: constants of uncertainty distillation.
        held_out: fraction of concepts that a split keeps from training.
        split_seeds: one split each; figures are means over them.
        draws: random photos of each concept that a split is judged on.
        bootstrap: repetitions behind each interval.
        seed: of the final fit on all concepts, and of everything drawn in evaluation.
    """

    name: str
    description: str
    encoder: str
    align: AlignConfig
    held_out: float
    split_seeds: tuple[int, ...]
    draws: int
    bootstrap: int
    seed: int
