"""The paper's loss alone: no regression of the teacher's vectors.

Command   python -m training run student_no_regression --data ../shared/data --out runs/student_no_regression
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement -.054 [-.102, -.012], 1-NN -.200 [-.214, -.187] (docs/results.md)
Source    what the regression gives
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-no-regression",
    description="No regression of the teacher's vectors.",
    distill=replace(STUDENT.distill, regression=0.0),
)
