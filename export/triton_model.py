"""model.py of a Triton repository that `python -m export triton --backend python` wrote.

It stands alone: beside it lie the bundle's files, and Triton's Python needs numpy and onnxruntime only.
The model becomes ready after the graph has given the golden vectors on the device asked for.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# ONNX Runtime's official builds report usage to their maker unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class TritonPythonModel:
    """What Triton's python backend loads; one object for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and prove it. Raises TritonModelException, and Triton says the model is unavailable."""
        require_whole_arrays()
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.input = config["input"][0]["name"]
        self.spaces = [output["name"] for output in config["output"]]
        require_files(folder, manifest, values)
        self.session = open_session(folder / "model.onnx", values, int(args["model_instance_device_id"]))
        golden = np.load(folder / "golden.npz", allow_pickle=False)
        vectors = self.session.run(self.spaces, {self.input: golden["pixels"]})
        for space, given in zip(self.spaces, vectors, strict=True):
            require_close(space, given, golden[space], manifest["golden"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One inference for all requests that Triton's batcher put together."""
        given = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        try:
            vectors = self.session.run(self.spaces, {self.input: np.concatenate(given)})
        except Exception as error:
            fault = pb_utils.TritonError(f"inference failed: {error}")
            return [pb_utils.InferenceResponse(error=fault) for _ in requests]
        ends = np.cumsum([len(pixels) for pixels in given])[:-1]
        parts = zip(*(np.split(matrix, ends) for matrix in vectors), strict=True)
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(space, np.ascontiguousarray(rows))
                    for space, rows in zip(self.spaces, part, strict=True)
                ]
            )
            for part in parts
        ]


def require_whole_arrays() -> None:
    """Refuse a Triton that hands numpy's arrays over wrongly.

    Servers before 24.11 were built for numpy 1; with numpy 2 they pass pixels as other numbers and
    vectors as nothing, without an error.
    """
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = pb_utils.Tensor.from_dlpack("back", pb_utils.Tensor("sent", sent).to_dlpack()).as_numpy()
    if not np.array_equal(sent, back):
        raise pb_utils.TritonModelException(
            f"this Triton cannot exchange arrays with numpy {np.__version__}; "
            "install numpy<2 in its Python, or take a Triton built for numpy 2."
        )


def require_files(folder: Path, manifest: dict[str, Any], values: dict[str, str]) -> None:
    """Refuse files that are not those of the manifest, and a configuration with other fingerprints."""
    for name, entry in manifest["files"].items():
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            raise pb_utils.TritonModelException(f"{name} has sha256 {digest}, the manifest states {entry['sha256']}.")
    for name, space in manifest["spaces"].items():
        if values.get(f"fingerprint.{name}") != space["fingerprint"]:
            raise pb_utils.TritonModelException(f"config.pbtxt and manifest.json have other fingerprints of {name}.")


def open_session(model: Path, values: dict[str, str], device_id: int) -> ort.InferenceSession:
    """A session on the device asked for; ONNX Runtime falls back to the CPU silently, which is refused."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(values["threads"])
    on_gpu: dict[str, Any] = {"device_id": device_id}
    cuda = (PROVIDERS["cuda"], on_gpu | {"cudnn_conv_algo_search": "HEURISTIC"})
    cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": values["engine_cache"]}
    narrow = {"trt_bf16_enable": True} if values["precision"] == "bf16" else {}
    tensorrt = (PROVIDERS["tensorrt"], on_gpu | narrow | (cache if values["engine_cache"] else {}))
    wanted = {"cpu": [], "cuda": [cuda], "tensorrt": [tensorrt, cuda]}[values["device"]]
    session = ort.InferenceSession(str(model), options, providers=[*wanted, PROVIDERS["cpu"]])
    if (got := session.get_providers()[0]) != PROVIDERS[values["device"]]:
        raise pb_utils.TritonModelException(f"device {values['device']!r} was asked for; ONNX Runtime gave {got}.")
    return session


def require_close(space: str, given: Any, expected: Any, tolerance: dict[str, float]) -> None:
    """Refuse vectors further from the golden ones than the manifest allows."""
    a, b = given.astype(np.float64), expected.astype(np.float64)
    long_a, long_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    off = np.max(1 - (a * b).sum(1) / np.maximum(long_a * long_b, 1e-300))
    stretch = np.max(np.abs(long_a / np.maximum(long_b, 1e-300) - 1))
    # Not `>`: that would let a vector that is not finite pass.
    if not (off <= tolerance["one_minus_cosine"] and stretch <= tolerance["relative_norm"]):
        raise pb_utils.TritonModelException(
            f"output {space!r} is {off:.2e} in 1 - cosine and {stretch:.2e} in length away from the golden vectors."
        )
