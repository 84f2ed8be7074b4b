"""Optimised graphs that are kept: found again by what they were made of, whole, and never in the way."""

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app import engine, graph_cache
from app.engine import Slots, open_engine
from app.graph_cache import GraphCache, processor
from contract.bundle import read_bundle

KEY: dict[str, str] = {"model_sha256": "a" * 64, "runtime": "1.31.1", "provider": "CPUExecutionProvider"}


def kept(folder: Path, content: bytes = b"graph", **key: str) -> Path:
    with GraphCache(folder, **KEY | key).filling() as file:
        assert file is not None
        file.write_bytes(content)
    found = GraphCache(folder, **KEY | key).find()
    assert found is not None
    return found


def opened(bundle: Path, folder: Path) -> engine.OnnxEngine:
    options: dict[str, Any] = {"device": "cpu", "slots": Slots(1, 1, 1), "max_batch": 4, "allow_cpu_fallback": False}
    return open_engine(read_bundle(bundle), **options, graph_cache=folder)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """(file, optimisation level) of each session that is opened."""
    seen: list[tuple[str, Any]] = []
    real = ort.InferenceSession

    def watched(file: str, options: Any, **more: Any) -> Any:
        seen.append((file, options.graph_optimization_level))
        return real(file, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", watched)
    return seen


def test_the_second_process_opens_the_graph_that_the_first_kept(
    toy_bundle: Path, tmp_path: Path, sessions: list[tuple[str, Any]]
) -> None:
    first, second = (opened(toy_bundle, tmp_path / "cache") for _ in range(2))
    (file,) = (tmp_path / "cache").iterdir()
    levels = ort.GraphOptimizationLevel
    assert sessions == [
        (str(toy_bundle / "model.onnx"), levels.ORT_ENABLE_ALL),
        (str(file), levels.ORT_DISABLE_ALL),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    for name, rows in first.embed(pixels).items():
        assert np.array_equal(rows, second.embed(pixels)[name])
    assert "Gemm" in {node.op_type for node in onnx.load(file).graph.node}  # a product fused with its addition


@pytest.mark.parametrize("other", [{"model_sha256": "b" * 64}, {"runtime": "1.31.2"}, {"provider": "CUDA"}])
def test_a_graph_of_something_else_is_not_found(tmp_path: Path, other: dict[str, str]) -> None:
    kept(tmp_path)
    assert GraphCache(tmp_path, **KEY).find() is not None
    assert GraphCache(tmp_path, **KEY | other).find() is None


def test_a_graph_of_another_kind_of_processor_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path)
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu sse2\n")
    other = processor(tmp_path / "cpuinfo")
    assert other.endswith(" fpu sse2")
    monkeypatch.setattr(graph_cache, "processor", lambda: other)
    assert GraphCache(tmp_path, **KEY).find() is None


def test_a_file_that_was_changed_is_removed_and_made_again(
    toy_bundle: Path, tmp_path: Path, sessions: list[tuple[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    opened(toy_bundle, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    opened(toy_bundle, tmp_path)
    assert "is not what was written" in caplog.text
    assert sessions[-1][0] == str(toy_bundle / "model.onnx")
    assert file.read_bytes() == whole and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_takes_no_files_only_means_no_cache(
    toy_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()  # no folder; permissions would not stop root
    opened(toy_bundle, tmp_path / "cache")
    assert "no optimised graph is kept in" in caplog.text


def test_a_disk_that_is_full_only_means_no_cache(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = ort.InferenceSession

    def full(file: str, options: Any, **more: Any) -> Any:
        if options.optimized_model_filepath:
            Path(options.optimized_model_filepath).write_bytes(b"half of")
            raise RuntimeError("No space left on device")
        return real(file, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", full)
    opened(toy_bundle, tmp_path)
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_the_graph_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with caplog.at_level(logging.WARNING), GraphCache(tmp_path, **KEY).filling() as file:
        assert file is not None
        file.write_bytes(b"graph")
        monkeypatch.setattr(Path, "replace", refuse)
    assert "Read-only" in caplog.text
    assert list(tmp_path.iterdir()) == []
