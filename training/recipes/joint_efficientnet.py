"""EfficientNet-Lite2, frozen, with a residual head that learns people's choices and graded distortions at once.

Command   python -m training joint joint_efficientnet generated:DATA/images/imagenet_sample --data DATA
          --teacher STARTER --weights 0 .1 .25 .5 .75 .9 1 --out runs/joint
Hardware  2 CPU cores, 4 GB; features are computed once, a weight then takes seconds
Result    split 0, 144 photos reported: agreement with VICE +.16 to +.18 over the model before for weights from 0 to .9,
          +.03 [-.01, .07] for weight 1; two-alternative accuracy .90 to .91 at every weight, before .898 (docs/log.md)
Source    the sum is ours, see training/perceptual/joint.py. Temperature 30 brings dot products of these features to
          the size of the teacher's logits
"""

from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.joint import JointConfig
from training.perceptual.joint_run import JointRecipe
from training.recipes.starter import RECIPE as TEACHER
from training.student_model import Adaptation

RECIPE = JointRecipe(
    name="joint-efficientnet",
    description="EfficientNet-Lite2 with a residual head, aligned with odd-one-out choices and graded distortions.",
    teacher=TEACHER,
    shape=Shape(branches=("efficientnet-lite2",), hidden=512),
    generator=GeneratorConfig(per_image=3, held_out=("blur", "compression"), own_draw=True, gap=(0.13, 0.3)),
    training=JointConfig(
        steps=300,
        batch=128,
        photos=256,
        checkpoint_every=30,
        head_rate=1e-3,
        temperature=30.0,
        patience=None,
        adaptation=Adaptation(),
    ),
    clusters=60,
    split_seeds=(0, 1, 2),
)
