"""Backbone and alignment head as one torch module, and that module as one ONNX graph."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from contract.manifest import GRAPH_INPUT
from contract.pixels import PixelSpec, PixelType
from training.align import POWER_FLOOR, Transform
from training.encoders import Encoder
from training.perceptual.embedding import Headed
from training.readout import Readout

OPSET = 18
OUTPUTS = ("aligned", "base")

MAX_BYTES = 2**31 - 2**24
"""Of the weights: one ONNX file holds less than 2 GiB, and a bundle has no other file for them."""


class LinearByImage(nn.Conv2d):
    """A linear map [n, p] to [n, k] as a 1 x 1 convolution.

    ONNX Runtime runs it image by image, where it adds up a matrix product in another order for one image than for
    many: an embedding is the same, bit for bit, whatever else is in its batch.

    Args:
        weights: [k, p].
        bias: [k].
    """

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__(weights.shape[1], weights.shape[0], kernel_size=1)
        kernel = weights.detach()[:, :, None, None].clone(memory_format=torch.contiguous_format)
        self.weight = nn.Parameter(kernel, requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(x[:, :, None, None]).flatten(1)


class ReadoutByImage(nn.Module):
    """A student's readout, its linear map by image; `training.readout.Readout` says what it computes."""

    mean: Tensor
    std: Tensor

    def __init__(self, student: Readout) -> None:
        super().__init__()
        self.features = student.features
        self.register_buffer("mean", student.mean)
        self.register_buffer("std", student.std)
        self.readout = LinearByImage(student.readout.weight, student.readout.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, width], float32."""
        out: Tensor = self.readout((self.features(pixels).float() - self.mean) / self.std)
        return out


class HeadedByImage(nn.Module):
    """A network and its residual head, linear maps by image; `training.perceptual.embedding.Headed` says what it is."""

    def __init__(self, headed: Headed) -> None:
        super().__init__()
        self.inner = headed.inner
        self.balance = headed.balance or nn.Identity()
        maps = [layer for layer in headed.mlp_head if isinstance(layer, nn.Linear)]
        self.hidden, self.out = (LinearByImage(layer.weight, layer.bias) for layer in maps)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] to [n, size], float32."""
        z = self.balance(self.inner(pixels).float())
        out: Tensor = z + self.out(torch.relu(self.hidden(z)))
        return out


def _by_image(module: nn.Module) -> nn.Module:
    if isinstance(module, Headed):
        return HeadedByImage(module)
    return ReadoutByImage(module) if isinstance(module, Readout) else module


class Spaces(nn.Module):
    """A module from uint8 pixels [n, 3, height, width] to one matrix [n, d] for each name in `outputs`."""

    outputs: tuple[str, ...]


class EmbeddingModel(Spaces):
    """A student: its embedding is the aligned space. The model that it was before training is another network."""

    outputs = ("aligned",)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = _by_image(encoder.module)

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.encoder(pixels),)


class AlignedModel(Spaces):
    """A backbone with a transform: (aligned [n, d], base [n, p]) in one pass, or (aligned,) alone."""

    def __init__(self, encoder: Encoder, transform: Transform) -> None:
        super().__init__()
        self.outputs = OUTPUTS
        self.encoder = _by_image(encoder.module)
        self.power = None if np.isnan(transform.power) else float(transform.power)
        weights, bias = transform.folded()
        self.head = LinearByImage(torch.from_numpy(weights.T), torch.from_numpy(bias))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        base = self.encoder(pixels)
        x = base
        if self.power is not None:  # training.align.normalize_power
            x = (x + POWER_FLOOR) ** self.power
            x = x / (x * x).sum(-1, keepdim=True).sqrt()
        return (self.head(x), base)[: len(self.outputs)]


class FloatPixels(Spaces):
    """The same model on float32 pixels, normalised as `contract.pixels.normalize` does and as timm's transforms do.

    Every tower normalises in its own way inside, so the normalisation is undone before it, at two operations a value.

    Args:
        spec: says how the pixels were normalised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Spaces, spec: PixelSpec) -> None:
        super().__init__()
        self.model, self.outputs = model, model.outputs
        low, high = spec.value_range
        scale = torch.tensor(spec.std, dtype=torch.float64) * 255 / (high - low)
        shift = (torch.tensor(spec.mean, dtype=torch.float64) - low) * 255 / (high - low)
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See `Spaces`, of float32 pixels."""
        out: tuple[Tensor, ...] = self.model(pixels * self.scale + self.shift)
        return out


def export_graph(model: Spaces, shape: tuple[int, int, int], file: Path, dtype: PixelType = "uint8") -> None:
    """Write the model as ONNX with a dynamic batch and float32 weights.

    Args:
        shape: (3, height, width) of one image.
        dtype: of the pixels that the model takes.

    Raises:
        ValueError: a layer that torch's exporter cannot write (named), weights that no single ONNX file can hold, or
            a graph whose inputs or outputs did not come out as named and shaped, or with operators of another opset.
    """
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(
            f"the weights have {size} bytes in float32; one ONNX file, and so a bundle, holds at most {MAX_BYTES}. "
            "Export a smaller model, or distil this one into a smaller one."
        )
    exported = _bare(_means_by_image(_onnx(model.eval(), shape, dtype)))
    graph = exported.graph
    found = {node.name: [_axis(axis) for axis in node.type.tensor_type.shape.dim] for node in graph.input}
    outputs = {node.name: [_axis(axis) for axis in node.type.tensor_type.shape.dim] for node in graph.output}
    axes = [*found.values(), *outputs.values()]
    if (
        found != {GRAPH_INPUT: ["batch", *shape]}
        or list(outputs) != list(model.outputs)
        or not all(len(axis) in (2, 4) and axis[0] == "batch" and 0 not in axis for axis in axes)
    ):
        raise ValueError(
            f"the exported graph has {found} and {outputs}; expected {GRAPH_INPUT} ['batch', *{shape}] and vectors "
            f"['batch', size] named {', '.join(model.outputs)}. Does the model fix its batch size?"
        )
    if (opsets := {entry.domain: entry.version for entry in exported.opset_import}) != {"": OPSET}:
        raise ValueError(
            f"the exported graph needs {opsets}; a bundle has operators of ONNX's own opset {OPSET} only, which any "
            "runtime has. Does the model call functions of another library?"
        )
    onnx.checker.check_model(exported, full_check=True)  # every operator's shapes and types
    onnx.save(exported, str(file))


def _axis(axis: Any) -> int | str:
    return str(axis.dim_param) if axis.dim_param else int(axis.dim_value)


def _onnx(model: Spaces, shape: tuple[int, int, int], dtype: PixelType) -> onnx.ModelProto:
    example = torch.zeros((2, *shape), dtype=getattr(torch, dtype))
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=[GRAPH_INPUT],
            output_names=list(model.outputs),
            dynamic_shapes={GRAPH_INPUT: {0: batch}},
            opset_version=OPSET,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ValueError(f"torch cannot write this model as ONNX: {_cause(error)}") from error
    if program is None:
        raise ValueError("torch's exporter returned no program. This is a bug.")
    return program.model_proto


def _cause(error: BaseException) -> str:
    """The innermost reason: torch wraps it in pages of its own diagnosis."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(f"{type(error).__name__}: {error}", 500, placeholder=" …")


def _means_by_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, means over the tokens [batch, tokens, width] as products with a row of 1 / tokens.

    ONNX Runtime adds up a mean over the middle axis in another order for one image than for many, but such a product
    image by image.
    """
    graph = model.graph
    shapes = {info.name: [_axis(axis) for axis in info.type.tensor_type.shape.dim] for info in graph.value_info}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        tokens = _mean_over_tokens(node, shapes, constants)
        if tokens is None:
            nodes.append(node)
            continue
        name = node.output[0]
        row = np.full((1, tokens), 1 / tokens, np.float32)
        graph.initializer.append(numpy_helper.from_array(row, f"{name}_share"))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{name}_axis"))
        nodes.append(helper.make_node("MatMul", [f"{name}_share", node.input[0]], [f"{name}_row"], f"{name}_product"))
        nodes.append(helper.make_node("Squeeze", [f"{name}_row", f"{name}_axis"], [name], f"{name}_squeeze"))
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)
    return model


def _mean_over_tokens(
    node: onnx.NodeProto, shapes: dict[str, list[int | str]], constants: dict[str, onnx.TensorProto]
) -> int | None:
    """How many tokens a node averages; None where it is no mean of [batch, tokens, width] to [batch, width]."""
    dropped = any(item.name == "keepdims" and item.i == 0 for item in node.attribute)
    if node.op_type != "ReduceMean" or not dropped:
        return None
    shape, axes = shapes.get(node.input[0], []), constants.get(node.input[1]) if len(node.input) > 1 else None
    if len(shape) != 3 or axes is None or numpy_helper.to_array(axes).ravel().tolist() not in ([1], [-2]):
        return None
    return shape[1] if isinstance(shape[1], int) else None


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold source lines and paths of this machine, and differ from run to run.

    A model exported twice is then the same file, and has the same space fingerprint.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    return model
