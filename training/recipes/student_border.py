"""Cluster borders: two images of one cluster and one of another in every triplet.

Command   python -m training run student_border --data ../shared/data --out runs/student_border
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement +.001 [-.005, .010], 1-NN .000 [-.004, .004] (docs/results.md)
Source    Muttenthaler et al. 2025, the sampling of the main experiments
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-border",
    description="Triplets across cluster borders instead of any three images of a batch.",
    feed=replace(STUDENT.feed, sampling="border"),
)
