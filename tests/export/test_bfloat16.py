"""Arithmetic in bfloat16: which operators have it, and that the twin on a CPU is the graph itself."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from contract.bundle import Bundle, check_golden, read_bundle
from contract.graph import NeedsGpu
from contract.pixels import PixelSpec
from export import parity
from export.bfloat16 import CONV_OPSET, MOVES, brain, open_twin, twin
from export.card import card
from export.graph import AlignedModel, export_graph
from export.package import PackageOptions, package
from export.precision import convert
from export.sources import ModelOptions, read_model
from export.triton import Options, write_repository
from export.triton_parity import Server
from tests.training.tiny import write_photos
from training.align import Transform
from training.models import build

SIDE = 4
SHAPES = {"MatMul": [SIDE, SIDE], "Gemm": [SIDE, SIDE], "Conv": [1, SIDE, SIDE, SIDE], "Relu": [SIDE, SIDE]}


def operator(kind: str) -> onnx.ModelProto:
    """Float32 x and y to bfloat16, through one operator, and back."""
    names = "x" if kind == "Relu" else "xy"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPES[kind]) for name in names]
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Cast", [name], [f"{name}_bf16"], to=TensorProto.BFLOAT16) for name in names]
    nodes.append(helper.make_node(kind, [f"{name}_bf16" for name in names], ["product"]))
    nodes.append(helper.make_node("Cast", ["product"], ["z"], to=TensorProto.FLOAT))
    graph = helper.make_graph(nodes, "g", ends, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", CONV_OPSET)], ir_version=10)


def run_twin(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    session = ort.InferenceSession(twin(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Conv"])
def test_the_twin_of_a_product_is_onnxs_own_evaluation_bit_for_bit(kind: str) -> None:
    rng = np.random.default_rng(0)
    # Sixteenths: sums are exact in float32 in any order, and too long for bfloat16.
    feeds = {name: (rng.integers(-99, 100, SHAPES[kind]) / 16).astype(np.float32) for name in "xy"}
    got = run_twin(operator(kind), feeds)
    assert np.array_equal(got, ReferenceEvaluator(operator(kind)).run(None, feeds)[0])
    assert not (got.view(np.uint32) & 0xFFFF).any()  # bfloat16, and not float32


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (SIDE, SIDE), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_rounding_is_that_of_bfloat16_to_even(x: NDArray[np.float32]) -> None:
    assert np.array_equal(run_twin(operator("Relu"), {"x": x}), np.maximum(x.astype(bfloat16), 0).astype(np.float32))


def vit() -> tuple[AlignedModel, PixelSpec]:
    """A vision transformer with random weights and a random transform."""
    encoder = build("timm:test_vit", side=64, pretrained=False)
    rng = np.random.default_rng(0)
    weights = np.eye(encoder.size, 16, dtype=np.float32) + 0.3 * rng.normal(size=(encoder.size, 16)).astype(np.float32)
    numbers = (np.array(value, np.float32) for value in (0.0, 1.0, np.nan))
    return AlignedModel(encoder, Transform(weights, np.zeros(16, np.float32), *numbers)).eval(), encoder.pixels


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer's graph in bfloat16, as it is shipped."""
    folder = tmp_path_factory.mktemp("bf16")
    model, spec = vit()
    export_graph(model, spec.shape, folder / "fp32.onnx")
    convert(folder / "fp32.onnx", folder / "bf16.onnx", "bf16", np.zeros(0))
    return folder / "bf16.onnx"


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.uint8).repeat(8, 2).repeat(8, 3)
TRIPLETS = np.random.default_rng(0).permuted(np.tile(np.arange(40), (1000, 1)), axis=1)[:, :3]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


def test_products_are_in_bfloat16_but_for_scores_stem_and_head_and_all_else_in_float32(file: Path) -> None:
    model = onnx.load(file)
    types = types_of(model)
    made = {
        kind: {types.get(n.output[0]) for n in model.graph.node if n.op_type == kind} for kind in ("Erf", "Softmax")
    }
    assert made["Erf"] == made["Softmax"] == {TensorProto.FLOAT}
    kinds = Counter(n.op_type for n in model.graph.node if types.get(n.output[0]) == TensorProto.BFLOAT16)
    assert set(kinds) <= {"MatMul", "Cast"} | MOVES
    assert kinds["MatMul"] == 6 * 5  # blocks; queries with keys and values, attention, its projection, two layers
    everything = Counter(n.op_type for n in model.graph.node)
    assert everything["MatMul"] == 6 * 6 and everything["Conv"] == 2  # the scores; the stem and the head


def test_weights_of_layers_are_stored_in_bfloat16_once(file: Path) -> None:
    stored = {t.name: t for t in onnx.load(file).graph.initializer}
    large = [t for t in stored.values() if t.data_type in (1, 16) and np.prod(t.dims) >= 4096 and len(t.dims) == 2]
    assert large and all(t.data_type == TensorProto.BFLOAT16 for t in large)
    assert not {t.name.removesuffix("_bf16") for t in large} & set(stored)


def test_inputs_and_outputs_keep_their_types(file: Path) -> None:
    session = open_twin(file, ort.SessionOptions())
    graph = onnx.load(file).graph
    ends = {end.name: end.type.tensor_type.elem_type for end in (*graph.input, *graph.output)}
    assert ends == {"pixels": TensorProto.UINT8, "aligned": TensorProto.FLOAT, "base": TensorProto.FLOAT}
    assert {end.name: end.type for end in (*session.get_inputs(), *session.get_outputs())} == {
        "pixels": "tensor(uint8)",
        "aligned": "tensor(float)",
        "base": "tensor(float)",
    }


def test_the_twin_of_a_whole_graph_is_as_near_to_onnxs_evaluation_as_bfloat16_allows(file: Path) -> None:
    feeds = {"pixels": PIXELS[:4]}
    theirs = ReferenceEvaluator(str(file)).run(["aligned"], feeds)[0]
    ours = open_twin(file, ort.SessionOptions()).run(["aligned"], feeds)[0]
    assert 0 < parity.one_minus_cosine(ours, theirs) < 1e-4


def compared(file: Path) -> parity.Parity:
    model, spec = vit()
    reference = parity.torch_vectors(model, PIXELS)
    runtime = parity.onnx_runtime(file, model.outputs, spec, "bf16")
    assert runtime.name == parity.EMULATED
    return parity.compare(runtime, "bf16", reference, PIXELS, TRIPLETS, "cosine", 0.1)


def test_one_weight_changed_in_the_file_shows_in_the_twin(file: Path, tmp_path: Path) -> None:
    assert 1e-9 < compared(file).one_minus_cosine < parity.MAX_COSINE["bf16"]
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.BFLOAT16 and len(t.dims) == 2)
    bits = np.frombuffer(tensor.raw_data, np.uint16).copy()
    bits[0] = 0x4780  # 65536 in bfloat16
    tensor.raw_data = bits.tobytes()
    onnx.save(model, tmp_path / "broken.onnx")
    row = compared(tmp_path / "broken.onnx")
    assert not row.passed and row.one_minus_cosine > parity.MAX_COSINE["bf16"]


def test_a_twin_of_a_graph_whose_types_do_not_fit_is_refused(file: Path) -> None:
    model = onnx.load(file)
    cast = next(n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.BFLOAT16)
    cast.attribute[0].i = TensorProto.FLOAT16
    with pytest.raises(onnx.shape_inference.InferenceError):
        twin(model)


def test_a_graph_without_a_product_is_refused() -> None:
    with pytest.raises(ValueError, match="no product that could be computed in bfloat16"):
        brain(operator("Relu"))


# --- bundles -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tiny_constants: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in bfloat16 of random weights."""
    folder = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parity.MAX_FLIPS, "bf16", 0.05)  # random weights tell photos of noise hardly apart
        return packaged(folder).path


def packaged(folder: Path, *, triton: Server | None = None, **more: Any) -> Bundle:
    """The tiny convolutional network, with `more` of its source, in bfloat16."""
    source = replace(read_model(ModelOptions(model="tiny")), **more)
    options = PackageOptions(precisions=("bf16",), triton=triton)
    return package(source, write_photos(folder / "photos", 60), folder / "b", options)[0]


def test_a_bundle_says_that_its_row_is_emulated_and_how_far_a_gpu_may_be(bundle: Path) -> None:
    made = read_bundle(bundle)
    assert [(e.domain, e.version) for e in onnx.load(made.model_path).opset_import] == [("", CONV_OPSET)]
    row = {row["precision"]: row for row in made.manifest.parity["rows"]}["bf16"]
    assert (made.manifest.precision, row["runtime"], row["passed"]) == ("bf16", parity.EMULATED, True)
    assert made.manifest.golden.one_minus_cosine == parity.MAX_COSINE["bf16"]
    assert f"| bf16 | {parity.EMULATED} |" in card(made.manifest)
    session = open_twin(made.model_path, ort.SessionOptions())
    check_golden(made, {"aligned": session.run(["aligned"], {"pixels": made.golden.pixels})[0]})


def test_triton_gets_it_for_gpus_and_not_for_cpus(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="install the extra `triton`")
    with pytest.raises(NeedsGpu, match=r"'bf16', which ONNX Runtime computes on a GPU only; the device is 'cpu'"):
        write_repository(bundle, tmp_path / "cpu", Options())
    assert not list(tmp_path.iterdir())
    text = (write_repository(bundle, tmp_path / "gpu", Options(device="tensorrt")) / "config.pbtxt").read_text()
    assert 'value: "BF16"' in text and "TYPE_UINT8" in text and "TYPE_FP32" in text and "TYPE_BF16" not in text


def test_parity_in_a_triton_on_a_cpu_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--precision bf16 with --triton-device cpu"):
        packaged(tmp_path, triton=Server("localhost:1"))


def test_float32_pixels_are_for_bfloat16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.MAX_FLIPS, "bf16", 0.05)
    made = packaged(tmp_path, input="float32")
    assert made.manifest.pixels.dtype == "float32"


# --- where there is a GPU ----------------------------------------------------------------------------


def with_gpu(monkeypatch: pytest.MonkeyPatch, opens: Any) -> None:
    """ONNX Runtime as it is where CUDA is installed; `opens` stands for its sessions."""
    here = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    has = SimpleNamespace(__version__="9", get_available_providers=lambda: here, InferenceSession=opens)
    monkeypatch.setattr(parity, "ort", has)


def test_where_there_is_a_gpu_the_graph_itself_has_a_row(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_twin(file, ort.SessionOptions())
    asked: list[Any] = []

    def opens(graph: Any, providers: Any) -> Any:
        asked.append((graph, providers))
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"], run=session.run)

    with_gpu(monkeypatch, opens)
    model, spec = vit()
    runtime = parity.cuda_runtime(file, model.outputs, spec)
    assert runtime is not None and runtime.name == parity.CUDA
    assert asked[-1][0] == str(file) and asked[-1][1][0][0] == "CUDAExecutionProvider"
    assert set(runtime.run(PIXELS[:2])) == {"aligned", "base"}


def test_cuda_without_a_driver_gives_no_row_and_one_that_lacks_an_operator_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = vit()
    gpu = False

    def opens(graph: Any, providers: Any) -> Any:
        if isinstance(graph, str):
            raise RuntimeError("NOT_IMPLEMENTED : Erf(13)")
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"] if gpu else ["CPUExecutionProvider"])

    with_gpu(monkeypatch, opens)
    assert parity.cuda_runtime(file, model.outputs, spec) is None
    gpu = True
    with pytest.raises(ValueError, match=r"9 does not open bf16 on the GPU: .*Erf\(13\).*leave this precision out"):
        parity.cuda_runtime(file, model.outputs, spec)
