"""The command line: `python -m export bundle RUN --data DIR --out DIR`, `python -m export card BUNDLE`."""

import argparse
import sys
from pathlib import Path

from contract.bundle import read_bundle
from export.card import card
from export.package import package
from export.precision import PRECISIONS


def main() -> None:
    """Export; exit 1 with a message where the run, the parity or the target is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Aligned models to verified bundles.")
    commands = parser.add_subparsers(dest="command", required=True)
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
        choices=PRECISIONS,
        nargs="+",
        default=["int8", "fp16-weights", "fp32"],
        help="precisions the bundle may have, the most wanted first (default: what suits a CPU)",
    )
    described = commands.add_parser("card", help="the model card of a bundle as Markdown, on standard output")
    described.add_argument("bundle", type=Path, help="a bundle folder")
    args = parser.parse_args()
    try:
        if args.command == "card":
            print(card(read_bundle(args.bundle).manifest), end="")
            return
        bundle, report = package(
            args.run, args.data, args.out, precisions=tuple(args.precision), golden_photos=tuple(args.golden)
        )
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(report)
    size = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    fingerprint = bundle.manifest.spaces["aligned"].fingerprint
    print(f"{bundle.path}: {bundle.manifest.precision}, {size:.1f} MB, space {fingerprint}")


if __name__ == "__main__":
    main()
