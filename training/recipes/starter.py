"""The starter: EfficientNet-Lite2, bent to VICE by uncertainty distillation.

Command   make starter, which runs: python -m training run starter --data ../shared/data --out runs/starter
Hardware  2 CPU cores, 2 GB; about ten minutes, export included
Result    ten splits: agreement with VICE .614 [.591, .642] (base .383), RSA .563 [.513, .607] (base .083), 1-NN on
          classes not trained on .892 [.880, .904] (base .908), and more on the model card (docs/starter.md)
Source    Muttenthaler et al. 2025, equations 2 and 3; how the constants were chosen, and what did not
          help, stands in docs/log.md
"""

from training.align import AlignConfig
from training.recipe import Recipe

RECIPE = Recipe(
    name="starter",
    description="EfficientNet-Lite2, aligned with human odd-one-out judgments by uncertainty distillation.",
    encoder="efficientnet-lite2",
    align=AlignConfig(
        power=0.15,
        components=256,
        penalty=0.3,
        steps=300,
        learning_rate=1e-3,
        triplets=20_000,
        noise=1.0,
        residuals=1.0,
    ),
    held_out=0.3,
    split_seeds=tuple(range(10)),
    draws=10,
    bootstrap=200,
    seed=0,
)
