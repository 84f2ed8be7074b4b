"""EfficientNet-Lite2, frozen, with a residual head that is aligned with graded distortions.

Command   python -m training perceptual perceptual_efficientnet generated:DATA/images.csv --out runs/perceptual-cnn
Hardware  2 CPU cores, 4 GB; the features of all trials are computed once
Source    DreamSim's head: hidden layer of 512, residual, 512 trials a step, about 20 epochs
"""

from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.objective import PerceptualConfig
from training.perceptual.run import PerceptualRecipe
from training.student_model import Adaptation

RECIPE = PerceptualRecipe(
    name="perceptual-efficientnet",
    description="EfficientNet-Lite2 with a residual head, aligned with graded distortions of photos.",
    shape=Shape(branches=("efficientnet-lite2",), hidden=512),
    generator=GeneratorConfig(per_image=1, held_out=("blur", "compression")),
    training=PerceptualConfig(steps=160, batch=512, checkpoint_every=8, adaptation=Adaptation()),
)
