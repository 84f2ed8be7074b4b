"""The command line: `python -m export bundle RUN ...`, `card BUNDLE`, `triton BUNDLE --repository DIR`."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

from contract.bundle import read_bundle
from export import triton
from export.card import card


def main() -> None:
    """Export; exit 1 with a message where the run, the parity or the target is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Aligned models to verified bundles.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_bundle(commands)
    described = commands.add_parser("card", help="the model card of a bundle as Markdown, on standard output")
    described.add_argument("bundle", type=Path, help="a bundle folder")
    _add_triton(commands)
    args = parser.parse_args()
    try:
        {"bundle": _bundle, "card": _card, "triton": _triton}[args.command](args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _add_bundle(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "bundle",
        help="a training run to a bundle",
        description="Reads the run folder RUN and photos under --data; prints the parity report of every precision "
        "and writes the bundle --out in the first precision of --precision that keeps the judgments.",
    )
    command.add_argument("run", type=Path, help="a complete run folder of `python -m training run`")
    command.add_argument("--data", type=Path, required=True, help="folder the run was trained on")
    command.add_argument("--out", type=Path, required=True, help="bundle folder to make; must not exist")
    command.add_argument("--golden", type=Path, nargs="+", required=True, help="photos that become golden images")
    command.add_argument(
        "--precision",
        nargs="+",
        default=["int8", "fp16-weights", "fp32"],
        help="precisions the bundle may have, the most wanted first (default: what suits a CPU)",
    )


def _bundle(args: argparse.Namespace) -> None:
    from export.package import package  # here, because it needs torch, and the other commands do not
    from export.precision import PRECISIONS

    if unknown := sorted(set(args.precision) - set(PRECISIONS)):
        raise ValueError(f"--precision {' '.join(unknown)}; expected {', '.join(PRECISIONS)}.")
    bundle, report = package(
        args.run, args.data, args.out, precisions=tuple(args.precision), golden_photos=tuple(args.golden)
    )
    print(report)
    size = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    fingerprint = bundle.manifest.spaces["aligned"].fingerprint
    print(f"{bundle.path}: {bundle.manifest.precision}, {size:.1f} MB, space {fingerprint}")


def _card(args: argparse.Namespace) -> None:
    print(card(read_bundle(args.bundle).manifest), end="")


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
