"""Random triplets: the photos of a batch are drawn from all alike, without regard to clusters.

Command   python -m training run student_no_clusters --data ../shared/data --out runs/student_no_clusters
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    see docs/log.md; rows of docs/results.md from before 2026-11-22 are of 64 photos from each of two clusters
Source    Muttenthaler et al. 2025, the random sampling of the ablations
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-no-clusters",
    description="Photos of a batch from all alike, whatever their cluster: random triplets.",
    feed=replace(STUDENT.feed, per_group=None),
)
