"""The teacher as the paper has it: uncertainty distillation of the features as they are, without what is ours.

Command   python -m training run starter_plain --data ../shared/data --out runs/plain
Hardware  2 CPU cores, 2 GB
Source    Muttenthaler et al. 2025, equations 2 and 3
"""

from dataclasses import replace

from training.align import AlignConfig
from training.recipes.starter import RECIPE as STARTER

RECIPE = replace(
    STARTER,
    name="starter-plain",
    description="EfficientNet-Lite2, aligned by uncertainty distillation alone, of its features as they are.",
    align=AlignConfig(penalty=0.3, noise=0.0, residuals=0.0),
    split_seeds=(0, 1, 2),
)
