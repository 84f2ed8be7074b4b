"""A Triton server as a runtime of the parity report: what `export triton` writes of a bundle, loaded and asked.

The files travel with the call that loads the model, so the server may be on another machine and its repository is
not touched; it must allow models to be loaded (`tritonserver --model-control-mode=explicit`). While a model loads or
unloads, Triton says that it is not ready, so it should be a server started for this.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.graph import GPU_ONLY
from contract.manifest import GRAPH_INPUT
from export.parity import BATCH, Runtime, Vectors, taken
from export.triton import VERSION, Backend, Device, Options, write_repository

LOAD_SECONDS = 600.0
"""A graph that is optimised for a GPU, or compiled by TensorRT, takes minutes."""
CALL_SECONDS = 120.0

_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True)
class Server:
    """A Triton server and how it is to run the graph.

    Attributes:
        url: host:port of its gRPC.
        backend, device: see `export.triton.Options`.
    """

    url: str
    backend: Backend = "onnxruntime"
    device: Device = "cpu"


def require_live(server: Server) -> None:
    """Raises ValueError unless the server answers, and ImportError without tritonclient."""
    with _connected(server, "asked whether it is live") as client:
        # Not whether it is ready: that it is not while any model loads or unloads.
        if not client.is_server_live(client_timeout=CALL_SECONDS):
            raise ValueError(f"Triton at {server.url} is not live.")


def require_device(server: Server, precisions: tuple[str, ...]) -> None:
    """Raises ValueError for a precision that the server's device does not have."""
    if server.device == "cpu" and (wrong := sorted(GPU_ONLY.intersection(precisions))):
        raise ValueError(
            f"--precision {' '.join(wrong)} with --triton-device cpu: ONNX Runtime computes it on GPUs only. Choose "
            "--triton-device cuda or tensorrt, or leave it out of --precision or --triton out of the command."
        )


def unused_name() -> str:
    """For a model that is only measured: a server that serves other models keeps them."""
    return f"parity-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def serving(bundle: Bundle, server: Server) -> Iterator[Runtime]:
    """The bundle loaded into the server, and unloaded in the end.

    Raises:
        ValueError: the server is away or refuses the model; the message is its own.
    """
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory() as scratch, _connected(server, f"asked to run {manifest.precision}") as client:
        options = Options(backend=server.backend, device=server.device, max_batch=BATCH)
        folder = write_repository(bundle.path, Path(scratch) / "repository", options)
        files = {f"file:{VERSION}/{file.name}": file.read_bytes() for file in (folder / VERSION).iterdir()}
        try:
            client.load_model(manifest.name, config=_json(folder), files=files, client_timeout=LOAD_SECONDS)
            yield Runtime("triton", lambda pixels: _infer(client, bundle, pixels), bundle.model_path.stat().st_size)
        finally:
            with contextlib.suppress(Exception):  # the first error is the one to report
                client.unload_model(manifest.name, client_timeout=CALL_SECONDS)


@contextlib.contextmanager
def _connected(server: Server, deed: str) -> Iterator[Any]:
    """A client whose errors name the server and what it was asked for."""
    try:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException
    except ImportError as error:
        raise ImportError(f"{error}; run: pip install 'alignet-serve[triton]'.") from error
    try:
        with InferenceServerClient(server.url) as client:
            yield client
    except InferenceServerException as error:
        raise ValueError(
            f"Triton at {server.url}, {deed} with backend {server.backend} on {server.device}: {error}. Start it with "
            "--model-control-mode=explicit, give host:port of its gRPC, and leave out a precision that it cannot run."
        ) from error


def _json(folder: Path) -> str:
    """The configuration as the call that loads a model wants it."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2 as pb

    config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig())
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _infer(client: Any, bundle: Bundle, pixels: NDArray[np.uint8]) -> Vectors:
    from tritonclient.grpc import InferInput

    spec = bundle.manifest.pixels
    given = InferInput(GRAPH_INPUT, list(pixels.shape), _DATATYPES[spec.dtype])
    given.set_data_from_numpy(taken(pixels, spec))
    result = client.infer(bundle.manifest.name, [given], client_timeout=CALL_SECONDS)
    return {name: result.as_numpy(name) for name in bundle.manifest.spaces}
