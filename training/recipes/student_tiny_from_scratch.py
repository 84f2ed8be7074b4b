"""A ViT-Ti from random weights.

Command   python -m training run student_tiny_from_scratch --data ../shared/data --out runs/student_tiny_from_scratch
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB
Source    Muttenthaler et al. 2025, students from scratch: temperature 1,000, decay to zero
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT
from training.student_model import Adaptation

RECIPE = replace(
    STUDENT,
    name="student-tiny-from-scratch",
    description="ViT-Ti/16 from random weights.",
    model="timm:vit_tiny_patch16_224",
    side=112,
    pretrained=False,
    readout=None,
    distill=replace(
        STUDENT.distill,
        steps=600,
        temperature=1000.0,
        learning_rate=3e-4,
        head_rate=1e-3,
        warmup=60,
        regression=10.0,
        regress="linear",
        decay=0.1,
        decay_to="zero",
        adaptation=Adaptation(),
    ),
)
