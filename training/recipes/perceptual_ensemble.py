"""DreamSim's ensemble: DINO, CLIP and OpenCLIP, B/16 each, side by side as they are, through LoRA.

Command   python -m training perceptual perceptual_ensemble nights:NIGHTS --out runs/ensemble --device cuda
Hardware  one GPU; not timed and not run here: weights of a hub could not be fetched
Result    not measured; published, on the test split of NIGHTS: .962
Source    Fu et al. 2023 and its code: rank 16, alpha 8, dropout 0.3, 16 trials a step, 6 epochs of 13,900 trials,
          OpenCLIP trained on LAION-400M. Its class tokens are taken before the final norm, ours after it;
          OpenCLIP's attention is one fused matrix that adapters cannot replace, so they go into its MLP
"""

from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.objective import PerceptualConfig
from training.perceptual.run import PerceptualRecipe
from training.student_model import Adaptation

RECIPE = PerceptualRecipe(
    name="perceptual-ensemble",
    description="DINO, CLIP and OpenCLIP B/16 side by side, aligned with people's judgments of NIGHTS.",
    shape=Shape(branches=("dino-b", "clip-b", "open_clip:ViT-B-16/laion400m_e31"), side=224),
    generator=GeneratorConfig(),
    training=PerceptualConfig(
        steps=5_214,
        batch=16,
        checkpoint_every=869,
        patience=None,
        precision="bf16",
        adaptation=Adaptation(lora_rank=16, lora_alpha=8.0, lora_dropout=0.3, lora_targets=("qkv", "c_fc", "c_proj")),
    ),
)
