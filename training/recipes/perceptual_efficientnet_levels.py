"""EfficientNet-Lite2, frozen: its stages weighed beside its own features, and a residual head, for graded distortions.

Command   python -m export bundle efficientnet-lite2 --output levels --images PHOTOS --precision fp32 --out LEVELS
          python -m training perceptual perceptual_efficientnet_levels generated:DATA/images.csv --leave-one-kind-out
          --features FEATURES --graph LEVELS --out runs/perceptual-levels
Hardware  1 CPU core of two threads, shared, 4 GB: 30 to 70 images a second for the features of 27,500 images, then ten
          seconds a training, seven of them
Result    2 draws of 2,074 photos not seen, two-alternative accuracy .906 before; +.040 [.035, .046] on kinds not seen,
          +.045 and +.042 on photos not seen, over the network's own embedding (stages of equal weight, untrained, may
          do as well: docs/log.md); Caltech-101 1-NN -.273 [-.325, -.227]
Source    weights of levels as in LPIPS (Zhang et al. 2018), DreamSim's residual head; rates, steps and which levels
          from training and validation photos of another draw (docs/log.md)
"""

from dataclasses import replace

from training.perceptual.embedding import Shape
from training.recipes.perceptual_efficientnet import RECIPE as OWN

RECIPE = replace(
    OWN,
    name="perceptual-efficientnet-levels",
    description="EfficientNet-Lite2 and what its stages see, aligned with graded distortions of photos.",
    shape=Shape(branches=("efficientnet-lite2",), output="levels", hidden=256),
    training=replace(OWN.training, steps=150, learning_rate=3e-2, head_rate=1e-5),
)
