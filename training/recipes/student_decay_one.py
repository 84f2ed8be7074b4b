"""The decay of the released code, made for runs 500 times as long.

Command   python -m training run student_decay_one --data ../shared/data --out runs/student_decay_one
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement -.003 [-.010, .007], 1-NN +.006 [.001, .011] (docs/results.md)
Source    what decay to the start gives
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-decay-one",
    description="Decay 1 towards the start, as in the released code, instead of 100.",
    distill=replace(STUDENT.distill, decay=1.0),
)
