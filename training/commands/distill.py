"""Distil a teacher's judgments into a ViT.

Reads IMAGES (a folder, a CSV manifest, hf:..., wds:...) and either the teacher's vectors (--teacher, .npy) with their
clusters (--groups, of `cluster`), or triplets that a teacher has judged (--triplets, the official .npz layout). Rows of
an .npy are of the images that names.txt beside it names, and other images are left out; without that list there is one
for each image, in order. Writes config.json, log.jsonl, checkpoint.pt and weights.safetensors to --out;
with --readout-blocks also blocks/, start/ and readout.safetensors. Killed at any point, the same command
goes on where it stopped, to the same weights. On many processes or GPUs:
torchrun --nproc-per-node N -m training distill ...
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Student, images, teacher, and the fields of FeedConfig and DistillConfig."""
    from training.feeds import FeedConfig
    from training.models import MODELS
    from training.readout import ReadoutConfig
    from training.trainer import DistillConfig

    known = ", ".join(MODELS)
    parser.add_argument("model", help=f"the student: one of {known}; or timm:NAME, or open_clip:ARCH/PRETRAINED")
    parser.add_argument("images", help="where the images come from")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or to continue")
    parser.add_argument("--checkpoint", type=Path, help="local weights (.pt, .pth, .safetensors) instead of the hub's")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="a student from scratch")
    parser.add_argument("--side", type=int, help="of the square input in pixels; the model's own if not given")
    parser.add_argument("--teacher", type=Path, help=".npy [n, k], aligned vectors of the images")
    parser.add_argument("--groups", type=Path, help=".npy [n], clusters or classes; -1 for images not to train on")
    parser.add_argument("--triplets", type=Path, help="official .npz or folder of shards; the feed is then `labelled`")
    parser.add_argument(
        "--classes", type=Path, help=".npy [n], class of each image, where class-border --triplets are not ImageNet's"
    )
    parser.add_argument("--regress-on", type=Path, help=".npy [n, p] that the regression predicts; --teacher's if not")
    r = ReadoutConfig()
    parser.add_argument(
        "--readout-blocks",
        type=int,
        default=0,
        help="the embedding is a linear readout of so many last blocks, as long as --teacher's vectors and fitted to "
        f"them before the first step (as in the recipes: {r.blocks}); 0 for the model's own embedding",
    )
    parser.add_argument("--readout-penalty", type=float, default=r.penalty, help="of that fit (%(default)s)")
    parser.add_argument("--readout-dropout", type=float, default=r.dropout, help="before the readout (%(default)s)")
    parser.add_argument("--device", default="cpu", help="`cuda` is each process's own GPU")
    options.add_options(parser, FeedConfig)
    options.add_options(parser, DistillConfig)


def do(args: argparse.Namespace) -> None:
    """Distil; what there is to see is in --out."""
    from training.distill import distill
    from training.images import open_images
    from training.loading import PixelLoader
    from training.models import build
    from training.processes import processes
    from training.trainer import DistillConfig

    config = options.read_options(args, DistillConfig)
    with processes(args.device) as device:
        images, given = _matched(args, open_images(args.images))
        random = args.random_weights is not None
        student = build(
            args.model,
            checkpoint=args.checkpoint,
            side=args.side,
            pretrained=not random,
            seed=args.random_weights or 0,
        )
        if args.readout_blocks:
            student = _with_readout(args, student, images, given, device)
        feed, inputs = _feed(args, images, given)
        load = PixelLoader(images, student.pixels)
        distill(
            student, load, given.teacher, feed, config, args.out, inputs=inputs, targets=given.targets, device=device
        )


class _Given(NamedTuple):
    """What the options name, a row an image; None where one was not given."""

    teacher: Any
    targets: Any
    groups: Any
    classes: Any


def _matched(args: argparse.Namespace, images: Any) -> tuple[Any, _Given]:
    """The images that --teacher and the others have rows of, and these rows."""
    from training.named_rows import match, read_groups, read_vectors
    from training.processes import place
    from training.subset import Subset

    if args.classes is not None and args.triplets is None:
        raise ValueError("--classes checks --triplets, which are not given; groups to draw from are --groups.")
    vectors = [None if file is None else read_vectors(file) for file in (args.teacher, args.regress_on)]
    numbers = [None if file is None else read_groups(file) for file in (args.groups, args.classes)]
    found = match(images.names, args.images, vectors + numbers)
    if found.said and place().rank == 0:
        print(found.said, file=sys.stderr)
    return images if found.kept is None else Subset(images, found.kept), _Given(*found.values)


def _with_readout(args: argparse.Namespace, student: Any, images: Any, given: _Given, device: str) -> Any:
    """The student with a readout that is fitted to the teacher's vectors of the images that are trained on."""
    from training.embed import EmbedConfig, extract
    from training.readout import ReadoutConfig, block_features, start_readout, with_readout
    from training.student_model import READOUT

    teacher, groups = given.teacher, given.groups
    if teacher is None or groups is None:
        raise ValueError("--readout-blocks needs the vectors of --teacher and the images of --groups.")
    config = ReadoutConfig(blocks=args.readout_blocks, penalty=args.readout_penalty, dropout=args.readout_dropout)
    read = block_features(student, config.blocks)
    features = extract(read, f"{args.model}, last blocks", images, args.out / "blocks", EmbedConfig(device=device))
    rows = np.flatnonzero(groups >= 0)
    student = with_readout(read, teacher.shape[1], dropout=config.dropout)
    start_readout(student, features[rows], teacher[rows], config.penalty, args.out / "start" / READOUT)
    return student


def _feed(args: argparse.Namespace, images: Any, given: _Given) -> Any:
    """(the feed, what it is made of). The images that it draws from must be there."""
    from training.distill import inputs_of
    from training.feeds import FeedConfig, feed_of, labelled_feed
    from training.images import require_present
    from training.subset import Subset
    from training.triplet_files import Names
    from training.triplet_gates import Gates, load

    config = options.read_options(args, FeedConfig)
    if (args.triplets is None) == (given.teacher is None or given.groups is None):
        raise ValueError("give either --teacher with --groups, or --triplets (--teacher may then check them).")
    if args.triplets is not None:
        names = Names(np.array(images.names), args.images)
        loaded = load(args.triplets, names, Gates(), features=given.teacher, classes=given.classes)
        require_present(Subset(images, np.unique(loaded.rows)), args.images)
        feed = labelled_feed(loaded.rows, loaded.similarities, batch=config.batch, seed=config.feed_seed)
        constants = {"feed": "labelled", "batch": config.batch, "feed_seed": config.feed_seed}
        return feed, inputs_of(images, constants, triplets=loaded.rows, similarities=loaded.similarities)
    require_present(images, args.images)
    feed = feed_of(config, np.flatnonzero(given.groups >= 0), given.groups)
    return feed, inputs_of(images, asdict(config), groups=given.groups)
