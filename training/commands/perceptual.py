"""Align an embedding with people's two-alternative judgments of what looks alike.

RECIPE is a file of training/recipes/. TRIALS is nights:FOLDER, bapps:FOLDER or things:FOLDER as they are published,
classes:IMAGES (two of a class, one of another), or generated:IMAGES (graded distortions; IMAGES as in `embed`).
Every constant of the recipe can be given as an option. Writes a run folder with weights.safetensors, embedding.json
and figures.json, accuracy before against after, to --out. Killed at any point, the same command goes on where it
stopped, to the same weights. --leave-one-kind-out trains once more without each kind of trial and judges each of
these on the kind it has not seen. On many processes or GPUs:
torchrun --nproc-per-node N -m training perceptual ...
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Recipe, trials, run folder, and the fields of Shape, GeneratorConfig and PerceptualConfig."""
    from training.perceptual.embedding import Shape
    from training.perceptual.generated import GeneratorConfig
    from training.perceptual.objective import PerceptualConfig
    from training.perceptual.run import PerceptualRecipe
    from training.recipes import recipes_of

    parser.add_argument("recipe", choices=sorted(recipes_of(PerceptualRecipe)), help="a file of training/recipes/")
    parser.add_argument("trials", help="where the judgments come from, as KIND:PLACE")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make or to continue")
    parser.add_argument("--device", default="cpu", help="`cuda` is each process's own GPU")
    parser.add_argument("--branches", nargs="+", metavar="MODEL", help="one backbone, or the branches of an ensemble")
    parser.add_argument("--train-trials", type=int, help="judgments to learn from, ties not counted; all if not given")
    parser.add_argument(
        "--leave-one-kind-out", action="store_true", help="hold every kind out in turn, in place of --held-out"
    )
    parser.add_argument("--features", type=Path, help="folder of features of frozen branches that runs share")
    parser.add_argument(
        "--graph", metavar="BUNDLE[@SPACE]", help="bundle that computes these features, faster on a CPU"
    )
    parser.add_argument("--random-weights", action="store_true", help="start from random weights")
    parser.add_argument("--draw", type=int, default=0, help="seed of the photos' split, of the trials and of the head")
    options.add_options(parser, Shape, but=("branches",))
    options.add_options(parser, GeneratorConfig, but=("seed",))
    options.add_options(parser, PerceptualConfig)


def do(args: argparse.Namespace) -> None:
    """Train, and print the figures."""
    from training.perceptual.run import PerceptualRecipe, read_trials, run_perceptual
    from training.processes import place, processes
    from training.recipes import recipes_of

    recipe = recipes_of(PerceptualRecipe)[args.recipe]
    if args.leave_one_kind_out:
        if args.held_out:
            raise ValueError(f"--held-out {' '.join(args.held_out)} and --leave-one-kind-out exclude each other.")
        recipe = replace(recipe, generator=replace(recipe.generator, held_out=()))
    recipe = replace(
        recipe,
        shape=options.override(args, recipe.shape),
        pretrained=recipe.pretrained and not args.random_weights,
        generator=replace(options.override(args, recipe.generator, but=("seed",)), seed=args.draw),
        seed=args.draw,
        training=options.override(args, recipe.training),
        train_trials=recipe.train_trials if args.train_trials is None else args.train_trials,
    )
    with processes(args.device) as device:
        trials = read_trials(args.trials, recipe.generator, recipe.seed)
        figures = run_perceptual(
            recipe,
            trials,
            args.out,
            device=device,
            leave_out=args.leave_one_kind_out,
            features=args.features,
            graph=args.graph,
        )
        first = place().rank == 0
    if first:
        print("learned from {judgments} judgments, {trials} trials".format(**figures["learned from"]))
        print(f"{figures['trials']} trials: {figures['rule']}")
        print_columns(figures)
        if "left out" in figures:
            print("each kind by the training that has not seen it")
            print_columns(figures["left out"])


def print_columns(figures: dict[str, Any]) -> None:
    """Accuracy before, after, and the differences, a line for each group of trials."""
    for column in ("before", "untrained", "after", "after - before", "after - untrained"):
        for group, e in figures.get(column, {}).items():
            print(f"{column:18} {group:24} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}], n={e['n']}")
