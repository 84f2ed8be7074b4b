"""The report's rows of a Triton server: the real one runs every precision, and nothing of it stays there."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import read_bundle
from export import package as packaging
from export import parity
from export.card import card
from export.package import PackageOptions, ParityError, package
from export.precision import Precision
from export.sources import ModelOptions, read_model
from export.triton_parity import Server, require_live
from tests import real_triton
from tests.real_triton import RealTriton, free_port, running
from tests.training.tiny import write_photos

grpc = pytest.importorskip("tritonclient.grpc", reason="install the extra `triton`")
EXPECTED = "EXPECT_TRITON" in os.environ  # then no server is a failure, not a skip
real = pytest.mark.skipif(bool(real_triton.missing()) and not EXPECTED, reason=real_triton.missing())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    """One without models, which may be told to load some."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "repository").mkdir()
    with running(folder / "repository", folder, model_control_mode="explicit") as triton:
        assert triton.ready(), triton.log.read_text()
        yield triton


def packaged(tmp_path: Path, port: int, precision: Precision = "fp32", **more: Any) -> Any:
    """The tiny model with a Triton row of float32 and of `precision`."""
    source = replace(read_model(ModelOptions(model="tiny")), **more)
    options = PackageOptions(precisions=(precision,), triton=Server(f"127.0.0.1:{port}", backend="python"))
    return package(source, write_photos(tmp_path / "photos", 60), tmp_path / "b", options)


@real
def test_every_precision_has_a_row_of_the_real_server_and_it_keeps_nothing(server: RealTriton, tmp_path: Path) -> None:
    _, report = packaged(tmp_path, server.grpc, "fp16-weights")
    manifest = read_bundle(tmp_path / "b").manifest
    rows = {(row["precision"], row["runtime"]): row for row in manifest.parity["rows"]}
    assert list(rows) == [(p, r) for p in ("fp32", "fp16-weights") for r in ("onnxruntime", "triton")]
    exact = rows["fp32", "triton"]
    assert exact["passed"] and exact["flips"] == 0 and exact["one_minus_cosine"] <= 1e-5
    here, there = (rows["fp16-weights", name]["one_minus_cosine"] for name in ("onnxruntime", "triton"))
    assert there > 1e-10 and there == pytest.approx(here, rel=0.1)
    assert report.count(" triton ") == 2 and "| fp32 | triton |" in card(manifest)
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        assert not [m for m in client.get_model_repository_index().models if m.state == "READY"]


@real
def test_a_graph_of_float32_pixels_gets_them_from_triton_too(server: RealTriton, tmp_path: Path) -> None:
    packaged(tmp_path, server.grpc, input="float32")
    manifest = read_bundle(tmp_path / "b").manifest
    (there,) = [row for row in manifest.parity["rows"] if row["runtime"] == "triton"]
    assert manifest.pixels.dtype == "float32"
    assert there["passed"] and there["one_minus_cosine"] <= 1e-5


@real
def test_a_precision_that_triton_computes_otherwise_does_not_leave(
    server: RealTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = parity.compare

    def reversed_there(runtime: parity.Runtime, *arguments: Any) -> parity.Parity:
        if runtime.name == "triton":
            run = runtime.run
            runtime = parity.Runtime("triton", lambda pixels: {"aligned": -run(pixels)["aligned"]}, runtime.bytes)
        return compare(runtime, *arguments)

    monkeypatch.setattr(parity, "compare", reversed_there)
    with pytest.raises(ParityError, match=r"fp32 +triton .*False"):
        packaged(tmp_path, server.grpc)
    assert not (tmp_path / "b").exists()


@real
def test_a_backend_that_the_server_lacks_is_named_and_leaves_nothing(server: RealTriton, tmp_path: Path) -> None:
    source = read_model(ModelOptions(model="tiny"))
    options = PackageOptions(precisions=("fp32",), triton=Server(f"127.0.0.1:{server.grpc}"))
    with pytest.raises(ValueError, match=r"asked to run fp32 with backend onnxruntime on cpu"):
        package(source, write_photos(tmp_path / "photos", 60), tmp_path / "b", options)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_server_that_is_away_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "_sample_pixels", lambda *_: pytest.fail("measured"))
    port = free_port()
    with pytest.raises(ValueError, match=rf"Triton at 127.0.0.1:{port}, asked whether it is live"):
        packaged(tmp_path, port)


def test_without_tritonclient_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ImportError, match=r"alignet-serve\[triton\]"):
        require_live(Server("localhost:1"))
