"""A model repository for Triton: what the configuration says, and that a bad request leaves nothing behind."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from contract.bundle import GoldenMismatch, GraphMismatch, read_bundle, write_bundle
from export import triton
from export.triton import Options, write_repository

pytest.importorskip("tritonclient.grpc", reason="install the extra `triton`")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

ROOT = Path(__file__).parents[2]


def config_of(bundle: Path, target: Path, **options: Any) -> Any:
    folder = write_repository(bundle, target, Options(**options))
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def export(*arguments: Any, **process: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "export", "triton", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, **process)


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_tensors_and_fingerprints_are_those_of_the_graph(toy_bundle: Path, tmp_path: Path, backend: Any) -> None:
    config, bundle = config_of(toy_bundle, tmp_path / "r", backend=backend), read_bundle(toy_bundle)
    session = ort.InferenceSession(str(bundle.model_path))
    types = {"tensor(uint8)": pb.TYPE_UINT8, "tensor(float)": pb.TYPE_FP32}
    for nodes, tensors in ((session.get_inputs(), config.input), (session.get_outputs(), config.output)):
        assert [(t.name, list(t.dims), t.data_type) for t in tensors] == [
            (n.name, n.shape[1:], types[n.type]) for n in nodes
        ]
    assert (config.name, config.backend, config.max_batch_size) == ("toy", backend, 4)
    for name, space in bundle.manifest.spaces.items():
        assert config.parameters[f"fingerprint.{name}"].string_value == space.fingerprint


def test_batching_queue_and_instances_are_as_asked(toy_bundle: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"max_batch": 6, "instances": 2, "threads": 3, "queue_delay": 700, "max_queue": 9}
    config = config_of(toy_bundle, tmp_path / "r", queue_timeout=1.5, **asked)
    policy = config.dynamic_batching.default_queue_policy
    assert config.max_batch_size == 6
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, pb.ModelInstanceGroup.KIND_CPU)
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 1_500_000)
    assert (policy.timeout_action, policy.allow_timeout_override) == (pb.ModelQueuePolicy.REJECT, True)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [warm.batch_size for warm in config.model_warmup] == [1, 6]


def test_on_a_gpu_every_batch_size_that_costs_a_search_is_warm(toy_bundle: Path, tmp_path: Path) -> None:
    config = config_of(toy_bundle, tmp_path / "r", device="cuda", max_batch=20)
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert [warm.batch_size for warm in config.model_warmup] == [1, 2, 4, 8, 16, 20]
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert config.parameters["arena_extend_strategy"].string_value == "1"
    assert not config.optimization.execution_accelerators.gpu_execution_accelerator


def test_tensorrt_gets_one_profile_for_all_batches(toy_bundle: Path, tmp_path: Path) -> None:
    config = config_of(toy_bundle, tmp_path / "r", device="tensorrt", engine_cache="/cache")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP32",
        "max_workspace_size_bytes": str(2**30),
        "trt_profile_min_shapes": "pixels:1x3x8x8",
        "trt_profile_opt_shapes": "pixels:32x3x8x8",
        "trt_profile_max_shapes": "pixels:32x3x8x8",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
    }


def test_the_files_are_the_bundles_own(toy_bundle: Path, tmp_path: Path) -> None:
    for backend, names in (
        ("onnxruntime", {"model.onnx"}),
        ("python", {"model.onnx", "model.py", "golden.npz", "manifest.json"}),
    ):
        options: Any = {"backend": backend}
        version = write_repository(toy_bundle, tmp_path / backend, Options(**options)) / "1"
        assert {file.name for file in version.iterdir()} == names
        for name in names - {"model.py"}:
            assert (version / name).read_bytes() == (toy_bundle / name).read_bytes()
    assert (version / "model.py").read_text() == triton.MODEL_PY.read_text()


def test_the_python_variant_stands_alone() -> None:
    imports = [
        line.split()[1] for line in triton.MODEL_PY.read_text().splitlines() if line.startswith(("import", "from"))
    ]
    own = {"numpy", "onnxruntime", "triton_python_backend_utils"}
    assert set(imports) - own <= set(sys.stdlib_module_names)


def test_a_repository_that_exists_is_left_as_it_is(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    done = export(toy_bundle, "--repository", tmp_path / "r")
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists; remove it or choose another" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "r"]


def test_a_disk_that_fills_up_leaves_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    least = (toy_bundle / "model.onnx").stat().st_size - 100  # the graph no longer fits, to the last bytes

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, least))

    done = export(toy_bundle, "--repository", tmp_path / "r", preexec_fn=limit)
    assert done.returncode == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_no_space_left_in_any_file_leaves_nothing(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    copies, copy = iter(range(1, 10)), shutil.copyfile

    def full(source: Path, target: Path) -> None:
        copy(source, target)
        if next(copies) == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    if step == 5:  # the files fit, the configuration does not
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: full(toy_bundle / "manifest.json", tmp_path / "x"))
        (tmp_path / "x").touch()
    with pytest.raises(OSError, match="No space left"):
        write_repository(toy_bundle, tmp_path / "r", Options(backend="python"))
    assert [file.name for file in tmp_path.iterdir()] == (["x"] if step == 5 else [])


def test_a_batch_too_large_for_one_message_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    done = export(toy_bundle, "--repository", tmp_path / "r", "--max-batch", 2**31 // 192 + 1)
    assert done.returncode == 1
    assert "images of 8 x 8" in done.stderr
    assert "smaller --max-batch" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_batch_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(toy_bundle)
    graph = onnx.load(str(bundle.model_path))
    for node in (*graph.graph.input, *graph.graph.output):
        node.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(graph, str(tmp_path / "fixed.onnx"))
    fixed = write_bundle(tmp_path / "fixed", bundle.manifest, tmp_path / "fixed.onnx", bundle.golden)
    with pytest.raises(GraphMismatch, match="batch"):
        write_repository(fixed.path, tmp_path / "r", Options())
    assert not (tmp_path / "r").exists()


def test_a_graph_that_fails_at_the_batch_size_is_refused(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = triton._run
    monkeypatch.setattr(triton, "_run", lambda session, pixels: run(session, pixels[:4] if len(pixels) > 4 else pixels))
    with pytest.raises(ValueError, match="a batch of 7 gives"):
        write_repository(toy_bundle, tmp_path / "r", Options(max_batch=7))


def test_a_bundle_whose_graph_gives_other_vectors_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(toy_bundle)
    doubled = {name: rows * np.float32(2) for name, rows in bundle.golden.vectors.items()}
    wrong = write_bundle(tmp_path / "w", bundle.manifest, bundle.model_path, replace(bundle.golden, vectors=doubled))
    with pytest.raises(GoldenMismatch):
        write_repository(wrong.path, tmp_path / "r", Options())


@pytest.mark.parametrize(
    "options",
    [{"max_batch": -1}, {"instances": 0}, {"max_queue": 0}, {"queue_timeout": 0}, {"engine_cache": "/cache"}],
)
def test_options_no_server_could_use_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options)


def test_without_tritonclient_it_says_what_to_install(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ImportError, match=r"alignet-serve\[triton\]"):
        write_repository(toy_bundle, tmp_path / "r", Options())
    assert not list(tmp_path.iterdir())
