"""VICE on some hundreds to thousands of choices of one's own, about some dozens to hundreds of objects.

Command   python -m training run starter --vice vice_own --data DATA --out RUN, where DATA/things/ has train_90.txt
          and test_10.txt; or `vice` with --recipe vice_own and --objects
Hardware  1 CPU core; about a minute
Result    choices simulated from the published embedding of 60 random THINGS concepts; agreement of the fit's most
          likely choice with that embedding's, on 20,000 other triplets (scratch runs, one seed): 600 choices .593,
          1,200 .722. With pi .5 nothing survived pruning at 600; at 3,000 it gave .792
Source    Muttenthaler et al. 2022. The prior weighs as much as some choices; where those are few it must favour its
          spike less (`pi`), and fewer dimensions begin

Choices by people who disagree need repeats: what stays open in the posterior is uncertainty of the judgments, and is
learned as such.
"""

from training.vice import ViceConfig
from training.vice_fit import ViceRecipe

RECIPE = ViceRecipe(
    name="vice-own",
    description="VICE of a team's own choices.",
    n_objects=100,
    config=ViceConfig(
        dimensions=20,
        spike=0.25,
        slab=1.0,
        pi=0.1,
        batch=128,
        learning_rate=5e-3,
        final_rate=0.1,
        epochs=300,
        burn_in=100,
        window=301,
        validate_every=50,
        min_objects=1,
    ),
    seed=0,
)
