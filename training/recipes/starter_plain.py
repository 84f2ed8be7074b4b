"""The teacher by the paper's equations alone: uncertainty distillation of the features as they are.

Command   python -m training run starter_plain --data ../shared/data --out runs/plain
Hardware  2 CPU cores, 2 GB; not timed; the starter's features and ten splits take about ten minutes
Result    three splits: agreement with VICE .513 [.477, .569], 1-NN .900; the starter has .600 and .901 on them
          (docs/log.md)
Source    Muttenthaler et al. 2025, equations 2 and 3: loss, regulariser, bias, temperature 1

What is not the paper's: Adam with a warm-up and a cosine to zero, where it has plain SGD at a rate that it does not
give; the mean of each feature is taken off, where gLocal's code takes one mean off all (one standard deviation divides
all in both); where the data folder has the published embedding, target probabilities are those of that mean, not
averaged over R = 50 samples of the posterior (they are where VICE is fitted to the folder's choices); thousands of
triplets a step, among one photo of every concept.
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
