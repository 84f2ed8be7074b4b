"""No readout: the class token is judged, as in the paper, and a linear map beside it predicts the teacher's vectors.

Command   python -m training run student_no_readout --data ../shared/data --out runs/student_no_readout
              --teacher runs/starter --compile
Hardware  2 CPU cores, 8 GB; not timed; the student's steps, as many and of as many photos, take 8 minutes a split
Result    not measured as it is; an earlier form, 200 steps, three splits: agreement .535 [.484, .579], 1-NN .765, where
          the student has .565 and .860 (docs/log.md)
Source    what the readout gives; temperature of Muttenthaler et al. 2025
"""

from dataclasses import replace

from training.recipes.student_vit_small import RECIPE as STUDENT

RECIPE = replace(
    STUDENT,
    name="student-no-readout",
    description="No readout: the class token itself is judged.",
    readout=None,
    distill=replace(
        STUDENT.distill,
        temperature=100.0,
        learning_rate=2e-4,
        head_rate=1e-3,
        decay=75.0,
        regression=10.0,
        regress="linear",
    ),
)
