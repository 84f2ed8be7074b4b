"""The student as the paper has it, from random triplets.

Command   python -m training run student_paper_random --data ../shared/data --out runs/student_paper_random
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB
Source    Muttenthaler et al. 2025, the random sampling of the ablations, which does worse there
"""

from dataclasses import replace

from training.recipes.student_paper import RECIPE as PAPER

RECIPE = replace(
    PAPER,
    name="student-paper-random",
    description="As in the paper, of any three images instead of cluster borders.",
    feed=replace(PAPER.feed, sampling="random"),
)
