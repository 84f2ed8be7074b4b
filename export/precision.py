"""One float32 graph in other precisions.

fp16-weights   weights stored as float16, computed in float32: half the file, and on a CPU the speed of float32,
               because ONNX Runtime widens the weights once when it loads
bf16-weights   weights stored as bfloat16, computed in float32: the same size, less exact; nothing is lost of weights
               that were published in bfloat16
int8-weights   weights of products stored as int8 in blocks of 32 with a scale each, the other large ones as float16,
               computed in float32: a quarter of the file, the same speed
fp16           weights and arithmetic in float16; for GPUs, a CPU is slower at it than at float32
bf16           products in bfloat16, for GPUs alone: ONNX Runtime on a CPU has none (`export.bfloat16`)
int8           weights and activations of products in int8: transformers dynamically, with ranges of each batch;
               convolutional networks statically, with ranges measured on given images
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contract.manifest import GRAPH_INPUT
from export.bfloat16 import bfloat16_tensor, brain

Precision = Literal["fp32", "fp16-weights", "bf16-weights", "fp16", "bf16", "int8-weights", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Smaller tensors (biases, clip bounds, the exponent) gain nothing and would lose digits.
_LEAST_ELEMENTS = 4096

BLOCK = 32
"""Weights that share one scale: an outlier among them costs its neighbours digits, a smaller block costs bytes."""


def require_known(asked: tuple[str, ...]) -> None:
    """Raises ValueError naming a precision that there is not."""
    if unknown := sorted(set(asked) - set(PRECISIONS)):
        raise ValueError(f"--precision {' '.join(unknown)}; expected {', '.join(PRECISIONS)}.")


def convert(source: Path, target: Path, precision: Precision, calibration: NDArray[Any]) -> None:
    """Write the float32 graph `source` in `precision` to `target`.

    Args:
        calibration: [n, 3, height, width] pixels that static int8 ranges are measured on.
    """
    writers: dict[Precision, Callable[[], None]] = {
        "fp32": lambda: onnx.save(onnx.load(str(source)), str(target)),
        "fp16-weights": lambda: onnx.save(_small_weights(onnx.load(str(source)), _halves), str(target)),
        "bf16-weights": lambda: onnx.save(_small_weights(onnx.load(str(source)), _brains), str(target)),
        "int8-weights": lambda: onnx.save(_small_weights(onnx.load(str(source)), _blocks), str(target)),
        "fp16": lambda: onnx.save(_half(onnx.load(str(source))), str(target)),
        "bf16": lambda: onnx.save(brain(onnx.load(str(source))), str(target)),
        "int8": lambda: _int8(source, target, calibration),
    }
    writers[precision]()


def is_transformer(model: onnx.ModelProto) -> bool:
    """Whether most of the graph's weights are in matrix products, not in convolutions."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    inside: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            inside["Conv" if node.op_type == "Conv" else "MatMul"] += sizes.get(node.input[1], 0)
    return inside["MatMul"] > inside["Conv"]


# --- small weights, computed in float32 --------------------------------------------------------------


Stored = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]
"""A weight in fewer bits, and the nodes that widen it."""


def _small_weights(model: onnx.ModelProto, store: Callable[[str, NDArray[np.float32]], Stored]) -> onnx.ModelProto:
    """Large float32 initializers in fewer bits, each widened by nodes that ONNX Runtime folds when it loads.

    Args:
        store: how; `_blocks` is for the matrices of products, and everything else is then float16.
    """
    graph = model.graph
    multiplied = {node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}
    kept: list[onnx.TensorProto] = []
    wideners: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < _LEAST_ELEMENTS:
            kept.append(tensor)
            continue
        fits = store is not _blocks or tensor.name in multiplied
        stored, nodes = (store if fits else _halves)(tensor.name, array)
        kept += stored
        wideners += nodes
    nodes = [*wideners, *graph.node]
    for field, values in ((graph.initializer, kept), (graph.node, nodes)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(model)
    return model


def _halves(name: str, array: NDArray[np.float32]) -> Stored:
    return _widened(name, numpy_helper.from_array(array.astype(np.float16), f"{name}_fp16"))


def _brains(name: str, array: NDArray[np.float32]) -> Stored:
    return _widened(name, bfloat16_tensor(array, f"{name}_bf16"))


def _widened(name: str, stored: onnx.TensorProto) -> Stored:
    return [stored], [helper.make_node("Cast", [stored.name], [name], f"widen_{name}", to=TensorProto.FLOAT)]


def _blocks(name: str, array: NDArray[np.float32]) -> Stored:
    """Weights as int8 [blocks, 32] times float16 scales [blocks, 1]; blocks run along what a product adds up.

    The last block is filled up with zeros. Scales are rounded before the weights are divided by them, so that
    their rounding costs nothing.
    """
    # [k, n] of a matrix product sums over k, [o, i, h, w] of a convolution over i, h, w.
    rows = array.T if array.ndim == 2 else array.reshape(len(array), -1)
    shape = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -shape[1] % BLOCK)))
    block = padded.reshape(-1, BLOCK)
    scale = np.abs(block).max(1, keepdims=True) / 127
    scale = np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16)
    whole = np.clip(np.rint(block / scale.astype(np.float32)), -127, 127).astype(np.int8)
    parts = {
        "int8": whole,
        "scale": scale,
        "padded": np.array(padded.shape, np.int64),
        "ends": np.array([shape[1]], np.int64),
        "starts": np.array([0], np.int64),
        "axes": np.array([1], np.int64),
        "shape": np.array(rows.shape if array.ndim == 2 else array.shape, np.int64),
    }
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["int8"], "numbers", {"to": TensorProto.FLOAT}),
        ("Cast", ["scale"], "scales", {"to": TensorProto.FLOAT}),
        ("Mul", ["numbers", "scales"], "blocks", {}),
        ("Reshape", ["blocks", "padded"], "rows", {}),
        ("Slice", ["rows", "starts", "ends", "axes"], "cut", {}),
        ("Reshape", ["cut", "shape"], "", {}) if array.ndim != 2 else ("Transpose", ["cut"], "", {"perm": [1, 0]}),
    ]
    nodes = [
        helper.make_node(
            kind,
            [f"{name}_{given}" for given in inputs],
            [f"{name}_{out}" if out else name],
            f"widen_{name}_{i}",
            **attributes,
        )
        for i, (kind, inputs, out, attributes) in enumerate(steps)
    ]
    used = {given for _, inputs, _, _ in steps for given in inputs}
    return [numpy_helper.from_array(part, f"{name}_{key}") for key, part in parts.items() if key in used], nodes


# --- half arithmetic ---------------------------------------------------------------------------------


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Cast keeps the uint8 input; the power and norm of the head lose too much in half precision.
    blocked = ["Cast", "Pow", "ReduceSum", "Sqrt", "Div"]
    converted = OnnxModel(
        convert_float_to_float16(
            model, keep_io_types=True, op_block_list=blocked, node_block_list=_turned_before_products(model.graph)
        )
    )
    converted.topological_sort()  # the casts it adds stand at the end
    out: onnx.ModelProto = converted.model
    del out.graph.value_info[:]  # types of before
    # It casts a value once for each blocked operator that reads it, under one name: the first is enough.
    once = {node.output[0]: node for node in reversed(out.graph.node)}
    kept = [node for node in out.graph.node if once[node.output[0]] is node]
    del out.graph.node[:]
    out.graph.node.extend(kept)
    onnx.checker.check_model(out)
    return out


def _turned_before_products(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that transpose what a layer multiplies, as open_clip's attention does.

    In half precision, ONNX Runtime (1.24 to 1.31) ends the process when it loads one on a CPU
    (microsoft/onnxruntime issue 28392: a transposition, a cast to float32, a product).
    """
    constant = {tensor.name for tensor in graph.initializer}
    multiplied = {n.input[0] for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constant}
    return [node.name for node in graph.node if node.op_type == "Transpose" and node.output[0] in multiplied]


# --- int8 arithmetic ---------------------------------------------------------------------------------


def _int8(source: Path, target: Path, calibration: NDArray[Any]) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    model = onnx.load(str(prepared))
    if is_transformer(model):
        _dynamic(prepared, target)
    else:
        _static(prepared, target, model, calibration)
    prepared.unlink(missing_ok=True)


def _dynamic(prepared: Path, target: Path) -> None:
    """Products with constant weights; those of attention, between two activations, stay in float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(prepared),
        str(target),
        op_types_to_quantize=["MatMul"],
        per_channel=True,  # half the flips of one scale a matrix
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _static(prepared: Path, target: Path, model: onnx.ModelProto, calibration: NDArray[Any]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._feeds = iter([{GRAPH_INPUT: image[None]} for image in calibration])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    quantized = convolutions[1:-1]  # the stem sees raw pixels, the head makes the judgments
    if not quantized:  # an empty list would mean "all" below
        prepared.replace(target)
        return
    quantize_static(
        str(prepared),
        str(target),
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=quantized,
    )
