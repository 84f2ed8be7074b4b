"""Write the page of results, with tables and plots.

Reads the run folders RUNS of students, the main one first, and the photos and judgments under --data; writes
results.md and results/*.svg to --out.
"""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Runs, data and folder."""
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of students; others are compared to the first")
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page, such as docs")


def do(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from training.results import write_results

    print(write_results(args.runs, args.data, args.out))
