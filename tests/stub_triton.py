"""A Triton of our own that can be told to misbehave: real gRPC, real configuration, the bundle's own graph."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from contract.bundle import read_bundle
from export.triton import Options, config_text

Vectors = dict[str, NDArray[Any]]


class StubTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves one bundle on `address` between `start` and `stop`; `answer`, `config` and `ready` may be exchanged."""

    def __init__(self, bundle: Path) -> None:
        opened = read_bundle(bundle)
        session = ort.InferenceSession(str(opened.model_path), providers=["CPUExecutionProvider"])
        ends = session.get_inputs(), session.get_outputs()
        self.config: Any = text_format.Parse(config_text(opened, *ends, Options()), model_config_pb2.ModelConfig())
        self.spaces = list(opened.manifest.spaces)
        self.session = session
        self.answer: Callable[[NDArray[Any], Any], Vectors] = self.honest
        self.ready = True
        self.batches: list[int] = []
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(self.address)
        self.server.start()

    def stop(self) -> None:
        self.server.stop(0).wait()

    def honest(self, pixels: NDArray[Any], _: Any) -> Vectors:
        return dict(zip(self.spaces, self.session.run(self.spaces, {"pixels": pixels}), strict=True))

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        if request.name != self.config.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        shape = list(request.inputs[0].shape)
        self.batches.append(shape[0])
        vectors = self.answer(np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape), context)
        reply = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for space, matrix in vectors.items():
            kind = {"float32": "FP32", "float64": "FP64"}[str(matrix.dtype)]
            reply.outputs.add(name=space, datatype=kind, shape=matrix.shape)
            reply.raw_output_contents.append(matrix.tobytes())
        return reply


@contextmanager
def resetting(port: int) -> Iterator[None]:
    """Whoever connects to `port` is reset at once."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.05)
        done = threading.Event()

        def reset() -> None:
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
