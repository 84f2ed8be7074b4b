"""Ask a vision-language model for the odd one out of triplets of photos, by the paper's prompt.

Any OpenAI-compatible endpoint: --endpoint is its base address, ending in /v1 as a rule. The key, if it needs one, is
read from the environment variable VLM_API_KEY. Writes answers.jsonl and summary.json to --out; killed, the same
command asks only for what has no answer yet.
"""

import argparse
import json
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Data, folder, and the fields of VlmConfig."""
    from training.evaluation.vlm import VlmConfig

    parser.add_argument("--data", type=Path, required=True, help="folder laid out as docs/evaluation.md says")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    options.add_options(parser, VlmConfig)


def do(args: argparse.Namespace) -> None:
    """Ask, and print the summary."""
    from training.evaluation.vlm import VlmConfig, ask_vlm

    print(json.dumps(ask_vlm(args.data, args.out, options.read_options(args, VlmConfig)), indent=2))
