"""The engine is the one asked for, runs the graph the manifest states, or does not run at all."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from onnx import TensorProto, helper, numpy_helper

from app import engine
from app.engine import EngineUnavailable, Slots, open_engine, require_one_runtime, require_provider
from app.main import create_app
from app.settings import Settings
from contract.bundle import Bundle, BundleError, GoldenMismatch, GraphMismatch, read_bundle, write_bundle
from contract.graph import NeedsGpu, check_graph
from tests.toy import SIDE, SIZE

Serve = Callable[..., TestClient]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
RIGHT: dict[str, Any] = {
    "inputs": [("pixels", TensorProto.UINT8, ["n", 3, SIDE, SIDE])],
    "outputs": [("aligned", TensorProto.FLOAT, ["n", SIZE]), ("base", TensorProto.FLOAT, ["n", SIZE])],
}


def graph_of(inputs: list[Any], outputs: list[Any]) -> bytes:
    """A graph of these inputs and outputs; each output is the flattened first input times a matrix."""
    flat = [
        helper.make_node("Cast", [inputs[0][0]], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["f"]),
    ]
    weights, nodes = [], []
    for name, dtype, shape in outputs:
        weights.append(numpy_helper.from_array(np.ones((3 * SIDE * SIDE, shape[-1]), np.float32), f"w_{name}"))
        nodes.append(helper.make_node("MatMul", ["f", f"w_{name}"], [f"m_{name}"]))
        nodes.append(helper.make_node("Cast", [f"m_{name}"], [name], to=dtype))
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(flat + nodes, "g", *ends, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    return bytes(model.SerializeToString())


def checked(bundle: Bundle, graph: bytes) -> None:
    session = ort.InferenceSession(graph, providers=[CPU])
    check_graph(bundle, session.get_inputs(), session.get_outputs())


def opened(bundle: Bundle, **options: Any) -> engine.OnnxEngine:
    defaults = {"device": "cpu", "slots": Slots(1, 1, 1), "max_batch": 4, "allow_cpu_fallback": False}
    return open_engine(bundle, **defaults | options)


def with_golden_scaled(toy_bundle: Path, target: Path, factor: float) -> Path:
    whole = read_bundle(toy_bundle)
    vectors = {name: rows * np.float32(factor) for name, rows in whole.golden.vectors.items()}
    return write_bundle(target, whole.manifest, whole.model_path, replace(whole.golden, vectors=vectors)).path


@pytest.mark.parametrize("installed", [[], ["onnxruntime", "onnxruntime-gpu"], ["a", "b", "c"]])
def test_none_or_two_runtimes_are_refused_with_what_to_do(installed: list[str]) -> None:
    with pytest.raises(EngineUnavailable, match="install"):
        require_one_runtime(installed)


def test_one_runtime_is_installed_here() -> None:
    assert len(engine.installed_runtimes()) == 1
    require_one_runtime(engine.installed_runtimes())


@pytest.mark.parametrize("got", [[], [CPU], [CPU, CUDA]])
def test_a_silent_fallback_to_the_cpu_is_refused(got: list[str]) -> None:
    with pytest.raises(EngineUnavailable, match="cuda"):
        require_provider("cuda", got, allow_cpu_fallback=False)


def test_an_allowed_fallback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_provider("tensorrt", [CPU], allow_cpu_fallback=True)
    assert "tensorrt" in caplog.text


def test_an_allowed_fallback_still_needs_a_cpu() -> None:
    with pytest.raises(EngineUnavailable):
        require_provider("cuda", [], allow_cpu_fallback=True)


@pytest.mark.parametrize(("asked", "got"), [("cpu", [CPU]), ("cuda", [CUDA, CPU])])
def test_the_provider_asked_for_passes(asked: str, got: list[str]) -> None:
    require_provider(asked, got, allow_cpu_fallback=False)


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="CUDA is to be had here")
def test_cuda_on_a_machine_without_it_opens_only_where_the_fallback_is_allowed(serve: Serve, toy_bundle: Path) -> None:
    with pytest.raises(EngineUnavailable, match="cuda"):
        opened(read_bundle(toy_bundle), device="cuda")
    card = serve(device="cuda", allow_cpu_fallback=True).get("/models/toy").json()
    assert card["providers"] == [CPU]


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="CUDA is to be had here")
@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": "cuda", "allow_cpu_fallback": True}])
def test_a_bundle_in_bfloat16_is_refused_on_a_cpu_with_what_to_do(toy_bundle: Path, options: dict[str, Any]) -> None:
    whole = read_bundle(toy_bundle)
    bundle = replace(whole, manifest=replace(whole.manifest, precision="bf16"))
    with pytest.raises(NeedsGpu, match=r"bundle is of precision 'bf16'.*the device is 'cpu'.*cuda.*fp16-weights"):
        opened(bundle, **options)


def test_a_bundle_in_bfloat16_that_a_gpu_does_not_open_is_refused(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens(*_: Any, providers: list[Any], **__: Any) -> Any:
        assert providers[0][1]["trt_bf16_enable"] is True
        raise RuntimeError("NOT_IMPLEMENTED : MatMul(13)")

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(engine.PROVIDERS.values()))
    monkeypatch.setattr(ort, "InferenceSession", opens)
    whole = read_bundle(toy_bundle)
    bundle = replace(whole, manifest=replace(whole.manifest, precision="bf16"))
    with pytest.raises(EngineUnavailable, match=r"'bf16' on 'tensorrt': NOT_IMPLEMENTED.*Check the driver"):
        opened(bundle, device="tensorrt")


def test_the_right_graph_passes(toy_bundle: Path) -> None:
    checked(read_bundle(toy_bundle), graph_of(**RIGHT))


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": [*RIGHT["inputs"], ("extra", TensorProto.FLOAT, ["n"])]},
        {"inputs": [("image", TensorProto.UINT8, ["n", 3, SIDE, SIDE])]},
        {"inputs": [("pixels", TensorProto.UINT8, [1, 3, SIDE, SIDE])]},
        {"inputs": [("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]},
        {"inputs": [("pixels", TensorProto.UINT8, ["n", 3, SIDE * SIDE, 1])]},
        {"inputs": [("pixels", TensorProto.UINT8, ["n", 3, "h", "w"])]},
        {"outputs": RIGHT["outputs"][:1]},
        {"outputs": [*RIGHT["outputs"], ("other", TensorProto.FLOAT, ["n", SIZE])]},
        {"outputs": [("ALIGNED", TensorProto.FLOAT, ["n", SIZE]), RIGHT["outputs"][1]]},
        {"outputs": [("aligned", TensorProto.FLOAT, ["n", SIZE + 1]), RIGHT["outputs"][1]]},
        {"outputs": [("aligned", TensorProto.DOUBLE, ["n", SIZE]), RIGHT["outputs"][1]]},
        {"outputs": [("aligned", TensorProto.FLOAT16, ["n", SIZE]), RIGHT["outputs"][1]]},
    ],
)
def test_another_graph_than_the_manifest_states_is_refused(toy_bundle: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(GraphMismatch, match=r"expected|states"):
        checked(read_bundle(toy_bundle), graph_of(**RIGHT | wrong))


def test_a_bundle_of_another_graph_does_not_open(toy_bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(toy_bundle)
    (tmp_path / "graph.onnx").write_bytes(graph_of(**RIGHT | {"outputs": RIGHT["outputs"][:1]}))
    bundle = write_bundle(tmp_path / "bundle", whole.manifest, tmp_path / "graph.onnx", whole.golden)
    with pytest.raises(GraphMismatch):
        opened(bundle)


def test_a_file_that_is_no_graph_does_not_open(toy_bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(toy_bundle)
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    bundle = write_bundle(tmp_path / "bundle", whole.manifest, tmp_path / "graph.onnx", whole.golden)
    with pytest.raises(Exception, match=r"(?i)protobuf|load|parse"):
        opened(bundle)


@pytest.mark.parametrize("factor", [-1.0, 1.01, 0.0])
def test_other_vectors_than_golden_do_not_open(toy_bundle: Path, tmp_path: Path, factor: float) -> None:
    bundle = read_bundle(with_golden_scaled(toy_bundle, tmp_path / "bundle", factor))
    with pytest.raises(GoldenMismatch):
        opened(bundle)


def test_other_pixels_than_golden_do_not_open(toy_bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(toy_bundle)
    pixels = whole.golden.pixels.copy()
    pixels[1, 0, 0, 0] ^= 1
    golden = replace(whole.golden, pixels=pixels)
    with pytest.raises(GoldenMismatch, match="Pillow"):
        opened(write_bundle(tmp_path / "bundle", whole.manifest, whole.model_path, golden))


def test_a_space_that_is_not_finite_does_not_open(toy_bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(toy_bundle)
    model = onnx.load(str(whole.model_path))
    bias = next(weight for weight in model.graph.initializer if weight.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.full(SIZE, np.nan, np.float32), "b"))
    onnx.save(model, str(tmp_path / "graph.onnx"))
    with pytest.raises(GoldenMismatch, match="finite"):
        opened(write_bundle(tmp_path / "bundle", whole.manifest, tmp_path / "graph.onnx", whole.golden))


def test_an_open_engine_has_run_its_largest_batch(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], engine.OnnxEngine._run

    def watched(self: Any, session: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return real(self, session, pixels)

    monkeypatch.setattr(engine.OnnxEngine, "_run", watched)
    assert opened(read_bundle(toy_bundle), max_batch=9).max_batch == 9 == max(sizes)


@pytest.mark.parametrize(("seconds_of_four", "expected"), [(3.9, 1), (3.7, 4)])
def test_without_a_size_a_trial_settles_whether_images_are_faster_together(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, seconds_of_four: float, expected: int
) -> None:
    shrunk: list[engine.OnnxEngine] = []
    monkeypatch.setattr(engine.OnnxEngine, "_timed", lambda _, pixels: {1: 1.0, 4: seconds_of_four}[len(pixels)])
    monkeypatch.setattr(engine.OnnxEngine, "_shrink", lambda self, _: shrunk.append(self))
    found = opened(read_bundle(toy_bundle), max_batch=0)
    assert (found.max_batch, len(shrunk)) == (expected, expected == 1)
    assert found.pace == pytest.approx({1: 1.0, 4: seconds_of_four / 4}[expected])


def test_an_inference_beside_others_has_its_own_session_and_gives_the_same_bits(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, threads = read_bundle(toy_bundle), []
    real = engine._session_options
    monkeypatch.setattr(engine, "_session_options", lambda n: threads.append(n) or real(n))
    crowded = opened(bundle, slots=Slots(2, 4, 2), max_batch=0)
    assert threads == [4, 2]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE), dtype=np.uint8)
    alone = crowded.embed(pixels)
    crowded._session, crowded._running = None, 1  # another inference is under way
    assert all(np.array_equal(rows, alone[space]) for space, rows in crowded.embed(pixels).items())
    assert crowded._running == 1
    monkeypatch.setattr(engine, "CROWD_BYTES", 10)
    for slots in (Slots(2, 4, 2), Slots(2, 4, 4), Slots(1, 4, 2)):
        opened(bundle, slots=slots)
    assert threads == [4, 2, 4, 4, 4]


def test_on_a_gpu_batches_are_filled_up_to_sizes_that_were_warmed() -> None:
    assert engine.buckets_of("cuda", 32) == (1, 2, 4, 8, 16, 32)
    assert engine.buckets_of("tensorrt", 20) == (1, 2, 4, 8, 16, 20)
    assert engine.buckets_of("cuda", 1) == (1,)
    assert engine.buckets_of("cpu", 32) == ()


def test_the_options_of_each_device_are_those_that_do_not_search_or_grow(tmp_path: Path) -> None:
    here = [*engine.PROVIDERS.values()]
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    tensorrt = {
        "trt_profile_min_shapes": "pixels:1x3x8x8",
        "trt_profile_opt_shapes": "pixels:20x3x8x8",
        "trt_profile_max_shapes": "pixels:20x3x8x8",
    }
    cached = tensorrt | {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(tmp_path)}
    given = ((3, 8, 8), (1, 20))
    assert engine.providers_of("cpu", here, *given, None) == [(CPU, {})]
    assert engine.providers_of("cuda", here, *given, tmp_path) == [(CUDA, cuda), (CPU, {})]
    assert engine.providers_of("cuda", [CPU], *given, None) == [(CPU, {})]
    for folder, options in ((None, tensorrt), (tmp_path, cached)):
        got = engine.providers_of("tensorrt", here, *given, folder)
        assert got == [("TensorrtExecutionProvider", options), (CUDA, cuda), (CPU, {})]


def test_threads_sleep_between_operators_and_none_run_beside_each_other() -> None:
    options = engine._session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_gpus_session_gets_warmed_sizes_only_and_gives_the_rows_asked_for(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, real, sizes = read_bundle(toy_bundle), engine.OnnxEngine._bound, []

    def here(self: Any, pixels: Any, device: str) -> Any:  # the same calls, bound to the processor
        assert device == "cuda"
        sizes.append(len(pixels))
        return real(self, pixels, "cpu")

    monkeypatch.setattr(engine.OnnxEngine, "_bound", here)
    plain = opened(bundle)
    bound = engine.OnnxEngine(bundle, device="cpu", slots=Slots(1, 1, 1), allow_cpu_fallback=False)
    bound._on_gpu, bound._buckets = True, engine.buckets_of("cuda", 6)
    for n in (1, 3, 5, 6, 9):  # 9: more than the largest, as bulk may be told to take
        pixels = np.random.default_rng(n).integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)
        expected, got = plain.embed(pixels), bound.embed(pixels)
        assert all(np.array_equal(got[space], expected[space]) for space in ("aligned", "base"))
    assert sizes == [1, 4, 6, 6, 9]


def test_a_bundle_that_gives_other_vectors_never_becomes_ready(toy_bundle: Path, tmp_path: Path) -> None:
    failures: list[Exception] = []
    bundle = with_golden_scaled(toy_bundle, tmp_path / "bundle", 2.0)
    app = create_app(
        Settings(bundle=bundle), on_failure=failures.append, on_ready=lambda _: failures.append(AssertionError())
    )
    with TestClient(app) as client:
        until = time.monotonic() + 30
        while not failures and time.monotonic() < until:
            assert client.get("/health/ready").status_code == 503
        assert client.get("/health/ready").status_code == 503
        assert client.get("/models").status_code == 503
    assert [type(error) for error in failures] == [GoldenMismatch]


def test_without_on_failure_a_bad_bundle_ends_the_lifespan_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"), TestClient(create_app(Settings(bundle=tmp_path))):
        pass


@pytest.mark.parametrize(
    ("cpus", "device", "given", "expected"),
    [
        (1, "cpu", (0, 0), (1, 1, 1)),
        (2, "cpu", (0, 0), (2, 2, 1)),
        (4, "cpu", (0, 0), (2, 4, 2)),
        (16, "cpu", (0, 0), (4, 16, 4)),
        (16, "cuda", (0, 0), (1, 16, 16)),
        (16, "cpu", (3, 5), (3, 5, 5)),
        (2, "cpu", (3, 0), (3, 2, 1)),
    ],
)
def test_slots_and_threads_follow_the_quota_unless_they_are_given(
    cpus: int, device: str, given: tuple[int, int], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "cpu_quota", lambda: cpus)
    assert engine.inference_slots(device, *given) == expected


def test_cpu_quota_is_at_least_one() -> None:
    assert engine.cpu_quota() >= 1


@pytest.mark.parametrize(
    ("files", "own", "cpus"),
    [
        ({}, "", 64),
        ({"cpu.max": "250000 100000"}, "0::/", 2),
        ({"cpu.max": "max 100000"}, "0::/", 64),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4),
        ({"cpu.max": "300000 100000"}, "0::/the/hosts/name", 3),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/docker/x", 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 64),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "500000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            "2:cpuacct,cpu:/a",
            5,
        ),
        ({"cpu.max": "nonsense"}, "nonsense", 64),
    ],
)
def test_cpu_quota_reads_both_versions_of_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], own: str, cpus: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert engine.cpu_quota(tmp_path, tmp_path / "own") == cpus
