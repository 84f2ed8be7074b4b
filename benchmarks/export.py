"""What exporting is worth on a CPU: the graph against torch, and its precisions against each other.

    python -m benchmarks.export --models vit-ti vit-s vit-b --batches 1 4 16 64

Random weights: speed does not depend on them. For each model and batch size, torch eager, torch.compile (where a C++
compiler is found; --no-compile leaves it out), the graph in each precision, and with --optimizer the float32 graph
as ONNX Runtime's offline transformer optimiser writes it, embed the same images in rounds, one after the other, in
turns who is first, all with the same number of threads; a round of warm-up is not counted, and --seconds ends a cell
early, after two rounds at least. Time is that of the clock on the wall, or with --clock cpu,
for one thread on a machine that others keep busy, the seconds that this process had of a processor. Printed, as JSON:
the median over rounds of the ratio to torch eager within a round, so that what else the machine does hits all sides
alike, and of each graph's ratio to the float32 graph, and how many rounds there were; milliseconds an image are for
orientation only. What a cell gave stands on standard error as soon as it is measured.

All sides of a model are in memory at once, and each graph keeps what its largest batch took: ViT-B in batches of 64
takes several gigabytes.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from contract.graph import GPU_ONLY
from contract.manifest import GRAPH_INPUT
from export.graph import EmbeddingModel, export_graph
from export.precision import PRECISIONS, convert
from training.models import build

MODELS = {
    "vit-ti": "timm:vit_tiny_patch16_224",
    "vit-s": "timm:vit_small_patch16_224",
    "vit-b": "timm:vit_base_patch16_224",
}

LEAST_ROUNDS = 2

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 4, 16, 64))
    on_a_cpu = [precision for precision in PRECISIONS if precision not in GPU_ONLY]
    parser.add_argument("--precisions", nargs="+", choices=on_a_cpu, default=("fp32", "int8"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--optimizer", action="store_true", help="the float32 graph through the offline optimiser too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="at most, of a cell (%(default)s)")
    parser.add_argument("--seconds", type=float, default=np.inf, help="no round of a cell begins after them (no end)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the seconds of all threads; it is for --threads 1.")
    torch.set_num_threads(args.threads)
    print(json.dumps({name: _model(name, args) for name in args.models}, indent=2))


def _model(name: str, args: argparse.Namespace) -> dict[str, Any]:
    encoder = build(MODELS[name], pretrained=False)
    model = EmbeddingModel(encoder).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = {precision: Path(folder) / f"{precision}.onnx" for precision in ("fp32", *args.precisions)}
        export_graph(model, encoder.pixels.shape, files["fp32"])
        rng = np.random.default_rng(0)
        calibration = rng.integers(0, 256, (8, *encoder.pixels.shape), dtype=np.uint8)
        for precision in set(args.precisions) - {"fp32"}:
            convert(files["fp32"], files[precision], precision, calibration)
        sides: dict[str, Callable[[Any], Any]] = {"eager": _torch(model)}
        if args.compile:
            sides["compile"] = _torch(torch.compile(model))
        if args.optimizer:
            files["optimizer"] = _optimized(files["fp32"], encoder.module.backbone)
        sides |= {precision: _graph(file, args.threads) for precision, file in files.items()}
        batches = {}
        for n in args.batches:
            batches[n] = _batch(sides, rng.integers(0, 256, (n, *encoder.pixels.shape), dtype=np.uint8), args)
            print(json.dumps({"model": name, "batch": n, **batches[n]}), file=sys.stderr, flush=True)
        return {
            "megabytes": {precision: round(file.stat().st_size / 1e6, 1) for precision, file in files.items()},
            "batches": batches,
            "peak resident megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def _optimized(file: Path, backbone: Any) -> Path:
    """The graph after `onnxruntime.transformers.optimizer`, with every fusion that it has for a ViT."""
    from onnxruntime.transformers.optimizer import optimize_model

    heads, width = backbone.blocks[0].attn.num_heads, backbone.embed_dim
    optimized = optimize_model(str(file), model_type="vit", num_heads=heads, hidden_size=width, opt_level=0)
    optimized.save_model_to_file(str(file.with_name("optimizer.onnx")))
    return file.with_name("optimizer.onnx")


def _torch(model: Any) -> Callable[[Any], Any]:
    def run(pixels: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels))

    return run


def _graph(file: Path, threads: int) -> Callable[[Any], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {GRAPH_INPUT: pixels})


def _batch(sides: dict[str, Callable[[Any], Any]], pixels: Any, args: argparse.Namespace) -> dict[str, Any]:
    clock = CLOCKS[args.clock]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    began = np.inf
    for number in range(args.rounds + 1):
        if number == 1:
            began = time.perf_counter()
        if number > LEAST_ROUNDS and time.perf_counter() - began > args.seconds:
            break
        for name, run in sorted(sides.items(), reverse=bool(number % 2)):  # neither is always the first
            start = clock()
            run(pixels)
            if number:  # the first round warms up, and compiles
                seconds[name].append(clock() - start)
    return {
        "rounds": len(seconds["eager"]),
        "ms an image": {name: round(median(taken) / len(pixels) * 1000, 1) for name, taken in seconds.items()},
        "times as fast as eager": _ratios(seconds, "eager"),
        "times as fast as fp32": {k: v for k, v in _ratios(seconds, "fp32").items() if k not in ("eager", "compile")},
    }


def _ratios(seconds: dict[str, list[float]], against: str) -> dict[str, float]:
    return {
        name: round(median(a / b for a, b in zip(seconds[against], taken, strict=True)), 2)
        for name, taken in seconds.items()
        if name != against
    }


if __name__ == "__main__":
    main()
