"""Evaluate models against people, and what alignment changed; before against after.

MODEL is FILE.npy (features of the photos of images.csv), a folder of `embed`, a run folder (RUN@0: its split 0),
a bundle, a name of the table, timm:NAME or open_clip:ARCH/PRETRAINED, or MODEL@CHECKPOINT; NAME=MODEL gives it a
name. The first is what others are compared with. Writes report.json, report.csv, report.html (one file, no network)
to --report, and keeps features and results there: killed, or asked again, the same command goes on.
"""

import argparse
import shlex
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Models, suite, folders, and the fields of Constants and EmbedConfig."""
    from training.embed import EmbedConfig
    from training.evaluation.result import Constants
    from training.evaluation.suites import PROTOCOLS, SUITES

    suites = f"one or more of {', '.join(SUITES)}, or of the protocols {', '.join(PROTOCOLS)}, joined by commas"
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models to compare, the reference first")
    parser.add_argument("--suite", default="human", help=f"{suites}; default human")
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as docs/evaluation.md says")
    parser.add_argument("--report", type=Path, required=True, help="folder to make or to continue")
    parser.add_argument("--difference", action="append", metavar="A:B", help="report A - B; default: all to the first")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet 3.0's data.noun and cntlist.rev")
    parser.add_argument("--page", type=Path, help="folder for a page without photos: Markdown and small pictures")
    parser.add_argument("--side", type=int, help="of the square input in pixels, of named models")
    options.add_options(parser, Constants)
    options.add_options(parser, EmbedConfig, but=("layout", "dtype", "skip_unreadable"))


def do(args: argparse.Namespace) -> None:
    """Run the suite and say where the report is."""
    from training.embed import EmbedConfig
    from training.evaluation.result import Constants
    from training.evaluation.subjects import read_subject
    from training.evaluation.suites import evaluate

    subjects = [read_subject(model, side=args.side) for model in args.models]
    constants, computing = options.read_options(args, Constants), options.read_options(args, EmbedConfig)
    pairs = None if args.difference is None else [_difference(text) for text in args.difference]
    how = {"differences": pairs, "wordnet": args.wordnet, "command": _command(args)}
    report = evaluate(subjects, args.suite, args.data, args.report, constants, computing, **how)
    print(args.report / "report.html")
    if args.page is not None:
        from training.evaluation.page import write_page

        print(write_page(report, args.page, args.report / "report.csv", args.data))


def _command(args: argparse.Namespace) -> str:
    """What was asked, as it was asked; constants stand in the report."""
    words = [*args.models, "--suite", args.suite]
    for pair in args.difference or []:
        words += ["--difference", pair]
    for name in ("wordnet", "data", "report", "page"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name}", str(value)]
    return "python -m training evaluate " + shlex.join(words)


def _difference(text: str) -> tuple[str, str]:
    first, colon, second = text.partition(":")
    if not (first and colon and second):
        raise ValueError(f"--difference {text!r}; expected the names of two models, as aligned:base.")
    return first, second
