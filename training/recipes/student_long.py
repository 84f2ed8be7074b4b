"""Twice the steps: what the student's constants give with more time.

Command   python -m training run student_long --data ../shared/data --out runs/student_long --teacher runs/starter
              --compile
Hardware  2 CPU cores, 8 GB; 15 minutes a split on an idle machine
Result    three splits, minus the student: agreement +.008 [-.004, .017], 1-NN +.015 [.008, .022] (docs/results.md)
Source    the student's recipe; docs/log.md has what 300 steps gave on an inner split
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-long",
    description="Twice the steps.",
    distill=replace(STUDENT.distill, steps=300),
)
