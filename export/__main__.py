"""The command line: `python -m export bundle SOURCE ...`, `card BUNDLE`, `triton BUNDLE --repository DIR`."""

import argparse
import sys
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from contract.bundle import read_bundle
from contract.manifest import MODEL, Figure
from export import triton
from export.card import card
from export.report_figures import figures_of
from training.evaluation.stored_report import read_report


def main() -> None:
    """Export; exit 1 with a message where the run, the parity or the target is not as it must be."""
    args = parser().parse_args()
    try:
        {"bundle": _bundle, "card": _card, "triton": _triton}[args.command](args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def parser() -> argparse.ArgumentParser:
    """All that `python -m export` takes; shells complete and the reference is written from it."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Aligned models to verified bundles.")
    parser.add_argument("--version", action="version", version=f"alignet-serve {version('alignet-serve')}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_bundle(commands)
    described = commands.add_parser("card", help="the model card of a bundle as Markdown, on standard output")
    described.add_argument("bundle", type=Path, help="a bundle folder")
    _add_report(described, "the manifest's; --report-model may be left out where the report is of this very bundle")
    _add_triton(commands)
    return parser


def _add_report(command: argparse.ArgumentParser, instead_of: str) -> None:
    command.add_argument(
        "--report",
        type=Path,
        help=f"report.json of `python -m training evaluate`, or its folder: its figures instead of {instead_of}",
    )
    command.add_argument(
        "--report-model", metavar="AFTER[:BEFORE]", help="names in the report: whose figures, and compared with which"
    )


def _add_bundle(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "bundle",
        help="a training run, or any model, to a bundle",
        description="Writes SOURCE as one graph, prints the parity report of float32 and of every precision asked for, "
        "and writes the bundle --out in the first precision of --precision that keeps the judgments. Photos for the "
        "report come from --images, or for a run from --data.",
    )
    command.add_argument(
        "source",
        help="a complete run folder of `python -m training run`, `perceptual` or `joint`; or a model: a name of the "
        "table in training/models.py, timm:NAME or open_clip:ARCH/PRETRAINED",
    )
    command.add_argument("--out", type=Path, required=True, help="bundle folder to make; must not exist")
    command.add_argument("--data", type=Path, help="folder that a run was trained on")
    command.add_argument("--images", help="photos: a folder, a CSV manifest, hf:NAME[:SPLIT] or wds:SHARDS")
    command.add_argument(
        "--precision",
        nargs="+",
        default=["int8", "fp16-weights", "fp32"],
        help="precisions the bundle may have, the most wanted first (default: what suits a CPU); "
        "fp32, fp16-weights, bf16-weights, int8-weights, int8; fp16 and bf16, for GPUs",
    )
    command.add_argument("--force", action="store_true", help="let an int8 precision leave above its limits")
    command.add_argument("--space", choices=("aligned", "both"), help="serve the base space beside; both, if there is")
    command.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="pixels that the graph takes: uint8, which it normalises itself, or float32 normalised as timm's and "
        "torchvision's transforms do (%(default)s)",
    )
    command.add_argument(
        "--dimensions",
        type=Path,
        metavar="FILE",
        help="text file with a name for each dimension of the aligned space, one a line, where they have a meaning",
    )
    command.add_argument("--golden", type=Path, nargs="+", default=[], help="photos that become golden images")
    command.add_argument("--parity-photos", type=int, help="photos that precisions are compared on (600)")
    command.add_argument("--calibration-photos", type=int, help="others, for ranges of a convolutional int8 (200)")
    command.add_argument(
        "--calibrate",
        type=Path,
        help="fit the temperature: a folder with images.csv and things/, or a CSV of choices (image_0, image_1, "
        "image_2, odd_position); a run with --data is calibrated on its own held-out splits",
    )
    command.add_argument("--held-out", type=Path, help="concepts of --calibrate that the model was not fitted on")
    _add_report(command, "the run's own; needs --report-model")
    server = command.add_argument_group("for parity in Triton")
    server.add_argument(
        "--triton",
        metavar="HOST:PORT",
        help="gRPC of a Triton server started with --model-control-mode=explicit: every precision is loaded into it "
        "under a name of its own, measured and unloaded, and must pass there too",
    )
    server.add_argument("--triton-backend", choices=get_args(triton.Backend), default="onnxruntime")
    server.add_argument("--triton-device", choices=get_args(triton.Device), default="cpu")
    model = command.add_argument_group("for a model")
    model.add_argument("--checkpoint", type=Path, help="local weights (.pt, .pth, .safetensors) instead of the hub's")
    model.add_argument("--random-weights", type=int, metavar="SEED", help="to try things out")
    model.add_argument("--transform", type=Path, help="a transform: ours, or a published one")
    model.add_argument("--entry", nargs=3, metavar=("SOURCE", "MODEL", "MODULE"), help="of a pickle of transforms")
    model.add_argument("--mean", type=float, help="of the THINGS features, for a pickle of transforms")
    model.add_argument("--std", type=float, help="of the THINGS features, for a pickle of transforms")
    model.add_argument("--triplet-head", type=Path, help="a student's triplet_head.safetensors")
    outputs = ("cls", "pooled", "map", "embedding", "levels")
    model.add_argument("--output", choices=outputs, help="feature point; the model's own if not given")
    model.add_argument("--side", type=int, help="of the square input in pixels; the model's own if not given")
    model.add_argument("--framing", choices=("own", "squash"), help="how a photo becomes square")
    model.add_argument("--name", default="", help="of the bundle; made from the model's if not given")
    model.add_argument("--license", default="", help="of the weights as shipped; the model's if not given")


def _bundle(args: argparse.Namespace) -> None:
    from export.package import PackageOptions, package  # here: it needs torch, and the other commands do not
    from export.sources import read_dimensions, serving
    from export.triton_parity import Server

    server = None if args.triton is None else Server(args.triton, args.triton_backend, args.triton_device)
    options = PackageOptions(
        precisions=tuple(args.precision),
        force=args.force,
        golden_photos=tuple(args.golden),
        parity_photos=args.parity_photos,
        calibration_photos=args.calibration_photos,
        triton=server,
    )
    if args.out.exists():
        raise FileExistsError(f"{args.out} exists; remove it or choose another folder.")
    figures = _reported(args)
    source, images, calibrator = _of_run(args) if Path(args.source).is_dir() else _of_model(args)
    if args.space is not None:
        source = serving(source, args.space)
    source = replace(source, input=args.input)
    if figures is not None:
        source = replace(source, figures=figures)
    if args.dimensions is not None:
        source = replace(source, dimensions=read_dimensions(args.dimensions))
    bundle, report = package(source, images, args.out, options, calibrator)
    print(report)
    size = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    fingerprint = bundle.manifest.spaces["aligned"].fingerprint
    forced = ", FORCED above its limits" if bundle.manifest.parity["forced"] else ""
    print(f"{bundle.path}: {bundle.manifest.precision}{forced}, {size:.1f} MB, space {fingerprint}")


def _of_run(args: argparse.Namespace) -> Any:
    """(source, photos, calibrator) of a run folder."""
    from export import calibration
    from export.perceptual import is_perceptual
    from export.sources import ModelOptions, read_run, require_run
    from training.images import open_images

    run = Path(args.source)
    perceptual = is_perceptual(run)
    if not perceptual:
        require_run(run)
    for field in fields(ModelOptions):
        if getattr(args, field.name, None) not in (None, ""):
            raise ValueError(f"--{field.name.replace('_', '-')} is for a model; {run} is a run, which has its own.")
    if perceptual:
        return _of_perceptual(args, run)
    if args.data is None and args.images is None:
        raise ValueError("a run needs --data, the folder that it was trained on, or --images.")
    source, photos = read_run(run, args.data)
    if args.calibrate is not None:
        raise ValueError("a run is calibrated on its own held-out splits; give --data instead of --calibrate.")
    images = open_images(args.images) if args.images is not None else photos
    return source, images, None if args.data is None else lambda _: calibration.of_run(run, args.data)


def _of_perceptual(args: argparse.Namespace, run: Path) -> Any:
    """(source, photos, calibrator) of a run of perceptual or joint alignment, which says nothing of photos."""
    from export import calibration
    from export.perceptual import read_perceptual
    from training.images import open_images

    if args.data is not None or args.images is None:
        raise ValueError(f"{run} is a perceptual alignment; it needs --images, and --calibrate instead of --data.")
    source, images = read_perceptual(run), open_images(args.images)
    if args.calibrate is None:
        return source, images, None
    judgments = calibration.read_judgments(args.calibrate, args.held_out)
    return source, images, lambda embed: calibration.of_vectors(judgments, embed, source.kernel)


def _of_model(args: argparse.Namespace) -> Any:
    """(source, photos, calibrator) of a model by name."""
    from export import calibration
    from export.sources import ModelOptions, read_model
    from training.images import open_images
    from training.transform_stage import Legacy

    if args.data is not None or args.images is None:
        raise ValueError(f"{args.source} is no run folder; a model needs --images, and has no --data.")
    pickled = [args.entry, args.mean, args.std]
    if any(part is not None for part in pickled) and any(part is None for part in pickled):
        raise ValueError("a pickle of transforms needs --entry, --mean and --std, all three.")
    legacy = None if args.entry is None else Legacy(tuple(args.entry), args.mean, args.std)
    names = {field.name for field in fields(ModelOptions)} - {"model", "legacy"}
    images = open_images(args.images)
    judgments = None if args.calibrate is None else calibration.read_judgments(args.calibrate, args.held_out)
    given = {name: getattr(args, name) for name in names}
    source = read_model(ModelOptions(model=args.source, legacy=legacy, **given))
    if judgments is None:
        return source, images, None
    return source, images, lambda embed: calibration.of_vectors(judgments, embed, source.kernel)


def _card(args: argparse.Namespace) -> None:
    manifest = read_bundle(args.bundle).manifest
    figures = _reported(args, manifest.files[MODEL].sha256)
    print(card(manifest) if figures is None else card(replace(manifest, figures=figures), reported=True), end="")


def _reported(args: argparse.Namespace, graph: str | None = None) -> list[Figure] | None:
    """Figures of --report, read before anything slow; None where none was given."""
    if args.report is None:
        if args.report_model is not None:
            raise ValueError("--report-model is of a report; give --report too.")
        return None
    if args.report_model is None and graph is None:
        raise ValueError("--report needs --report-model: the bundle is still to be made, and has no name in a report.")
    return figures_of(read_report(args.report), args.report_model, graph)


def _add_triton(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "triton",
        help="a bundle to a Triton model repository",
        description="Runs the graph of BUNDLE, then writes it with a configuration for Triton Inference Server.",
    )
    d = triton.Options()
    command.add_argument("bundle", type=Path, help="a bundle folder")
    command.add_argument("--repository", type=Path, required=True, help="repository folder to make; must not exist")
    command.add_argument("--backend", choices=get_args(triton.Backend), default=d.backend, help="what runs the graph")
    command.add_argument("--device", choices=get_args(triton.Device), default=d.device, help="where it runs")
    command.add_argument(
        "--max-batch", type=int, default=d.max_batch, help="images in one inference (default: 4 on a CPU, else 32)"
    )
    command.add_argument(
        "--instances", type=int, default=d.instances, help="copies that run side by side (%(default)s)"
    )
    command.add_argument("--threads", type=int, default=d.threads, help="CPU threads of one inference; 0 is all cores")
    command.add_argument(
        "--queue-delay", type=int, default=d.queue_delay, help="microseconds a batch may wait to fill (%(default)s)"
    )
    command.add_argument("--max-queue", type=int, default=d.max_queue, help="requests that may wait (%(default)s)")
    command.add_argument(
        "--queue-timeout", type=float, default=d.queue_timeout, help="seconds a request may wait (%(default)s)"
    )
    command.add_argument(
        "--engine-cache", default=d.engine_cache, help="folder of TensorRT's engines, on Triton's machine"
    )


def _triton(args: argparse.Namespace) -> None:
    names = [option.name for option in fields(triton.Options)]
    options = triton.Options(**{name: getattr(args, name) for name in names})
    folder = triton.write_repository(args.bundle, args.repository, options)
    print(f"{folder}: backend {options.backend}, {options.device}, batches of at most {options.batch}")


if __name__ == "__main__":
    main()
