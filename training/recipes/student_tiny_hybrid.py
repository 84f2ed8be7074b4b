"""A ViT-Ti whose patches are the features of a small convolutional stem (R+Ti/16), from random weights.

Command   python -m training run student_tiny_hybrid --data ../shared/data --out runs/student_tiny_hybrid
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB
Source    Dosovitskiy et al. 2021 (hybrids) and Steiner et al. 2022 (R+Ti/16): convolutions before the transformer are
          worth most where images are few. Crops are drawn anew at each step, of the student's pixels alone: the teacher
          need not see them; the rest as in student_tiny_from_scratch
"""

from dataclasses import replace

from training.recipes.student_tiny_from_scratch import RECIPE as TINY

RECIPE = replace(
    TINY,
    name="student-tiny-hybrid",
    description="R+Ti/16, a ViT-Ti on a convolutional stem, from random weights.",
    model="timm:vit_tiny_r_s16_p8_224",
    views=0,
    distill=replace(TINY.distill, steps=1_600, warmup=100, augment="crop"),
)
