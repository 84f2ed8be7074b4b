"""The teacher's neighbours kept besides its judgments.

Command   python -m training run student_neighbours --data ../shared/data --out runs/student_neighbours
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement -.017 [-.042, .001], 1-NN +.010 [.003, .017] (docs/results.md)
Source    Muttenthaler et al. 2023, the local term of gLocal, here between teacher and student
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-neighbours",
    description="A term that keeps each photo's neighbours in the teacher, as gLocal's does, besides judgments.",
    distill=replace(STUDENT.distill, neighbours=1.0),
)
