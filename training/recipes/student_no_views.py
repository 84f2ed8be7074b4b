"""Every photo as it is: no crops, no mirrors.

Command   python -m training run student_no_views --data ../shared/data --out runs/student_no_views
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; 8 minutes a split on an idle machine
Result    split 0, minus the student: agreement +.002 [-.020, .019], 1-NN +.010 [.003, .017] (docs/results.md)
Source    what views give
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-no-views",
    description="No views: every photo as it is.",
    views=0,
)
