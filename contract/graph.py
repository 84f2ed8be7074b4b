"""Whether a graph, wherever it runs, has the input and outputs that its bundle's manifest states."""

from collections.abc import Sequence
from typing import Protocol

from contract.bundle import GRAPH_INPUT, Bundle, GraphMismatch

ELEMENTS = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
"""numpy's names of element types to ONNX Runtime's."""


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
