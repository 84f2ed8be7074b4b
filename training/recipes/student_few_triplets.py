"""A hundredth of the triplets.

Command   python -m training run student_few_triplets --data ../shared/data --out runs/student_few_triplets
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement .000 [-.006, .007], 1-NN -.002 [-.006, .002] (docs/results.md)
Source    Muttenthaler et al. 2025, ablation of the number of triplets
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-few-triplets",
    description="200 triplets a batch instead of 20,000.",
    feed=replace(STUDENT.feed, triplets_per_step=200),
)
