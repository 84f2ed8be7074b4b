"""Direct fine-tuning: the student, taught by people's choices among photos of training concepts.

Command   python -m training run student_people --data ../shared/data --out runs/student_people
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    not measured
Source    Muttenthaler et al. 2025, the control without a teacher; choices are VICE's most likely ones
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-people",
    description="No teacher: fine-tuned on people's choices (VICE's most likely) among labelled photos.",
    target="people",
    views=0,
    distill=replace(STUDENT.distill, loss="hard", regression=0.0),
)
