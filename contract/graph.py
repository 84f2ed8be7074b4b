"""Whether a graph, wherever it runs, has the input and outputs that its bundle's manifest states."""

from collections.abc import Sequence
from typing import Protocol

from contract.bundle import Bundle, BundleError, GraphMismatch
from contract.manifest import GRAPH_INPUT

ELEMENTS = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
"""numpy's names of element types to ONNX Runtime's."""

GPU_ONLY = frozenset({"bf16"})
"""Precisions of a manifest that ONNX Runtime computes on GPUs, and refuses on CPUs."""


class NeedsGpu(BundleError):
    """The graph computes in a precision that a CPU does not have."""


def check_device(bundle: Bundle, device: str) -> None:
    """Raises NeedsGpu where the device is `cpu` and the graph computes in a precision of `GPU_ONLY`."""
    precision = bundle.manifest.precision
    if device == "cpu" and precision in GPU_ONLY:
        raise NeedsGpu(
            f"{bundle.path} is of precision {precision!r}, which ONNX Runtime computes on a GPU only; the device is "
            "'cpu'. Choose device cuda or tensorrt on a machine with a GPU, or export the model again with a "
            "precision for CPUs: --precision int8-weights fp16-weights fp32."
        )


class Node(Protocol):
    """An input or output, as `InferenceSession.get_inputs()` gives them."""

    @property
    def name(self) -> str:
        """Its name in the graph."""
        ...

    @property
    def type(self) -> str:
        """One of `ELEMENTS`."""
        ...

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its axes; one without a fixed size is a name or None."""
        ...


def check_graph(bundle: Bundle, inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
    """Raises GraphMismatch unless the graph has the input and outputs that the manifest states.

    Args:
        bundle: whose manifest is held against the graph.
        inputs: of the graph.
        outputs: of the graph, in any order.
    """
    spec = bundle.manifest.pixels
    stated: dict[str, tuple[list[int], str]] = {GRAPH_INPUT: (list(spec.shape), ELEMENTS[spec.dtype])}
    stated |= {name: ([space.size], ELEMENTS["float32"]) for name, space in bundle.manifest.spaces.items()}
    found = {node.name: (list(node.shape), node.type) for node in (*inputs, *outputs)}
    if [node.name for node in inputs] != [GRAPH_INPUT] or set(found) != set(stated):
        raise GraphMismatch(f"{bundle.path}: graph has {sorted(found)}; the manifest states {sorted(stated)}.")
    for name, (shape, dtype) in stated.items():
        given, given_type = found[name]
        # Axis 0 is the batch and must be dynamic (a name or None, never a number).
        if not given or isinstance(given[0], int) or given[1:] != shape or given_type != dtype:
            raise GraphMismatch(f"{bundle.path}: {name} is {given_type} {given}; expected {dtype} ['batch', *{shape}].")
