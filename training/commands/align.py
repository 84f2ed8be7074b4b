"""Learn a transform of photo features by uncertainty distillation.

Reads --features (.npy, float32 [photos, p]), --concepts (concept number of each row: .npy, or a CSV manifest with
things_index), --vice (mean embedding .npy, or posterior .npz of `vice`); writes transform.npz and summary.json, with
the sha256 of every input, to --out. Photos of the concepts in --hold-out are used for nothing but the summary's
agreement.
"""

import argparse
import json
from pathlib import Path

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files, folder, and the fields of AlignConfig."""
    from training.align import AlignConfig

    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--concepts", type=Path, required=True)
    parser.add_argument("--vice", type=Path, required=True)
    parser.add_argument("--hold-out", type=Path, help="concept numbers: .npy, or text with one a line")
    parser.add_argument("--samples", type=int, default=50, help="of a posterior, behind the targets; default 50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    options.add_options(parser, AlignConfig)


def do(args: argparse.Namespace) -> None:
    """Align, and print the summary."""
    from training.align import AlignConfig
    from training.align_stage import align

    config = options.read_options(args, AlignConfig)
    given = {"hold_out": args.hold_out, "samples": args.samples, "seed": args.seed}
    print(json.dumps(align(args.features, args.concepts, args.vice, args.out, config, **given), indent=2))
