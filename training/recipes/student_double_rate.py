"""Twice the learning rate.

Command   python -m training run student_double_rate --data ../shared/data --out runs/student_double_rate
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement -.003 [-.015, .013], 1-NN +.003 [-.003, .009] (docs/results.md)
Source    what the rate gives
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-double-rate",
    description="Twice the learning rate, of the network and of its head.",
    distill=replace(STUDENT.distill, learning_rate=2e-4, head_rate=4e-4),
)
