"""The whole way: one photo gives one vector through torch, through the graph and over HTTP."""

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from contract.pixels import load_pixels
from export.graph import AlignedModel
from export.package import PackageOptions, package
from export.parity import one_minus_cosine, torch_vectors
from export.sources import read_run
from tests.export.conftest import Run
from tests.training.tiny import tiny_encoder
from training.align import Transform

pytest.importorskip("fastapi")


@pytest.mark.parametrize("given", ["uint8", "float32"])
def test_a_photo_has_the_same_vector_in_torch_in_onnx_and_over_http(
    tiny_run: Run, tmp_path: Path, serve: Callable[..., Any], given: Any
) -> None:
    photos = sorted((tiny_run.data / "images").glob("*-1.png"))[:5]
    source, images = read_run(tiny_run.folder, tiny_run.data)
    assert images is not None
    options = PackageOptions(precisions=("fp32",), golden_photos=tuple(photos[:2]))
    bundle, _ = package(replace(source, input=given), images, tmp_path / "b", options)
    model = AlignedModel(tiny_encoder(), Transform.load(tiny_run.folder / "transform.npz"))
    pixels = np.stack([load_pixels(photo.read_bytes(), bundle.manifest.pixels) for photo in photos])
    assert pixels.dtype == given
    in_torch = torch_vectors(
        model, np.stack([load_pixels(photo.read_bytes(), tiny_encoder().pixels) for photo in photos])
    )
    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    in_onnx = dict(zip(("aligned", "base"), session.run(["aligned", "base"], {"pixels": pixels}), strict=True))
    client = serve(bundle=bundle.path)
    images = [{"image": base64.b64encode(photo.read_bytes()).decode()} for photo in photos]
    for space in ("aligned", "base"):
        reply = client.post("/embed", json={"images": images, "space": space})
        assert reply.status_code == 200, reply.text
        over_http = np.array([item["embedding"] for item in reply.json()["data"]], np.float32)
        assert np.array_equal(over_http, in_onnx[space]), space
        assert one_minus_cosine(in_torch[space], over_http) < 1e-9
        np.testing.assert_allclose(over_http, in_torch[space], atol=1e-5 * np.abs(over_http).max())
