"""A float32 graph with its products in bfloat16, and the twin by which a machine that has no such products checks it.

Products take bfloat16, add up in float32 and give bfloat16: those of layers with their weights, convolutions, and
attention's with the values. Everything between them is float32: biases, activations, norms, softmax, the residual
stream. So are attention's scores, whose rounding the softmax magnifies, and three products that cost next to nothing:
the first convolution, which sees the pixels, means over tokens, and maps of one vector an image, which make the
judgments. With biases, activations, scores and softmax in bfloat16 too, a ViT-S turned over three times as many
judgments (docs/export.md).

ONNX Runtime on a CPU has no product in bfloat16. `twin` turns the graph, as it lies in the file, into one that a CPU
runs: every operator on the same values in float32, its result rounded to bfloat16. Tensor cores do the same, up to
the order of sums.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

CONV_OPSET = 22
"""ONNX has convolutions in bfloat16 from here on, and so has ONNX Runtime's CUDA provider."""

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Expand", "Flatten"}
)
"""They change no value: they follow the type of what they move, and nothing is to be rounded after them.

These and the products are all that a graph has in bfloat16; ONNX Runtime's CUDA provider has each."""
_BEFORE_SOFTMAX = MOVES | {"Add", "Mul", "Div"}
_OF_ANY_TYPE = frozenset({"Shape", "Size"})
"""What they give does not depend on the type of what they read."""


def brain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph in bfloat16, see above; inputs and outputs keep their types.

    Raises:
        ValueError: nothing in the graph can be computed in bfloat16, or ONNX cannot write its convolutions so.
    """
    model = onnx.shape_inference.infer_shapes(model)
    if any(node.op_type == "Conv" for node in _products(model.graph)):
        try:
            newer = version_converter.convert_version(model, CONV_OPSET)
        except version_converter.ConvertError as error:
            raise ValueError(
                f"convolutions in bfloat16 need ONNX's opset {CONV_OPSET}, and onnx {onnx.__version__} cannot write "
                f"this graph so: {error}. Leave bf16 out."
            ) from error
        model = onnx.shape_inference.infer_shapes(newer)
    products = {node.output[0] for node in _products(model.graph)}
    if not products:
        raise ValueError("the graph has no product that could be computed in bfloat16; ask for another precision.")
    rewritten = _Narrowed(model.graph, products)
    _replace(model.graph, rewritten.nodes, rewritten.initializers)
    onnx.checker.check_model(model, full_check=True)
    return model


def _products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that are worth bfloat16 and bear it, see above."""
    constants = {tensor.name for tensor in graph.initializer}
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in graph.value_info}
    scores = _scores(graph)
    found = [node for node in graph.node if node.op_type in PRODUCTS]
    stem = next((node for node in found if node.op_type == "Conv"), None)

    def kept(node: onnx.NodeProto) -> bool:
        single = node.op_type == "Conv" and shapes.get(node.input[0], [])[2:] == [1, 1]
        mean = node.input[0] in constants
        return node is stem or single or mean or node.output[0] in scores

    return [node for node in found if not kept(node)]


def _scores(graph: onnx.GraphProto) -> set[str]:
    """Products whose result goes into a softmax, through nothing but scales, masks and moves."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    found = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type in PRODUCTS:
            found.add(node.output[0])
        elif node is not None and node.op_type in _BEFORE_SOFTMAX:
            waiting += node.input
    return found


class _Narrowed:
    """Nodes and initializers of a graph in bfloat16: a value keeps its name in float32, and has another in bfloat16."""

    def __init__(self, graph: onnx.GraphProto, products: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._products = products
        values = [*graph.value_info, *graph.input, *graph.output]
        self._floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats |= {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
        self._narrow: set[str] = set()
        self._wide = {value.name for value in graph.input} | set(self._tensors)
        self._stored: dict[str, onnx.TensorProto] = {}
        for node in graph.node:
            self._add(node)
        for output in graph.output:
            self._widen(output.name)
        read = {name for node in self.nodes for name in node.input}
        tensors = [*self._tensors.values(), *self._stored.values()]
        self.initializers = [tensor for tensor in tensors if tensor.name in read]

    def _add(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        floats = [i for i, name in enumerate(node.input) if name in self._floats]
        if self._in_bfloat16(node):
            for i in floats:
                copy.input[i] = self._narrowed(node.input[i])
            for i, name in enumerate(node.output):
                copy.output[i] = f"{name}_bf16"
            self._narrow |= set(node.output)
        elif node.op_type in _OF_ANY_TYPE and node.input[0] in self._narrow - self._wide:
            copy.input[0] = f"{node.input[0]}_bf16"
        else:
            for i in floats:
                self._widen(node.input[i])
            self._wide |= set(node.output)
        self.nodes.append(copy)

    def _in_bfloat16(self, node: onnx.NodeProto) -> bool:
        if node.op_type in PRODUCTS:
            return node.output[0] in self._products
        computed = [name for name in node.input if name in self._floats and name not in self._tensors]
        return node.op_type in MOVES and bool(computed) and all(name in self._narrow for name in computed)

    def _narrowed(self, name: str) -> str:
        """The name of a value in bfloat16, which is made where there is none yet."""
        short = f"{name}_bf16"
        if name in self._tensors:
            self._stored.setdefault(name, bfloat16_tensor(numpy_helper.to_array(self._tensors[name]), short))
        elif name not in self._narrow:
            self.nodes.append(helper.make_node("Cast", [name], [short], f"narrow_{name}", to=TensorProto.BFLOAT16))
            self._narrow.add(name)
        return short

    def _widen(self, name: str) -> None:
        if name not in self._wide:
            self.nodes.append(helper.make_node("Cast", [f"{name}_bf16"], [name], f"widen_{name}", to=TensorProto.FLOAT))
            self._wide.add(name)


def bfloat16_tensor(array: NDArray[np.float32], name: str) -> onnx.TensorProto:
    """Bfloat16 is the upper half of float32; rounded to the nearest, and to even between two."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    upper = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, upper, raw=True)


def _replace(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], tensors: Iterable[onnx.TensorProto]) -> None:
    fields: tuple[tuple[Any, list[Any]], ...] = ((graph.node, list(nodes)), (graph.initializer, list(tensors)))
    for field, values in fields:
        del field[:]
        field.extend(values)
    del graph.value_info[:]  # types of before


# --- the twin ----------------------------------------------------------------------------------------


def twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of bfloat16 as a CPU can run it: the same values, each computed in float32, then rounded.

    Raises:
        onnx.shape_inference.InferenceError: the types of the graph do not fit.
    """
    # Strictly: a value whose type is not known would not be rounded.
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = model.graph
    narrow = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    nodes = []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for i, name in enumerate(node.output):
            if name in narrow and node.op_type not in MOVES:
                copy.output[i] = f"{name}_exact"
                nodes += _rounding(copy, name)
    _replace(graph, nodes, [_widened(tensor) for tensor in graph.initializer])
    onnx.checker.check_model(model, full_check=True)
    return model


def _rounding(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """From `name`_exact to bfloat16 and back; a cast to bfloat16 rounds itself."""
    back = helper.make_node("Cast", [f"{name}_rounded"], [name], f"back_{name}", to=TensorProto.FLOAT)
    if node.op_type == "Cast":
        node.output[0] = f"{name}_rounded"
        return [back]
    there = helper.make_node("Cast", [f"{name}_exact"], [f"{name}_rounded"], f"round_{name}", to=TensorProto.BFLOAT16)
    return [there, back]


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.BFLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def open_twin(file: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU of the twin of a file that `brain` made."""
    graph = twin(onnx.load(str(file))).SerializeToString()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
