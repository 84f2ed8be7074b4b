"""UnAligNet: the student, taught by the teacher before its transform.

Command   python -m training run student_untransformed --data ../shared/data --out runs/student_untransformed
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    three splits, minus the student: agreement -.180 [-.239, -.123], 1-NN -.054 [-.065, -.043] (docs/results.md)
Source    Muttenthaler et al. 2025, the control that tells alignment from distillation
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-untransformed",
    description="The untransformed teacher is distilled (the paper's UnAligNet).",
    target="untransformed",
    regress_on="untransformed",
)
