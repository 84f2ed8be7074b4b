"""The engine: what turns pixels into vectors, in this process or elsewhere; here the ONNX Runtime session.

`Engine` is what a request sees. There are two: `app.batching.Batcher`, which feeds the session below
from one thread, and `app.triton_engine.TritonEngine`, which asks a Triton server.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.timings import Timings
from contract.bundle import GRAPH_INPUT, Bundle, check_golden, check_golden_pixels
from contract.graph import check_graph

log = logging.getLogger("alignet")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# They all install the same `onnxruntime` folder; two at once overwrite each other, and CUDA
# silently disappears (onnxruntime issues 7748, 12185, 26996).
DISTRIBUTIONS = frozenset(
    {"onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm"}
)


Vectors = dict[str, NDArray[np.float32]]
"""Space name to [n, size]."""


class EngineUnavailable(RuntimeError):
    """No session can be had as asked: wrong installation, or another provider than asked for."""


class Engine(Protocol):
    """What turns pixels into vectors, for all requests at once and on the event loop. It batches as suits it."""

    @property
    def alive(self) -> bool:
        """False once the process must be restarted to serve again."""
        ...

    @property
    def away(self) -> str | None:
        """Why nothing can be embedded now although it may be later; None if it can."""
        ...

    async def embed(self, pixels: Sequence[NDArray[Any]], timings: Timings) -> Vectors:
        """Images [3, height, width], n of them, to {space: [n, size]}, finite, within `timings.until`.

        Raises:
            ServiceError: no answer to be had, or none that can be used.
            TimeoutError: `timings.until` is over.
        """
        ...

    async def close(self) -> None:
        """Finish or give up what was asked, and free everything."""
        ...


class Graph(Protocol):
    """What runs the graph in the thread that calls it."""

    def embed(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """[n, 3, height, width] to {space: [n, size]}."""
        ...


def installed_runtimes() -> list[str]:
    """Names of the installed ONNX Runtime distributions."""
    names = {(dist.metadata["Name"] or "").lower().replace("_", "-") for dist in metadata.distributions()}
    return sorted(names & DISTRIBUTIONS)


def require_one_runtime(installed: list[str]) -> None:
    """Raises EngineUnavailable unless exactly one ONNX Runtime distribution is installed."""
    if len(installed) == 1:
        return
    if not installed:
        raise EngineUnavailable(
            "no ONNX Runtime is installed; install one: pip install 'alignet-serve[cpu]' or 'alignet-serve[gpu]'."
        )
    raise EngineUnavailable(
        f"{len(installed)} ONNX Runtime distributions are installed ({', '.join(installed)}); they overwrite each "
        f"other's files. Run: pip uninstall -y {' '.join(installed)}; then install the extra `cpu` or `gpu` alone."
    )


def require_provider(asked: str, got: list[str], *, allow_cpu_fallback: bool) -> None:
    """Raises EngineUnavailable if the session's first provider is not the one asked for.

    ONNX Runtime falls back to the CPU without an error; that is refused unless allowed.
    """
    wanted = PROVIDERS[asked]
    if got and got[0] == wanted:
        return
    if allow_cpu_fallback and PROVIDERS["cpu"] in got:
        log.warning("device %s is not to be had; serving on the CPU because allow_cpu_fallback is set", asked)
        return
    raise EngineUnavailable(
        f"device {asked!r} needs {wanted}, but the session got {got}. Check the driver and CUDA libraries and that "
        "the extra `gpu` is installed, ask for another device, or set allow_cpu_fallback."
    )


def cpu_quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Whole CPUs this process may use: the smaller of its affinity and its cgroup quotas, at least 1.

    Args:
        cgroups: where the hierarchies are mounted; v2 at the top, or v1 with one folder a controller.
        own: names the group of this process in each hierarchy. In a container the names may be the
            host's, and lead nowhere; then only the top, which is the container's own group, counts.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cpu_groups(cgroups, own):
        # v2: "200000 100000" or "max 100000". v1: two files, and -1 for no quota.
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = (int(word) for file in files for word in (folder / file).read_text().split())
            except (OSError, ValueError):
                continue
            if quota > 0 and period > 0:
                cpus = min(cpus, quota // period)
    return max(1, cpus)


def _cpu_groups(cgroups: Path, own: Path) -> list[Path]:
    """The folders of the process's group and of those around it, which bound it too."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    groups = {"": "/", "cpu": "/"} | {
        name: path
        for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)
        for name in controllers.split(",")
    }
    folders = []
    for mount, name in ((cgroups, ""), (cgroups / "cpu", "cpu"), (cgroups / "cpu,cpuacct", "cpu")):
        group = mount / groups[name].strip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return folders


class OnnxEngine:
    """ONNX Runtime in this process. Construct with `open_engine`, which also proves it.

    `pace` is the seconds an image took in the largest batch of the warm-up.
    """

    pace = 0.05

    def __init__(self, bundle: Bundle, *, device: str, threads: int, allow_cpu_fallback: bool) -> None:
        require_one_runtime(installed_runtimes())
        # Its official builds report usage to their maker unless told not to (Privacy.md in the wheel).
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort  # here, so that a missing extra is explained above

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # The arena keeps the memory of the largest batch; image size and max_batch bound it, and the
        # warm-up reaches that bound, so memory does not creep up later (fastembed issue 570).
        # Spinning threads would take the CPU from the image decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = [PROVIDERS[device], PROVIDERS["cpu"]] if device != "cpu" else [PROVIDERS["cpu"]]
        available = [name for name in wanted if name in ort.get_available_providers()]
        require_provider(device, available, allow_cpu_fallback=allow_cpu_fallback)
        self._session = ort.InferenceSession(str(bundle.model_path), options, providers=available)
        self.providers: list[str] = self._session.get_providers()
        require_provider(device, self.providers, allow_cpu_fallback=allow_cpu_fallback)
        self._spaces = list(bundle.manifest.spaces)
        check_graph(bundle, self._session.get_inputs(), self._session.get_outputs())

    def embed(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """[n, 3, height, width] to {space: [n, size]}; runs without the GIL."""
        return dict(zip(self._spaces, self._session.run(self._spaces, {GRAPH_INPUT: pixels}), strict=True))


def open_engine(bundle: Bundle, *, device: str, threads: int, max_batch: int, allow_cpu_fallback: bool) -> OnnxEngine:
    """A session that is verified and warm: provider, graph, golden pixels, golden vectors, largest batch.

    Raises:
        EngineUnavailable: no session as asked.
        BundleError: the graph or its vectors are not what the manifest states.
    """
    engine = OnnxEngine(bundle, device=device, threads=threads, allow_cpu_fallback=allow_cpu_fallback)
    check_golden_pixels(bundle)
    check_golden(bundle, engine.embed(bundle.golden.pixels))
    full = np.resize(bundle.golden.pixels, (max_batch, *bundle.manifest.pixels.shape))
    start = time.perf_counter()
    engine.embed(full)
    engine.pace = (time.perf_counter() - start) / max_batch
    return engine
