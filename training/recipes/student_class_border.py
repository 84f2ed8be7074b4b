"""Class-border triplets: two photos of a class and one of another, instead of any three images of a batch.

Command   python -m training run student_class_border --data ../shared/data --out runs/student_class_border
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    not measured; border triplets of clusters gave the student nothing (student_border)
Source    Muttenthaler et al. 2025, the class-border sampling of the ablations; photos of a class with one photo are
          in no batch, which is most of the ImageNet sample
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-class-border",
    description="Triplets across the borders of classes instead of any three images of a batch.",
    groups="labels",
    feed=replace(STUDENT.feed, sampling="border"),
)
