"""The student as the paper has it: class token, three images a triplet, cluster borders, the judgments' loss alone.

Command   python -m training run student_paper --data ../shared/data --out runs/student_paper --teacher runs/starter
              --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    split 0, minus the student: agreement -.037 [-.114, .020], 1-NN -.251 [-.265, -.237] (docs/results.md)
Source    Muttenthaler et al. 2025, equation 4 and Methods; views and frozen blocks are ours, and 150 steps of 42
          triplets are 6,300 where the paper has ten million
"""

from dataclasses import replace

from training.feeds import FeedConfig
from training.recipes.student_no_readout import RECIPE as NO_READOUT

RECIPE = replace(
    NO_READOUT,
    name="student-paper",
    description="As in the paper: class token, three images a triplet, cluster borders, no regression.",
    feed=FeedConfig(feed="triplet", batch=42, sampling="border"),
    distill=replace(NO_READOUT.distill, regression=0.0),
)
