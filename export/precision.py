"""One float32 graph in other precisions.

`fp16-weights` stores weights as float16 and computes in float32: half the file, and on a CPU the speed of
float32, because ONNX Runtime widens the weights once when it loads. `fp16` also computes in float16, which
suits GPUs. `int8` quantises weights and activations of the convolutions, calibrated on given images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contract.bundle import GRAPH_INPUT

Precision = Literal["fp32", "fp16-weights", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Smaller tensors (biases, clip bounds, the exponent) gain nothing and would lose digits.
_LEAST_ELEMENTS = 4096


def convert(source: Path, target: Path, precision: Precision, calibration: NDArray[Any]) -> None:
    """Write the float32 graph `source` in `precision` to `target`.

    Args:
        calibration: [n, 3, height, width] pixels that int8 ranges are measured on.
    """
    writers: dict[Precision, Callable[[], None]] = {
        "fp32": lambda: onnx.save(onnx.load(str(source)), str(target)),
        "fp16-weights": lambda: onnx.save(_half_weights(onnx.load(str(source))), str(target)),
        "fp16": lambda: onnx.save(_half(onnx.load(str(source))), str(target)),
        "int8": lambda: _int8(source, target, calibration),
    }
    writers[precision]()


def _half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large float32 initializers as float16, each widened by a Cast that is folded at load."""
    graph = model.graph
    kept, casts = [], []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < _LEAST_ELEMENTS:
            kept.append(tensor)
            continue
        stored = f"{tensor.name}_fp16"
        kept.append(numpy_helper.from_array(array.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [tensor.name], f"widen_{tensor.name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    for field, values in ((graph.initializer, kept), (graph.node, nodes)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(model)
    return model


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Cast keeps the uint8 input; the power and norm of the head lose too much in half precision.
    blocked = ["Cast", "Pow", "ReduceSum", "Sqrt", "Div"]
    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked))
    converted.topological_sort()  # the casts it adds stand at the end
    del converted.model.graph.value_info[:]  # types of before
    out: onnx.ModelProto = converted.model
    return out


def _int8(source: Path, target: Path, calibration: NDArray[Any]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._feeds = iter([{GRAPH_INPUT: image[None]} for image in calibration])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    convolutions = [node.name for node in onnx.load(str(prepared)).graph.node if node.op_type == "Conv"]
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
    prepared.unlink()
