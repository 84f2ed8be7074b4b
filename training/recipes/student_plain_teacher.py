"""A student of the teacher as the paper has it, to see whether it reaches a teacher that is weaker.

Command   python -m training run starter_plain --data ../shared/data --out runs/plain
          python -m training run student_plain_teacher --data ../shared/data --out runs/student_plain_teacher
              --teacher runs/plain --compile
Hardware  2 CPU cores, 8 GB
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
