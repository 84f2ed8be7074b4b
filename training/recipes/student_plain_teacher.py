"""A student of `starter_plain`, the teacher by the paper's equations alone: whether one reaches a weaker teacher.

Command   python -m training run starter_plain --data ../shared/data --out runs/plain
          python -m training run student_plain_teacher --data ../shared/data --out runs/student_plain_teacher
              --teacher runs/plain --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    three splits: agreement .542 [.492, .592], +.029 [-.026, .073] over its teacher; 1-NN .860, its teacher's
          .900; minus the student: agreement -.023 [-.053, .012], 1-NN -.001 [-.009, .008] (docs/results.md,
          docs/log.md)
Source    the student's recipe; Muttenthaler et al. 2025, where students surpass their teacher
"""

from dataclasses import replace

from training.recipes.starter_plain import RECIPE as TEACHER
from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-plain-teacher",
    description="Its teacher is transformed by uncertainty distillation alone, without power, noise and residuals.",
    teacher=TEACHER,
)
