"""EfficientNet-Lite2, frozen, with a residual head that is aligned with graded distortions.

Command   python -m training perceptual perceptual_efficientnet generated:DATA/images.csv --leave-one-kind-out
          --features FEATURES --graph app/starter --out runs/perceptual-cnn
Hardware  1 CPU core of two threads, shared, 4 GB: 9 to 35 images a second for the features of 27,531 images, computed
          once; then about a minute a training, seven of them
Result    2,074 photos not seen, two-alternative accuracy .909 before; +.014 [.010, .019]; of kinds not seen +.003
          [.000, .007], and -.003 [-.006, -.0003] with --draw 1 and 2 pooled: no gain there
Source    DreamSim's residual head with a hidden layer of 512; rate, steps and difficulty chosen on validation photos
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
    generator=GeneratorConfig(per_image=2, own_draw=True, gap=(0.13, 0.3), longest=160, shares=(0.5, 0.1, 0.4)),
    training=PerceptualConfig(
        steps=300, batch=128, head_rate=1e-4, checkpoint_every=50, patience=None, adaptation=Adaptation()
    ),
)
