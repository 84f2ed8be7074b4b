"""The same by the patch-level objective: class token and mean patch side by side.

Command   python -m training perceptual perceptual_vit_small_patches generated:DATA/images.csv --out runs/patches
Hardware  2 CPU cores, 6 GB; not timed
Result    not measured; a head on the same vectors of the frozen network: +.068 [.053, .083] (perceptual_vit_small_head)
Source    DreamSim's patch models; both are read after the final norm here, before it there
"""

from dataclasses import replace

from training.perceptual.embedding import Shape
from training.recipes.perceptual_vit_small import RECIPE as IMAGE_LEVEL

RECIPE = replace(
    IMAGE_LEVEL,
    name="perceptual-vit-small-patches",
    description="ViT-S/14, class token and mean patch, aligned with graded distortions of photos by low-rank adapters.",
    shape=Shape(branches=("focus-vit-s",), side=126, output="cls_patch"),
)
