"""Model size: a ViT-B instead of the ViT-S, everything else as the student's.

Command   python -m training run student_vit_base --data ../shared/data --out runs/student_vit_base
              --teacher runs/starter --device cuda
Hardware  one GPU; not timed and not run here: its weights come from a hub, which could not be reached
Result    not measured
Source    Muttenthaler et al. 2025, ablation of the model's size. DINOv2's ViT-B/14 (Oquab et al. 2024), of whose ViT-S
          `focus-vit-s` is a fine-tuned one, at its own 224 px instead of 126: the ViT-S before training is hardly
          better at 224 than at 126 (docs/log.md), so that what differs should be the size
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-vit-base",
    description="ViT-B/14 instead of ViT-S/14, at 224 pixels.",
    model="dinov2-b",
    side=224,
)
