"""The engine: what turns pixels into vectors, in this process or elsewhere; here the ONNX Runtime session.

`Engine` is what a request sees. There are two: `app.batching.Batcher`, which feeds the session below
from one thread, and `app.triton_engine.TritonEngine`, which asks a Triton server.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.graph_cache import GraphCache
from app.timings import Timings
from contract.bundle import Bundle, check_golden, check_golden_pixels
from contract.graph import GPU_ONLY, check_device, check_graph
from contract.manifest import GRAPH_INPUT, MODEL

log = logging.getLogger("alignet")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# They all install the same `onnxruntime` folder; two at once overwrite each other, and CUDA
# silently disappears (onnxruntime issues 7748, 12185, 26996).
DISTRIBUTIONS = frozenset(
    {"onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm"}
)


GPU_BATCH = 32
"""Images of one inference on a GPU."""

CPU_BATCHES = (1, 4)
"""What is tried on a CPU, where more only cost memory."""

GAIN = 0.95
"""Share of the time of a single image below which one in a batch counts as faster."""

TRIALS = 3
"""Runs of each size; the fastest counts."""

CROWD_BYTES = 256 * 2**20
"""Of a graph that is held in two sessions, one for an inference alone and one for those side by side."""


@dataclass(frozen=True)
class Inferred:
    """One image's answer: its vector in each space, and when its batch started and ended (`time.perf_counter`)."""

    vectors: Mapping[str, NDArray[np.float32]]
    started: float
    ended: float


Submit = Callable[[NDArray[Any], float, "Future[Inferred]"], object]
"""Queues an image [3, height, width], from any thread. Nobody waits for its answer after a time of the loop's clock."""

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

    @property
    def submit(self) -> Submit | None:
        """How any thread queues one image, where that can be done; None where only `embed` can."""
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


class Slots(NamedTuple):
    """How many inferences run side by side, and on how many threads.

    Attributes:
        inferences: side by side.
        threads: of one that starts alone.
        crowd_threads: of one that starts while another runs.
    """

    inferences: int
    threads: int
    crowd_threads: int


def inference_slots(device: str, count: int, threads: int) -> Slots:
    """The slots of a device; 0 leaves either number to the processor.

    Two inferences side by side get more done than one after the other, where each layer waits for its slowest part and
    the decoders take turns with it. They get most done on threads of their own; a lonely one takes them all.
    """
    cpus = cpu_quota()
    count = count or (1 if device != "cpu" else min(cpus, max(2, cpus // 4)))
    crowd = threads or (cpus if device != "cpu" else max(1, cpus // count))
    return Slots(count, threads or cpus, crowd)


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


def buckets_of(device: str, max_batch: int) -> tuple[int, ...]:
    """Sizes that batches are filled up to, smallest first; none on a CPU, where every image costs its own time.

    On a GPU a size that was not seen before costs a search for the fastest convolutions, or TensorRT a new engine:
    ten times an inference and more, in the middle of serving.
    """
    if device == "cpu":
        return ()
    return (*(2**k for k in range(max_batch.bit_length()) if 2**k < max_batch), max_batch)


def providers_of(
    device: str, available: Sequence[str], shape: tuple[int, int, int], buckets: Sequence[int], cache: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers of a device, the most wanted first, with their options.

    Args:
        available: what this installation has; others are left out.
        shape: (3, height, width) of an image.
        buckets: see `buckets_of`.
        cache: folder for TensorRT's engines; None builds them at each start.
    """
    # ONNX Runtime's own choices are an exhaustive search for each new shape, and an arena that doubles.
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    sides = "x".join(map(str, shape))
    profile = {"min": 1, "opt": max(buckets, default=1), "max": max(buckets, default=1)}
    tensorrt: dict[str, Any] = {
        f"trt_profile_{name}_shapes": f"{GRAPH_INPUT}:{size}x{sides}" for name, size in profile.items()
    }
    if cache is not None:
        tensorrt |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache)}
    wanted: dict[str, dict[str, dict[str, Any]]] = {
        "cpu": {},
        "cuda": {"cuda": cuda},
        "tensorrt": {"tensorrt": tensorrt, "cuda": cuda},
    }
    named = [(PROVIDERS[name], options) for name, options in (wanted[device] | {"cpu": {}}).items()]
    return [(name, options) for name, options in named if name in available]


class OnnxEngine:
    """ONNX Runtime in this process. Construct with `open_engine`, which also proves it.

    `max_batch` is how many images one inference takes, `pace` the seconds an image took in such a batch.

    Args:
        slots: how many threads an inference gets. Where one in a crowd gets others than a lonely one, it runs in a
            session of its own, which gives the same bits; a graph of more than `CROWD_BYTES` is not held twice.
        buckets: see `buckets_of`.
        graph_cache: folder in which the optimised graph is kept; see `app.graph_cache`.
    """

    pace = 0.05
    max_batch = 1

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str,
        slots: Slots,
        allow_cpu_fallback: bool,
        buckets: tuple[int, ...] = (),
        graph_cache: Path | None = None,
    ) -> None:
        require_one_runtime(installed_runtimes())
        # Its official builds report usage to their maker unless told not to (Privacy.md in the wheel).
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort  # here, so that a missing extra is explained above

        shape = bundle.manifest.pixels.shape
        wanted = providers_of(device, ort.get_available_providers(), shape, buckets, graph_cache)
        require_provider(device, [name for name, _ in wanted], allow_cpu_fallback=allow_cpu_fallback)
        check_device(bundle, "cpu" if wanted[0][0] == PROVIDERS["cpu"] else device)
        if wanted[0][0] == PROVIDERS["tensorrt"] and bundle.manifest.precision == "bf16":
            wanted[0][1]["trt_bf16_enable"] = True  # TensorRT has none unless it is let
        try:
            self._session = _session(bundle, wanted, slots.threads, graph_cache)
        except Exception as error:  # ONNX Runtime's own kinds
            if bundle.manifest.precision not in GPU_ONLY:
                raise
            raise EngineUnavailable(
                f"ONNX Runtime {ort.__version__} opens no session of precision {bundle.manifest.precision!r} on "
                f"{device!r}: {error}. Check the driver and CUDA libraries: without them it tries the CPU, which does "
                "not have this precision. Or install a newer onnxruntime-gpu."
            ) from error
        self.providers: list[str] = self._session.get_providers()
        require_provider(device, self.providers, allow_cpu_fallback=allow_cpu_fallback)
        self._on_gpu = self.providers[0] != PROVIDERS["cpu"]
        self._buckets = buckets if self._on_gpu else ()
        self._spaces = list(bundle.manifest.spaces)
        check_graph(bundle, self._session.get_inputs(), self._session.get_outputs())
        self._crowd = self._session
        held_twice = not self._on_gpu and bundle.manifest.files[MODEL].bytes <= CROWD_BYTES
        if slots.inferences > 1 and slots.crowd_threads != slots.threads and held_twice:
            self._crowd = _session(bundle, wanted, slots.crowd_threads, graph_cache)
        self._running = 0
        self._counting = threading.Lock()

    def embed(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """[n, 3, height, width] to {space: [n, size]}; runs without the GIL."""
        with self._counting:
            session = self._crowd if self._running else self._session
            self._running += 1
        try:
            return self._run(session, pixels)
        finally:
            with self._counting:
                self._running -= 1

    def prove(self, bundle: Bundle) -> None:
        """Raises BundleError unless every session gives the golden vectors."""
        for session in {id(session): session for session in (self._session, self._crowd)}.values():
            check_golden(bundle, self._run(session, bundle.golden.pixels))

    def warm(self, pixels: NDArray[Any], max_batch: int) -> None:
        """Run every size of batch once, and settle `max_batch` and `pace`.

        Args:
            pixels: some images, [k, 3, height, width].
            max_batch: images of one inference. 0 settles it by trial among `CPU_BATCHES`: an image among several may
                take longer than one alone, as in the starter, or less, as in a ViT.
        """
        seconds = {}
        for n in self._buckets or sorted({1, max_batch} if max_batch else CPU_BATCHES):
            batch = np.resize(pixels, (n, *pixels.shape[1:]))
            self._run(self._session, batch)  # the first run of a size is slower
            seconds[n] = min(self._timed(batch) for _ in range(1 if max_batch else TRIALS)) / n
        if not max_batch:
            few, many = CPU_BATCHES
            max_batch = many if seconds[many] < GAIN * seconds[few] else few
            if max_batch == few:
                self._shrink(pixels)
        self.max_batch, self.pace = max_batch, seconds[max_batch]

    def _shrink(self, pixels: NDArray[Any]) -> None:
        """Give back the memory that larger batches took than there will be."""
        import onnxruntime as ort

        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        for session in (self._session, self._crowd):
            session.run(self._spaces, {GRAPH_INPUT: np.resize(pixels, (1, *pixels.shape[1:]))}, options)

    def _timed(self, pixels: NDArray[Any]) -> float:
        start = time.perf_counter()
        self._run(self._crowd, pixels)
        return time.perf_counter() - start

    def _run(self, session: Any, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        n = len(pixels)
        size = min((bucket for bucket in self._buckets if bucket >= n), default=n)
        # Filled up with the same images again, which leave a range over the batch (int8) as it was.
        filled = pixels if size == n else np.resize(pixels, (size, *pixels.shape[1:]))
        vectors = self._bound(filled, "cuda") if self._on_gpu else session.run(self._spaces, {GRAPH_INPUT: filled})
        return {space: rows[:n] for space, rows in zip(self._spaces, vectors, strict=True)}

    def _bound(self, pixels: NDArray[Any], device: str) -> list[NDArray[np.float32]]:
        """What the session gives; pixels and vectors cross to and from the device once each."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(GRAPH_INPUT, np.ascontiguousarray(pixels))
        for space in self._spaces:
            binding.bind_output(space, device)
        self._session.run_with_iobinding(binding)
        vectors: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return vectors


def _session(
    bundle: Bundle, providers: list[tuple[str, dict[str, Any]]], threads: int, graph_cache: Path | None
) -> Any:
    """An ONNX Runtime session on the bundle's graph, or on what an earlier process kept of it."""
    import onnxruntime as ort

    # TensorRT compiles the graph, which then cannot be written; it has a cache of its own.
    if graph_cache is None or providers[0][0] == PROVIDERS["tensorrt"]:
        return ort.InferenceSession(str(bundle.model_path), _session_options(threads), providers=providers)
    sha256 = bundle.manifest.files[MODEL].sha256
    cache = GraphCache(graph_cache, model_sha256=sha256, runtime=ort.__version__, provider=providers[0][0])
    if (found := cache.find()) is not None:
        options = _session_options(threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
        return ort.InferenceSession(str(found), options, providers=providers)
    try:
        with cache.filling() as file:
            options = _session_options(threads)
            if file is not None:
                options.optimized_model_filepath = str(file)
                options.log_severity_level = 3  # below: that the graph fits this processor only, which the key says
            return ort.InferenceSession(str(bundle.model_path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own kinds: a full disk, a graph of more than 2 GiB
        log.warning("no optimised graph is kept in %s: %s", graph_cache, error)
    return ort.InferenceSession(str(bundle.model_path), _session_options(threads), providers=providers)


def _session_options(threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The arena keeps the memory of the largest batch; image size and max_batch bound it, and the
    # warm-up reaches that bound, so memory does not creep up later (fastembed issue 570). Without it and
    # memory patterns, a ViT-S in batches of up to 4 held 547 MB instead of 548, and the starter took 1.15
    # times the processor's time for one image.
    # Spinning threads would take the CPU from the image decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_engine(
    bundle: Bundle,
    *,
    device: str,
    slots: Slots,
    max_batch: int = 0,
    allow_cpu_fallback: bool,
    graph_cache: Path | None = None,
) -> OnnxEngine:
    """A session that is verified and warm: provider, graph, golden pixels, golden vectors, every size of batch.

    Args:
        bundle: to serve.
        device: `cpu`, `cuda` or `tensorrt`.
        slots: of `inference_slots`.
        max_batch: images of one inference; 0 takes `GPU_BATCH`, or on a CPU what a trial finds faster.
        allow_cpu_fallback: whether a CPU may stand in for another device.
        graph_cache: see `OnnxEngine`.

    Raises:
        EngineUnavailable: no session as asked.
        BundleError: the graph or its vectors are not what the manifest states.
    """
    if not max_batch and device != "cpu":
        max_batch = GPU_BATCH
    engine = OnnxEngine(
        bundle,
        device=device,
        slots=slots,
        allow_cpu_fallback=allow_cpu_fallback,
        buckets=buckets_of(device, max_batch),
        graph_cache=graph_cache,
    )
    check_golden_pixels(bundle)
    engine.prove(bundle)
    engine.warm(bundle.golden.pixels, max_batch)
    return engine
