"""The student as the paper has it, from random triplets.

Command   python -m training run student_paper_random --data ../shared/data --out runs/student_paper_random
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    split 0, minus the student: agreement -.054 [-.128, .009], 1-NN -.357 [-.373, -.342] (docs/results.md); minus
          student_paper, one shot -.090 [-.099, -.081], 1-NN on classes not trained on -.088 [-.116, -.062], agreement
          -.016 [-.049, .015] (docs/log.md)
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
