"""The network of a bundle for the servers of `benchmarks.rivals`: the same pixels and the same session."""

import base64
from pathlib import Path
from typing import Any

from app.engine import Slots, open_engine
from contract.bundle import read_bundle
from contract.pixels import load_pixels

MOST = 4
"""Images in a batch, the service's own default on a CPU."""


class Network:
    """A bundle's decoding and inference, without a service.

    Args:
        folder: of the bundle.
        threads: of one inference.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        bundle = read_bundle(folder)
        self._spec = bundle.manifest.pixels
        self._engine = open_engine(
            bundle, device="cpu", slots=Slots(1, threads, threads), max_batch=MOST, allow_cpu_fallback=False
        )

    def decode(self, text: str) -> Any:
        """Base64 of a photo to pixels [3, height, width]."""
        return load_pixels(base64.b64decode(text), self._spec)

    def infer(self, pixels: Any) -> Any:
        """Pixels [n, 3, height, width] to vectors [n, size] of the aligned space."""
        return self._engine.embed(pixels)["aligned"]
