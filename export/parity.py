"""Did the judgments survive? Every precision, in every runtime, against torch on the same photos and triplets."""

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from contract import triplets
from contract.graph import GPU_ONLY
from contract.manifest import GRAPH_INPUT
from contract.pixels import PixelSpec, normalize
from contract.triplets import Kernel
from export.bfloat16 import open_twin
from export.graph import OPSET, Spaces
from export.precision import Precision

BATCH = 8
BEYOND = 1e9
"""Stands for a difference that is not finite: beyond every gate, and JSON can hold it."""
NEIGHBOURS = 10
EMULATED = "emulated on CPU"
"""The runtime of a row whose graph no GPU ran: its twin did, on a CPU, see `export.bfloat16`."""
CUDA = "onnxruntime, CUDA"

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

MAX_COSINE = {
    "fp32": 1e-5,
    "fp16-weights": 1e-3,
    "bf16-weights": 1e-3,
    "fp16": 1e-3,
    "bf16": 1e-3,
    "int8-weights": 1e-2,
    "int8": 1e-2,
}
MAX_FLIPS = {
    "fp32": 0.0,
    "fp16-weights": 0.002,
    "bf16-weights": 0.005,
    "fp16": 0.002,
    "bf16": 0.005,
    "int8-weights": 0.01,
    "int8": 0.01,
}
MAX_ENTROPY_CHANGE = {
    "fp32": 1e-3,
    "fp16-weights": 0.02,
    "bf16-weights": 0.05,
    "fp16": 0.02,
    "bf16": 0.05,
    "int8-weights": 0.1,
    "int8": 0.1,
}
MAX_LENGTH_CHANGE = {
    "fp32": 1e-4,
    "fp16-weights": 0.01,
    "bf16-weights": 0.02,
    "fp16": 0.01,
    "bf16": 0.02,
    "int8-weights": 0.05,
    "int8": 0.05,
}
"""Gates. The float bounds follow serving practice for human-similarity scores; bfloat16 has three bits fewer than
half; int8 must keep 99 % of decisions. EfficientNet-Lite2 and a ViT-S change lengths, in this order,
by 7e-7, 7e-4, 6e-3, 2e-3, 2e-3, 2e-2 and 2e-2 at most where they pass by cosine."""


@dataclass(frozen=True)
class Parity:
    """One precision against torch in float32.

    Attributes:
        one_minus_cosine: largest over photos, in batches and alone, of the aligned vectors;
            `base_one_minus_cosine` of the base ones, None without a base space.
        length_change: largest relative difference of a vector's length, of either space, in batches and alone.
        flips: fraction of triplets with another odd one out (aligned space).
        entropy_change: largest absolute change of the entropy of a triplet, in nats.
        neighbours: mean share of the ten nearest neighbours that stay.
        batch_difference: largest absolute difference between a vector embedded alone and in a batch.
        milliseconds: median per image, alone and in batches of eight.
        bytes: of the file.
        passed: whether it may leave.
        runtime: what ran the graph.
    """

    precision: Precision
    one_minus_cosine: float
    base_one_minus_cosine: float | None
    length_change: float
    flips: float
    entropy_change: float
    neighbours: float
    batch_difference: float
    milliseconds_alone: float
    milliseconds_in_batch: float
    bytes: int
    passed: bool
    runtime: str = "onnxruntime"


Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Runtime:
    """What runs a graph.

    Attributes:
        name: for the report.
        run: uint8 pixels [n, 3, height, width], n of at most `BATCH`, to {output: [n, d]}.
        bytes: of the graph's file.
    """

    name: str
    run: Callable[[NDArray[np.uint8]], Vectors]
    bytes: int


def onnx_runtime(file: Path, outputs: tuple[str, ...], spec: PixelSpec, precision: Precision = "fp32") -> Runtime:
    """The graph in ONNX Runtime on the CPU; its twin where a CPU does not compute in `precision`.

    Args:
        outputs: that it gives.
        spec: of the pixels that it takes.
    """
    name = EMULATED if precision in GPU_ONLY else "onnxruntime"
    return _runtime(name, open_session(file, precision), file, outputs, spec)


def cuda_runtime(file: Path, outputs: tuple[str, ...], spec: PixelSpec) -> Runtime | None:
    """The graph in ONNX Runtime on a GPU; None where ONNX Runtime runs none on one.

    Raises:
        ValueError: there is a GPU, and ONNX Runtime does not run the graph on it.
    """
    if _CUDA not in ort.get_available_providers() or not _runs_on_cuda():
        return None
    options = [(_CUDA, {"cudnn_conv_algo_search": "HEURISTIC"})]
    try:
        session = ort.InferenceSession(str(file), providers=[*options, _CPU])
    except Exception as error:  # ONNX Runtime's own kinds
        raise ValueError(
            f"ONNX Runtime {ort.__version__} does not open {file.stem} on the GPU: "
            f"{textwrap.shorten(str(error), 300)}. Install a newer onnxruntime-gpu, or leave this precision out."
        ) from error
    return _runtime(CUDA, session, file, outputs, spec)


def _runs_on_cuda() -> bool:
    """Whether a session gets the GPU: the package may be installed without a driver, or for another CUDA."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "exp", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=[_CUDA, _CPU])
    return bool(session.get_providers()[0] == _CUDA)


def _runtime(
    name: str, session: ort.InferenceSession, file: Path, outputs: tuple[str, ...], spec: PixelSpec
) -> Runtime:
    def run(pixels: NDArray[np.uint8]) -> Vectors:
        return dict(zip(outputs, session.run(list(outputs), {GRAPH_INPUT: taken(pixels, spec)}), strict=True))

    return Runtime(name, run, file.stat().st_size)


def taken(pixels: NDArray[np.uint8], spec: PixelSpec) -> NDArray[Any]:
    """What a graph takes of uint8 pixels [n, 3, height, width]: the same, or float32 of the contract."""
    return normalize(pixels, spec) if spec.dtype == "float32" else pixels


def limits(precision: Precision) -> dict[str, float]:
    """The gates of one precision: it may leave at these values, and not above."""
    return {
        "one_minus_cosine": MAX_COSINE[precision],
        "flips": MAX_FLIPS[precision],
        "entropy_change": MAX_ENTROPY_CHANGE[precision],
        "length_change": MAX_LENGTH_CHANGE[precision],
    }


def torch_vectors(model: Spaces, pixels: NDArray[Any]) -> Vectors:
    """The reference: torch in float32, {output: [n, d]}."""
    with torch.inference_mode():
        batches = [model(torch.from_numpy(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
    return {name: torch.cat([batch[i] for batch in batches]).numpy() for i, name in enumerate(model.outputs)}


def compare(
    runtime: Runtime,
    precision: Precision,
    reference: Vectors,
    pixels: NDArray[Any],
    index: NDArray[np.int64],
    kernel: Kernel,
    temperature: float,
) -> Parity:
    """Hold what a runtime makes of `pixels` against the reference.

    Args:
        runtime: of the graph in `precision`.
        reference: what torch gave for `pixels`.
        pixels: [n, 3, height, width], uint8 whatever the graph takes.
        index: [t, 3] triplets of rows of `pixels`.
        kernel, temperature: of the aligned space.
    """
    run, singles = runtime.run, min(4 * BATCH, len(pixels))
    ours = _joined([run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])
    alone = _joined([run(pixels[i : i + 1]) for i in range(singles)])
    before = triplets.pair_similarities(reference["aligned"][index].astype(np.float64), kernel)
    after = triplets.pair_similarities(ours["aligned"][index].astype(np.float64), kernel)
    flips = float((triplets.odd_one_out(before) != triplets.odd_one_out(after)).mean())
    entropy = [triplets.entropy(triplets.pair_probabilities(s, temperature)) for s in (before, after)]
    entropy_change = _largest(np.abs(entropy[0] - entropy[1]))
    # What is right in batches may be wrong alone, as most requests are: both are held against the reference.
    pairs = {
        name: (np.concatenate([rows, rows[:singles]]), np.concatenate([ours[name], alone[name]]))
        for name, rows in reference.items()
    }
    worst = {name: one_minus_cosine(*pair) for name, pair in pairs.items()}
    stretch = max(length_change(*pair) for pair in pairs.values())
    return Parity(
        precision=precision,
        one_minus_cosine=worst["aligned"],
        base_one_minus_cosine=worst.get("base"),
        length_change=stretch,
        flips=flips,
        entropy_change=entropy_change,
        neighbours=_neighbour_overlap(reference["aligned"], ours["aligned"]),
        batch_difference=_largest(np.abs(alone["aligned"] - ours["aligned"][:singles])),
        milliseconds_alone=_milliseconds(lambda: run(pixels[:1]), 1),
        milliseconds_in_batch=_milliseconds(lambda: run(pixels[:BATCH]), BATCH),
        bytes=runtime.bytes,
        passed=max(worst.values()) <= MAX_COSINE[precision]
        and stretch <= MAX_LENGTH_CHANGE[precision]
        and flips <= MAX_FLIPS[precision]
        and entropy_change <= MAX_ENTROPY_CHANGE[precision],
        runtime=runtime.name,
    )


def open_session(file: Path, precision: str) -> ort.InferenceSession:
    """The graph, or its twin, on the CPU, its threads asleep between operators: spinning ones starve others."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precision in GPU_ONLY:
        return open_twin(file, options)
    return ort.InferenceSession(str(file), options, providers=[_CPU])


def one_minus_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest 1 - cosine between rows of [n, d] and [n, d], in float64; `BEYOND` if one has no direction."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0 and inf / inf have no direction
        cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return max(0.0, _largest(1 - cosine))


def length_change(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest |1 - length of b / length of a| of rows of [n, d] and [n, d], in float64; `BEYOND` if not finite."""
    x, y = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):  # a row of zeros has no length to be compared with
        return _largest(np.abs(1 - y / x))


def _joined(pieces: list[Vectors]) -> Vectors:
    """{output: [n, d]} of all pieces, one below the other."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _largest(differences: NDArray[np.floating[Any]]) -> float:
    """The largest, `BEYOND` where one is not finite."""
    return float(np.nan_to_num(differences, nan=BEYOND, posinf=BEYOND).max())


def _neighbour_overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    nearest = []
    for vectors in (a, b):
        sims = triplets.similarity_matrix(vectors, vectors, "cosine")
        np.fill_diagonal(sims, -np.inf)
        nearest.append(np.argsort(-sims, axis=1)[:, :NEIGHBOURS])
    return float(np.mean([len(np.intersect1d(x, y)) / NEIGHBOURS for x, y in zip(*nearest, strict=True)]))


def _milliseconds(run: Any, images: int) -> float:
    run()
    times = []
    for _ in range(15):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / images * 1000


def table(rows: list[Parity]) -> str:
    """The report as text, one line for each precision and runtime."""
    width = max([11, *(len(r.runtime) for r in rows)])
    head = f"precision     {'runtime':{width}}  1-cos    length    flips  d-entropy"
    head += "  top-10  batch-diff  ms alone  ms batch  MB     passed"
    lines = [
        f"{r.precision:12}  {r.runtime:{width}} {r.one_minus_cosine:8.1e} {r.length_change:8.1e} {r.flips:7.2%} "
        f"{r.entropy_change:9.1e} {r.neighbours:8.3f} {r.batch_difference:11.1e} "
        f"{r.milliseconds_alone:9.1f} {r.milliseconds_in_batch:9.1f} {r.bytes / 1e6:6.1f}  {r.passed}"
        for r in rows
    ]
    return "\n".join([head, *lines])
