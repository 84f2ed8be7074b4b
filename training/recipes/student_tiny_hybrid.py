"""A ViT-Ti whose patches are cut from a convolution's map (R+Ti/16), from random weights.

Command   python -m training run student_tiny_hybrid --data ../shared/data --out runs/student_tiny_hybrid
              --teacher runs/starter
Hardware  2 CPU cores, 8 GB; 22 minutes a split
Result    three splits, over random weights: agreement +.055 [.021, .104], 1-NN +.132 [.119, .145]; over a readout of
          untrained blocks +.024 [-.005, .062] and +.068 [.055, .080]; far from its teacher (docs/log.md)
Source    Muttenthaler et al. 2025, students from scratch; Steiner et al. 2022 (R+Ti/16). A readout of its random
          features judges better than one of a plain ViT-Ti's (docs/log.md). Crops are drawn anew at each step, of the
          student's pixels alone, so that the teacher sees each photo once
"""

from dataclasses import replace

from training.readout import ReadoutConfig
from training.recipes.student_tiny_from_scratch import RECIPE as TINY

RECIPE = replace(
    TINY,
    name="student-tiny-hybrid",
    description="R+Ti/16, a ViT-Ti on a convolution's map, from random weights.",
    model="timm:vit_tiny_r_s16_p8_224",
    readout=ReadoutConfig(blocks=4, penalty=1.0, dropout=0.1),
    views=0,
    distill=replace(TINY.distill, steps=1_200, learning_rate=5e-4, head_rate=5e-4, warmup=60, augment="crop"),
)
