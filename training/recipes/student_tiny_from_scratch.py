"""A ViT-Ti from random weights.

Command   python -m training run student_tiny_from_scratch --data ../shared/data --out runs/student_tiny_from_scratch
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 15 minutes a split on an idle machine, which is too short
Result    splits 1 and 2, over random weights: agreement +.024 [-.009, .060], 1-NN +.077 [.053, .101]; minus its
          teacher, agreement -.241 [-.311, -.188] (docs/log.md)
Source    Muttenthaler et al. 2025, students from scratch, decay to zero. Not their temperature of 1,000: at that, 600
          steps moved the divergence of the embedding by nothing, and only the map beside it learned (docs/log.md)
"""

from dataclasses import replace

from training.readout import ReadoutConfig
from training.recipes.student_vit_small import RECIPE as STUDENT
from training.student_model import Adaptation

RECIPE = replace(
    STUDENT,
    name="student-tiny-from-scratch",
    description="ViT-Ti/16 from random weights.",
    model="timm:vit_tiny_patch16_224",
    side=96,
    pretrained=False,
    readout=ReadoutConfig(blocks=1, penalty=1.0, dropout=0.1),
    distill=replace(
        STUDENT.distill,
        steps=800,
        learning_rate=1e-3,
        head_rate=1e-3,
        warmup=50,
        decay=0.1,
        decay_to="zero",
        adaptation=Adaptation(),
    ),
)
