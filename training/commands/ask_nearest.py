"""Ask a vision-language model what photos show, with the nearest labelled photos of each model as examples.

Retrieval-augmented classification: MODEL as in `evaluate`, the reference first. Any OpenAI-compatible endpoint, as in
`ask-vlm`; --triplets is the number of test photos of each labelled set. Writes every answer and nearest.json,
accuracies with intervals and paired differences, to --out; killed, the same command asks for what has no answer yet.
"""

import argparse
import json
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Models, data, folder, and the fields of VlmConfig."""
    from training.evaluation.vlm import VlmConfig

    parser.add_argument("models", nargs="+", metavar="MODEL", help="[NAME=]MODEL, as in `evaluate`")
    parser.add_argument("--data", type=Path, required=True, help="folder with labelled photos")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    options.add_options(parser, VlmConfig)


def do(args: argparse.Namespace) -> None:
    """Ask, and print the accuracies."""
    from training.evaluation.rag import ask_nearest
    from training.evaluation.subjects import read_subject
    from training.evaluation.vlm import VlmConfig

    subjects = [read_subject(text) for text in args.models]
    figures = ask_nearest(subjects, args.data, args.out, options.read_options(args, VlmConfig))
    print(json.dumps(figures, indent=2))
