"""EfficientNet-Lite2, frozen: its stages weighed beside its own features and a residual head, for many distortions.

Command   python -m export bundle efficientnet-lite2 --output levels --images PHOTOS --precision fp32 --out LEVELS
          python -m training perceptual perceptual_efficientnet_levels generated:DATA/images.csv --leave-one-kind-out
          --features FEATURES --graph LEVELS --out runs/perceptual-levels
Hardware  1 CPU core of two threads, shared, 4 GB: 70 to 85 images a second for the features of 26,600 images, then ten
          seconds a training, seven of them
Result    2 draws of 2,074 photos not seen, two-alternative accuracy .894 before, .934 with equal weights, untrained; on
          kinds not seen, nor any related one, +.046 [.040, .052] over the first, +.006 [.003, .010] over the second; on
          photos not seen +.048 and +.047, +.009 and +.006
Source    weights of levels as in LPIPS (Zhang et al. 2018), DreamSim's residual head; rates, steps and which levels
          from training and validation photos of another draw (docs/log.md)
"""

from dataclasses import replace

from training.perceptual.distortions import KINDS, RELATED
from training.perceptual.embedding import Shape
from training.recipes.perceptual_efficientnet import RECIPE as OWN

RECIPE = replace(
    OWN,
    name="perceptual-efficientnet-levels",
    description="EfficientNet-Lite2 and what its stages see, aligned with graded distortions of photos.",
    generator=replace(OWN.generator, kinds=(*KINDS, *RELATED)),
    shape=Shape(branches=("efficientnet-lite2",), output="levels", hidden=256),
    training=replace(OWN.training, steps=150, learning_rate=3e-2, head_rate=1e-5),
)
