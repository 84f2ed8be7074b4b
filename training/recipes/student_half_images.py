"""Half of the images.

Command   python -m training run student_half_images --data ../shared/data --out runs/student_half_images
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    not measured
Source    Muttenthaler et al. 2025, ablation of the number of images
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-half-images",
    description="Half of the photos, as many steps.",
    images=0.5,
)
