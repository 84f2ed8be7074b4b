"""Backbone and alignment head as one torch module, and that module as one ONNX graph."""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from contract.bundle import GRAPH_INPUT
from training.align import POWER_FLOOR, Transform
from training.encoders import Encoder

OPSET = 18
OUTPUTS = ("aligned", "base")


class Spaces(nn.Module):
    """A module from uint8 pixels [n, 3, height, width] to one matrix [n, d] for each name in `outputs`."""

    outputs: tuple[str, ...]


class EmbeddingModel(Spaces):
    """A student: its embedding is the aligned space. The model that it was before training is another network."""

    outputs = ("aligned",)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.module

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.encoder(pixels),)


class AlignedModel(Spaces):
    """A backbone with a transform: (aligned [n, d], base [n, p]) in one pass."""

    outputs = OUTPUTS

    def __init__(self, encoder: Encoder, transform: Transform) -> None:
        super().__init__()
        self.encoder = encoder.module
        self.power = None if np.isnan(transform.power) else float(transform.power)
        weights, bias = transform.folded()
        # A 1 x 1 convolution, not a matrix product: ONNX Runtime runs it image by image, so an
        # embedding is the same, bit for bit, whatever else is in its batch.
        self.head = nn.Conv2d(weights.shape[0], weights.shape[1], kernel_size=1)
        self.head.weight = nn.Parameter(torch.from_numpy(weights.T.copy())[:, :, None, None], requires_grad=False)
        self.head.bias = nn.Parameter(torch.from_numpy(bias.copy()), requires_grad=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        base = self.encoder(pixels)
        x = base
        if self.power is not None:  # training.align.normalize_power
            x = (x + POWER_FLOOR) ** self.power
            x = x / (x * x).sum(-1, keepdim=True).sqrt()
        return self.head(x[:, :, None, None]).flatten(1), base


def export_graph(model: Spaces, shape: tuple[int, int, int], file: Path) -> None:
    """Write the model as ONNX with a dynamic batch and float32 weights.

    Args:
        shape: (3, height, width) of one image.

    Raises:
        ValueError: the graph's inputs or outputs did not come out as named and shaped.
    """
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        model.eval(),
        (example,),
        dynamo=True,
        input_names=[GRAPH_INPUT],
        output_names=list(model.outputs),
        dynamic_shapes={GRAPH_INPUT: {0: batch}},
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise ValueError("torch's exporter returned no program. This is a bug.")
    exported = _bare(program.model_proto)
    onnx.save(exported, str(file))
    graph = exported.graph
    names = ([node.name for node in graph.input], [node.name for node in graph.output])
    if names != ([GRAPH_INPUT], list(model.outputs)):
        raise ValueError(f"the exported graph has {names}; expected {GRAPH_INPUT} and {model.outputs}.")


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold source lines and paths of this machine, and differ from run to run.

    A model exported twice is then the same file, and has the same space fingerprint.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    return model
