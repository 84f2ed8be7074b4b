"""The parity gate: the model itself passes, anything that judges otherwise does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from contract import triplets
from export import parity
from export.parity import (
    MAX_COSINE,
    MAX_FLIPS,
    MAX_LENGTH_CHANGE,
    Parity,
    compare,
    one_minus_cosine,
    onnx_runtime,
    torch_vectors,
)
from export.precision import PRECISIONS
from tests.export.conftest import Exported
from tests.training.tiny import tiny_encoder

TRIPLETS = np.random.default_rng(0).permuted(np.tile(np.arange(40), (1000, 1)), axis=1)[:, :3]


def changed(source: Path, target: Path, shape: tuple[int, ...], change: Callable[[NDArray[Any]], NDArray[Any]]) -> Path:
    """The graph with the weights of the one initializer of `shape` changed."""
    model = onnx.load(str(source))
    (tensor,) = [t for t in model.graph.initializer if tuple(t.dims) == shape]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, str(target))
    return target


def compared(exported: Exported, file: Path, **options: Any) -> Parity:
    reference = torch_vectors(exported.model, exported.pixels)
    given: dict[str, Any] = {"reference": reference, "index": TRIPLETS, "temperature": 10.0} | options
    runtime = onnx_runtime(file, exported.model.outputs, tiny_encoder().pixels)
    return compare(runtime, "fp32", pixels=exported.pixels, kernel="dot", **given)


def test_the_graph_itself_passes_without_a_flip(exported: Exported) -> None:
    row = compared(exported, exported.file)
    assert row.passed
    assert row.flips == 0
    assert row.neighbours == 1
    assert row.batch_difference == 0
    assert row.one_minus_cosine < 1e-9
    assert row.base_one_minus_cosine < 1e-9
    assert row.entropy_change < 1e-4
    assert row.length_change < 1e-5
    assert row.bytes == exported.file.stat().st_size


def test_a_graph_with_another_head_fails(exported: Exported, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=(8, 64, 1, 1)).astype(np.float32)
    file = changed(exported.file, tmp_path / "m.onnx", (8, 64, 1, 1), lambda w: w + 5 * noise)
    row = compared(exported, file)
    assert not row.passed
    assert row.flips > 0.05
    assert row.neighbours < 0.99
    assert row.base_one_minus_cosine < 1e-9  # the head alone was changed


ALONE: dict[str, Callable[[parity.Vectors], parity.Vectors]] = {
    "negated": lambda given: given | {"aligned": -given["aligned"]},
    "reversed": lambda given: given | {"aligned": given["aligned"][:, ::-1]},
    "longer": lambda given: given | {"aligned": 7 * given["aligned"]},
    "longer in the base space": lambda given: given | {"base": 100 * given["base"]},
    "not finite": lambda given: given | {"base": np.nan * given["base"]},
}


@pytest.mark.parametrize("size", [1, 8], ids=["alone", "in a batch"])
@pytest.mark.parametrize("name", ALONE)
def test_a_runtime_that_is_wrong_for_one_size_of_batch_fails(exported: Exported, name: str, size: int) -> None:
    right = onnx_runtime(exported.file, exported.model.outputs, tiny_encoder().pixels)
    wrong = replace(right, run=lambda pixels: (ALONE[name] if len(pixels) == size else dict)(right.run(pixels)))
    reference = torch_vectors(exported.model, exported.pixels)
    assert not compare(wrong, "fp32", reference, exported.pixels, TRIPLETS, "dot", 10.0).passed


def test_a_vector_of_another_length_fails_by_that_alone(exported: Exported) -> None:
    reference = torch_vectors(exported.model, exported.pixels)
    reference["base"][5] *= 1.01
    row = compared(exported, exported.file, reference=reference)
    assert row.length_change == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert row.base_one_minus_cosine < 1e-9
    assert not row.passed
    assert parity.limits("fp32")["length_change"] < 0.01


@pytest.mark.parametrize("gate", ["MAX_COSINE", "MAX_FLIPS", "MAX_LENGTH_CHANGE"])
def test_each_gate_fails_alone(exported: Exported, monkeypatch: pytest.MonkeyPatch, gate: str) -> None:
    monkeypatch.setattr(parity, gate, dict.fromkeys(PRECISIONS, -1.0))
    assert not compared(exported, exported.file).passed


def test_flips_are_the_share_of_triplets_with_another_odd_one(exported: Exported) -> None:
    reference = torch_vectors(exported.model, exported.pixels)
    index = np.arange(12).reshape(4, 3)
    odd = int(triplets.odd_one_out(triplets.pair_similarities(reference["aligned"][:3].astype(np.float64))))
    exchanged = [odd, (odd + 1) % 3]  # of the first triplet alone, the odd photo and another one
    reference["aligned"][exchanged] = reference["aligned"][exchanged[::-1]]
    row = compared(exported, exported.file, reference=reference, index=index)
    assert row.flips == 0.25
    assert row.entropy_change < 1e-4  # the same three pairs in another order are as uncertain


def test_a_graph_whose_base_space_is_broken_fails(exported: Exported) -> None:
    reference = torch_vectors(exported.model, exported.pixels)
    reference["base"] = reference["base"][::-1]
    row = compared(exported, exported.file, reference=reference)
    assert row.base_one_minus_cosine > 0.01
    assert not row.passed  # bundles serve this space, too


def test_a_vector_that_is_not_finite_fails_even_where_no_triplet_shows_it(exported: Exported) -> None:
    reference = torch_vectors(exported.model, exported.pixels)
    reference["aligned"][5] = np.nan
    without_5 = TRIPLETS[(TRIPLETS != 5).all(1)]
    assert not compared(exported, exported.file, reference=reference, index=without_5).passed


def test_one_minus_cosine_is_the_worst_of_the_rows() -> None:
    a = np.array([[1, 0], [3, 4], [2, 2]], np.float32)
    b = np.array([[5, 0], [4, 3], [2, 0]], np.float32)
    assert one_minus_cosine(a[:1], b[:1]) == 0
    assert one_minus_cosine(a[:2], b[:2]) == pytest.approx(1 - 24 / 25)
    assert one_minus_cosine(a, b) == pytest.approx(1 - 1 / np.sqrt(2))
    assert one_minus_cosine(a, -a) == pytest.approx(2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # how it is found is not our matter
@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [0, 0]])
def test_one_minus_cosine_of_a_vector_without_direction_is_beyond_every_gate(bad: list[float]) -> None:
    a, b = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    b[1] = bad
    assert not one_minus_cosine(a, b) <= max(MAX_COSINE.values())


def test_one_minus_cosine_sees_differences_that_single_precision_does_not() -> None:
    a = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    b = a.copy()
    b[0, 0] += 1e-3
    assert 0 < one_minus_cosine(a, b) < 1e-8


def test_every_precision_has_its_gates_and_the_reports_line() -> None:
    assert set(MAX_COSINE) == set(MAX_FLIPS) == set(MAX_LENGTH_CHANGE) == set(PRECISIONS)
    rows = [
        Parity(p, 1e-7, 1e-7, 1e-6, 0.001, 0.01, 0.99, 0.0, 1.0, 0.5, 2_000_000, passed=i > 0)
        for i, p in enumerate(PRECISIONS)
    ]
    head, *lines = parity.table(rows).splitlines()
    assert [line.split()[0] for line in lines] == list(PRECISIONS)
    assert [line.split()[-1] for line in lines] == ["False", *["True"] * (len(PRECISIONS) - 1)]
    assert all("0.10%" in line and " 2.0 " in line for line in lines)
    assert len(head.split("  ")) > 5
