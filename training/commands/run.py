"""Do every stage of a recipe that is not complete yet.

Reads photos and judgments under --data (images.csv, things/), writes a run folder at --out. Where --data has choices
(things/train_90, test_10) and no embedding, VICE is fitted to them first, in DATA/things/vice. A student's recipe
runs its teacher's before it, in OUT/teacher, unless --teacher names a complete run of it. Killed at any point, the same
command goes on where it stopped. One process; what runs under torchrun are the commands `embed` and `distill`.
"""

import argparse
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Recipe, data and run folder."""
    from training.recipe import Recipe
    from training.recipes import recipes_of
    from training.student import StudentRecipe
    from training.vice_fit import ViceRecipe

    names = sorted([*recipes_of(Recipe), *recipes_of(StudentRecipe)])
    parser.add_argument("recipe", choices=names, help="a file of training/recipes/")
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make or to continue")
    parser.add_argument("--teacher", type=Path, help="a complete run folder of the student's teacher")
    parser.add_argument(
        "--vice",
        choices=sorted(recipes_of(ViceRecipe)),
        default="vice_things",
        help="how VICE is fitted where the data have choices and no embedding",
    )
    parser.add_argument("--zero-absent", action="store_true", help="concept 0 is in no choice; they are not 1-based")
    parser.add_argument("--splits", type=int, nargs="+", default=[], help="of a student's recipe; all if not given")
    parser.add_argument("--device", default="cpu", help="where students train")
    parser.add_argument("--final", action="store_true", help="also train a student on all concepts, to be exported")
    parser.add_argument("--compile", action="store_true", help="compile the teacher for views; needs a C++ compiler")


def do(args: argparse.Namespace) -> None:
    """Run the recipe and print its figures."""
    from training.recipe import Recipe
    from training.recipes import recipes_of
    from training.run import run
    from training.student import StudentRecipe
    from training.vice_fit import ViceRecipe

    teachers, students = recipes_of(Recipe), recipes_of(StudentRecipe)
    vice = recipes_of(ViceRecipe)[args.vice]
    if args.recipe in students:
        _run_student(students[args.recipe], vice, args)
        return
    if args.teacher is not None or args.final or args.splits:
        raise ValueError(f"{args.recipe} is no student; it has no --teacher, no --splits and no --final.")
    figures = run(teachers[args.recipe], args.data, args.out, vice, zero_absent=args.zero_absent)["figures"]
    for figure in figures:
        _print(figure["space"], figure["name"], figure)


def _run_student(recipe: Any, vice: Any, args: argparse.Namespace) -> None:
    from training.processes import place, processes
    from training.run import run
    from training.student import run_students

    with processes(args.device) as device:
        teacher = args.teacher
        if teacher is None:
            teacher = args.out / "teacher"
            run(recipe.teacher, args.data, teacher, vice, zero_absent=args.zero_absent)
        figures = run_students(
            recipe,
            teacher,
            args.data,
            args.out,
            device=device,
            compile_encoders=args.compile,
            final=args.final,
            only=args.splits,
        )
        first = place().rank == 0
    if first:
        for group in ("models", "differences"):
            for model, estimates in figures[group].items():
                for name, estimate in estimates.items():
                    _print(model, name, estimate)


def _print(model: str, name: str, e: dict[str, Any]) -> None:
    print(f"{model:18} {name:48} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}], n={e['n']}")
