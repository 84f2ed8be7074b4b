"""A bundle as a Triton model repository, whose config.pbtxt follows from the graph.

    DIR/<bundle name>/config.pbtxt
    DIR/<bundle name>/1/model.onnx                                        backend onnxruntime
    DIR/<bundle name>/1/model.py, model.onnx, golden.npz, manifest.json   backend python

Shapes and types come from the graph as ONNX Runtime reads it, after it gave the golden vectors and ran
a batch of `max_batch_size`. The space fingerprints stand in the configuration's parameters; the app
compares them with its own bundle's before it is ready.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract.bundle import Bundle, check_golden, read_bundle
from contract.files import staged_folder
from contract.graph import GPU_ONLY, Node, check_device, check_graph
from contract.manifest import GOLDEN, GRAPH_INPUT, MANIFEST, MODEL

Backend = Literal["onnxruntime", "python"]
Device = Literal["cpu", "cuda", "tensorrt"]

VERSION = "1"
MODEL_PY = Path(__file__).with_name("triton_model.py")
MAX_MESSAGE_BYTES = 2**31 - 1 - 2**16
"""Bytes of pixels or vectors in one call: a gRPC message ends at 2 GiB, and its frame needs a little."""

_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How Triton is to run the model.

    Attributes:
        backend: `onnxruntime`, Triton's own, or `python`, which needs onnxruntime in Triton's Python.
        device: what runs the graph.
        max_batch: images in one inference; 0 takes 4 on a CPU, where more only cost memory, 32 on a GPU.
        instances: copies of the model that run side by side (per GPU, where there are several).
        threads: CPU threads of one inference; 0 takes all cores.
        queue_delay: microseconds a batch may wait to fill. On a CPU waiting buys nothing.
        max_queue: requests that wait; beyond it Triton refuses. The app admits 256 images.
        queue_timeout: seconds a request may wait before Triton drops it; a request may ask for less.
        engine_cache: folder, where Triton runs, in which TensorRT keeps its engines; empty builds them at each start.
    """

    backend: Backend = "onnxruntime"
    device: Device = "cpu"
    max_batch: int = 0
    instances: int = 1
    threads: int = 0
    queue_delay: int = 0
    max_queue: int = 256
    queue_timeout: float = 10.0
    engine_cache: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no server could use."""
        for name, least in (("max_batch", 0), ("instances", 1), ("threads", 0), ("queue_delay", 0), ("max_queue", 1)):
            if not least <= (value := getattr(self, name)) < 2**31:
                raise ValueError(f"{name} is {value}; expected {least} to {2**31 - 1}.")
        if not 0 < self.queue_timeout <= 3600:
            raise ValueError(f"queue_timeout is {self.queue_timeout}; expected seconds, above 0 and at most 3600.")
        if self.engine_cache and self.device != "tensorrt":
            raise ValueError(f"engine_cache is for device tensorrt; device is {self.device}.")

    @property
    def batch(self) -> int:
        """The `max_batch_size` of the configuration."""
        return self.max_batch or (4 if self.device == "cpu" else 32)


def write_repository(bundle_path: Path, target: Path, options: Options) -> Path:
    """Write the repository, whole or not at all.

    Args:
        bundle_path: folder of the bundle.
        target: repository folder to make; must not exist.
        options: how Triton is to run it.

    Returns:
        folder of the model inside the repository.

    Raises:
        BundleError: the bundle is bad, its graph does not give its golden vectors, or it needs a GPU and is to run
            on a CPU.
        ValueError: a full batch is more than one call can carry, or more than this machine can run.
        FileExistsError: `target` exists.
        OSError: it cannot be written; nothing is left behind.
        ImportError: tritonclient, whose schema of the configuration is used, is missing.
    """
    with staged_folder(target) as staging:
        bundle = read_bundle(bundle_path)
        check_device(bundle, options.device)
        inputs, outputs = _prove(bundle, options.batch)
        folder = staging / bundle.manifest.name
        version = folder / VERSION
        version.mkdir(parents=True)
        files = (MODEL,) if options.backend == "onnxruntime" else (MODEL, GOLDEN, MANIFEST)
        for name in files:
            shutil.copyfile(bundle.path / name, version / name)
        if options.backend == "python":
            shutil.copyfile(MODEL_PY, version / "model.py")
        (folder / "config.pbtxt").write_text(config_text(bundle, inputs, outputs, options), encoding="utf-8")
    return target / bundle.manifest.name


def _prove(bundle: Bundle, batch: int) -> tuple[Sequence[Node], Sequence[Node]]:
    """Inputs and outputs of the graph, after it gave the golden vectors and ran a full batch."""
    spec = bundle.manifest.pixels
    bytes_in = batch * int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    bytes_out = batch * 4 * sum(space.size for space in bundle.manifest.spaces.values())
    if max(bytes_in, bytes_out) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"a batch of {batch} images of {spec.width} x {spec.height} has {bytes_in} bytes of pixels and {bytes_out} "
            f"of vectors; one gRPC message carries at most {MAX_MESSAGE_BYTES}. Choose a smaller --max-batch."
        )
    session = _open(bundle)
    check_graph(bundle, session.get_inputs(), session.get_outputs())
    check_golden(bundle, _run(session, bundle.golden.pixels))
    try:
        full = _run(session, np.resize(bundle.golden.pixels, (batch, *spec.shape)))
    except Exception as error:  # ONNX Runtime's own kinds, and MemoryError
        raise ValueError(
            f"the graph does not run a batch of {batch}: {error}. Choose a smaller --max-batch."
        ) from error
    for name, space in bundle.manifest.spaces.items():
        if full[name].shape != (batch, space.size):
            raise ValueError(f"a batch of {batch} gives {name} of {full[name].shape}; expected {(batch, space.size)}.")
    return session.get_inputs(), session.get_outputs()


def _open(bundle: Bundle) -> ort.InferenceSession:
    """The graph on this machine's CPU, or its twin; golden vectors of a twin are only near those of a GPU."""
    if bundle.manifest.precision not in GPU_ONLY:
        return ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    try:
        from export.bfloat16 import open_twin  # here: other bundles need no onnx
    except ImportError as error:
        raise ImportError(f"{error}; run: pip install 'alignet-serve[train]'.") from error
    return open_twin(bundle.model_path, ort.SessionOptions())


def _run(session: ort.InferenceSession, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, {GRAPH_INPUT: pixels}), strict=True))


def config_text(bundle: Bundle, inputs: Sequence[Node], outputs: Sequence[Node], options: Options) -> str:
    """The text of config.pbtxt, printed from the message that Triton reads it into.

    Args:
        bundle: gives the name and the fingerprints.
        inputs: of the graph, checked against the manifest.
        outputs: of the graph, likewise.
        options: how Triton is to run it.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as pb
    except ImportError as error:
        raise ImportError(f"{error}; run: pip install 'alignet-serve[triton]'.") from error
    config = pb.ModelConfig(name=bundle.manifest.name, backend=options.backend, max_batch_size=options.batch)
    config.default_model_filename = MODEL if options.backend == "onnxruntime" else "model.py"
    for nodes, tensors in ((inputs, config.input), (outputs, config.output)):
        for node in nodes:  # axis 0 is the batch, which Triton adds itself
            tensors.add(name=node.name, data_type=pb.DataType.Value(_TYPES[node.type]), dims=list(node.shape)[1:])
    kind = pb.ModelInstanceGroup.KIND_CPU if options.device == "cpu" else pb.ModelInstanceGroup.KIND_GPU
    config.instance_group.add(count=options.instances, kind=kind)
    config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = round(options.queue_timeout * 1e6)
    policy.allow_timeout_override = True
    policy.max_queue_size = options.max_queue
    for key, value in _parameters(bundle, options).items():
        config.parameters[key].string_value = value
    if options.device == "tensorrt" and options.backend == "onnxruntime":
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters.update(_tensorrt(inputs[0], options, bundle.manifest.precision))
    for batch in _warm_batches(options):
        warmup = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
        for tensor in config.input:
            warmed = warmup.inputs[tensor.name]
            warmed.data_type, warmed.random_data = tensor.data_type, True
            warmed.dims.extend(tensor.dims)
    return f"# By `python -m export triton`, from the graph of bundle {bundle.manifest.name}.\n" + str(
        text_format.MessageToString(config)
    )


def _parameters(bundle: Bundle, options: Options) -> dict[str, str]:
    """What the backend reads, and the fingerprints, which the app reads."""
    values = {f"fingerprint.{name}": space.fingerprint for name, space in bundle.manifest.spaces.items()}
    if options.backend == "python":
        return values | {
            "device": options.device,
            "precision": bundle.manifest.precision,
            "threads": str(options.threads),
            "engine_cache": options.engine_cache,
        }
    values["intra_op_thread_count"] = str(options.threads)
    if options.device != "cpu":
        # As parameters, not of an accelerator named cuda: where a model has any parameters, the backend
        # sets these two from them, and to its defaults if they are missing there. Those are an exhaustive
        # search, which each new batch size waits for, and an arena that doubles.
        values |= {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1"}
    return values


def _tensorrt(pixels: Node, options: Options, precision: str) -> dict[str, str]:
    """Options of the TensorRT accelerator: one engine for every batch size, in the graph's own precision."""
    sizes = {"min": 1, "opt": options.batch, "max": options.batch}
    shape = "x".join(str(axis) for axis in pixels.shape[1:])
    values = {f"trt_profile_{name}_shapes": f"{pixels.name}:{size}x{shape}" for name, size in sizes.items()}
    # TensorRT has no bfloat16 unless it is let, whatever types the graph has.
    mode = "BF16" if precision == "bf16" else "FP32"
    values |= {"precision_mode": mode, "max_workspace_size_bytes": str(2**30)}
    if options.engine_cache:
        values |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": options.engine_cache}
    return values


def _warm_batches(options: Options) -> list[int]:
    """Sizes run before the model is ready: one and the most; on a GPU powers of two between, as each costs a search."""
    between = [2**k for k in range(1, options.batch.bit_length())] if options.device != "cpu" else []
    return sorted({1, *(size for size in between if size < options.batch), options.batch})
