"""Align an embedding with odd-one-out choices and two-alternative judgments at once, at several weights.

RECIPE is a file of training/recipes/, TRIALS as in `perceptual`. DATA is the folder that TEACHER, a run of `run`, was
trained on. Every weight from 0 (the teacher's odd-one-out judgments alone) to 1 (perceptual judgments alone) is a
training of its own under --out; pareto.csv and the plot pareto.svg say what each gains and loses on held-out concepts
and images. Killed at any point, the same command goes on where it stopped; a weight can be added later.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from training import options

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Recipe, trials, data, teacher, weights, and the fields of Shape, GeneratorConfig and JointConfig."""
    from training.perceptual.embedding import Shape
    from training.perceptual.generated import GeneratorConfig
    from training.perceptual.joint import JointConfig
    from training.perceptual.joint_run import JointRecipe
    from training.recipes import recipes_of

    parser.add_argument("recipe", choices=sorted(recipes_of(JointRecipe)), help="a file of training/recipes/")
    parser.add_argument("trials", help="where the two-alternative judgments come from, as KIND:PLACE")
    parser.add_argument("--data", type=Path, required=True, help="folder with photos and judgments")
    parser.add_argument("--teacher", type=Path, required=True, help="complete run folder of the teacher's recipe")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make or to continue")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=WEIGHTS, help=f"of the perceptual part (default: {WEIGHTS})"
    )
    parser.add_argument("--splits", type=int, nargs="+", help="of the teacher's run; the recipe's if not given")
    parser.add_argument("--device", default="cpu", help="`cuda` is each process's own GPU")
    parser.add_argument("--branches", nargs="+", metavar="MODEL", help="one backbone, or the branches of an ensemble")
    parser.add_argument("--random-weights", action="store_true", help="start from random weights")
    options.add_options(parser, Shape, but=("branches",))
    options.add_options(parser, GeneratorConfig, but=("seed",))
    options.add_options(parser, JointConfig, but=("weight", "strengths"))


def do(args: argparse.Namespace) -> None:
    """Train at every weight, and print what each is worth."""
    from training.perceptual.joint_run import JointRecipe, run_joint
    from training.perceptual.run import read_trials
    from training.processes import place, processes
    from training.recipes import recipes_of

    recipe = recipes_of(JointRecipe)[args.recipe]
    recipe = replace(
        recipe,
        shape=options.override(args, recipe.shape),
        pretrained=recipe.pretrained and not args.random_weights,
        generator=options.override(args, recipe.generator, but=("seed",)),
        training=options.override(args, recipe.training, but=("weight", "strengths")),
        split_seeds=recipe.split_seeds if args.splits is None else tuple(args.splits),
    )
    with processes(args.device) as device:
        trials = read_trials(args.trials, recipe.generator, recipe.seed)
        figures = run_joint(recipe, trials, args.weights, args.teacher, args.data, args.out, device=device)
        first = place().rank == 0
    if first:
        for split, counts in figures["photos in common"].items():
            kept = (f"{n['kept']} of {n['kept'] + n['left out']} {name}" for name, n in counts.items())
            print(f"split {split}: {', '.join(kept)}; the others show what is held out, reported or validated on")
        for model, found in (figures["models"] | figures["differences"]).items():
            for name, e in found.items():
                print(f"{model:24} {name:44} {e['value']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}], n={e['n']}")
        print(f"on the front: weights {', '.join(f'{weight:g}' for weight in figures['front'])}")
