"""A bundle's graph as an encoder, so that features of a bundle are computed and kept like those of any network."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contract.bundle import Bundle
from contract.graph import check_graph
from contract.manifest import MODEL
from training.encoders import Encoder


class OnnxModule(nn.Module):
    """ONNX Runtime on the CPU behind torch's interface.

    Its state is the sha256 of the graph, so that `weights_digest` tells bundles apart.
    """

    sha256: Tensor

    def __init__(self, session: Any, space: str, sha256: str) -> None:
        super().__init__()
        self.session, self.space = session, space
        self.register_buffer("sha256", torch.frombuffer(bytearray.fromhex(sha256), dtype=torch.uint8))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, height, width] of the bundle's type to [n, size]."""
        batch = np.ascontiguousarray(pixels.cpu().numpy())
        (vectors,) = self.session.run([self.space], {self.session.get_inputs()[0].name: batch})
        return torch.from_numpy(vectors)


def bundle_encoder(bundle: Bundle, space: str) -> Encoder:
    """One space of a bundle. Raises GraphMismatch when its graph is not the manifest's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    check_graph(bundle, session.get_inputs(), session.get_outputs())
    manifest = bundle.manifest
    module = OnnxModule(session, space, manifest.files[MODEL].sha256)
    return Encoder(module.eval(), manifest.pixels, manifest.spaces[space].size, manifest.base_model, space)
