"""LoRA instead of training the last six blocks.

Command   python -m training run student_lora --data ../shared/data --out runs/student_lora
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 11 minutes a split on an idle machine
Result    three splits: agreement .581, 1-NN .883, where the student has .565 and .860 (docs/results.md)
Source    what low-rank adapters give
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT
from training.student_model import Adaptation

RECIPE = replace(
    STUDENT,
    name="student-lora",
    description="LoRA of rank 16 in every block; no weight itself is trained.",
    distill=replace(
        STUDENT.distill,
        learning_rate=1e-3,
        decay=0.0,
        adaptation=Adaptation(lora_rank=16, lora_alpha=16.0),
    ),
)
