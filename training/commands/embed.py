"""Features of images through any timm or open_clip model.

Reads IMAGES: a folder, a CSV manifest with a column `path`, hf:NAME_OR_PATH[:SPLIT], or wds:SHARDS.tar. Writes to
--out features.npy (or shards), names.txt, index.json, and labels.txt with groups.npy where the images have classes.
Killed at any point, the same command goes on where it stopped. On many processes or GPUs: torchrun
--nproc-per-node N -m training embed ...
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Model, images, folder, and the fields of EmbedConfig."""
    from training.embed import EmbedConfig
    from training.models import MODELS
    from training.timm_models import Framing, Output

    known = ", ".join(MODELS)
    parser.add_argument("model", help=f"one of {known}; or timm:NAME, or open_clip:ARCH/PRETRAINED")
    parser.add_argument("images", help="where the images come from")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    parser.add_argument("--checkpoint", type=Path, help="local weights (.pt, .pth, .safetensors) instead of the hub's")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="random weights instead of the hub's")
    parser.add_argument("--output", choices=get_args(Output), help="feature point; the model's own if not given")
    parser.add_argument("--side", type=int, help="of the square input in pixels; the model's own if not given")
    parser.add_argument("--framing", choices=get_args(Framing), help="the library's crop, or squashed to a square")
    options.add_options(parser, EmbedConfig)


def do(args: argparse.Namespace) -> None:
    """Embed, and print the index without its lists."""
    from training.embed import EmbedConfig, embed
    from training.images import open_images
    from training.models import build
    from training.processes import place, processes

    config = options.read_options(args, EmbedConfig)
    random = args.random_weights is not None
    if random and args.checkpoint is not None:
        raise ValueError("--checkpoint and --random-weights exclude each other.")
    encoder = build(
        args.model,
        checkpoint=args.checkpoint,
        output=args.output,
        side=args.side,
        framing=args.framing,
        pretrained=not random,
        seed=args.random_weights or 0,
    )
    with processes(config.device) as device:
        index = embed(encoder, args.model, open_images(args.images), args.out, replace(config, device=device))
        first = place().rank == 0
    if first:
        counts = {name: len(index[name]) for name in ("skipped", "shards")}
        print(json.dumps({name: value for name, value in (index | counts).items() if name != "pixels"}, indent=2))
