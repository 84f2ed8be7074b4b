"""Random images: a batch is drawn without regard to clusters.

Command   python -m training run student_no_clusters --data ../shared/data --out runs/student_no_clusters
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB
Source    Muttenthaler et al. 2025, the random sampling of the ablations
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-no-clusters",
    description="Images of a batch from any cluster, one of each group: random triplets.",
    clusters=2,
    feed=replace(STUDENT.feed, per_group=64),
)
