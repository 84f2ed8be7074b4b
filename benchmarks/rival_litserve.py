"""LitServe over a bundle, as its guide has it: `python -m benchmarks.rival_litserve BUNDLE PORT WORKERS THREADS`."""

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from benchmarks.rival_network import MOST, Network


class Embedding(litserve.LitAPI):  # type: ignore[misc]  # has no types where it is not installed
    """A photo in JSON to its vector."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(max_batch_size=MOST, api_path="/embed")
        self.folder, self.threads = folder, threads

    def setup(self, device: str) -> None:  # noqa: ARG002  # the name is LitServe's
        """Once in each worker."""
        self.network = Network(self.folder, self.threads)

    def decode_request(self, request: dict[str, str]) -> Any:
        """One request's pixels."""
        return self.network.decode(request["image"])

    def batch(self, inputs: list[Any]) -> Any:
        """Pixels of several requests."""
        return np.stack(inputs)

    def predict(self, pixels: Any) -> Any:
        """Vectors of a batch."""
        return self.network.infer(pixels)

    def unbatch(self, output: Any) -> list[Any]:
        """A vector a request."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Numbers in JSON."""
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    port, workers, threads = map(int, sys.argv[2:])
    api = Embedding(Path(sys.argv[1]), threads)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=120)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)
