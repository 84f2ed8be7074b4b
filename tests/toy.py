"""The toy: a real bundle of random weights, small enough to build inside a test."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.bundle import Golden, write_bundle
from contract.manifest import BaseModel, GoldenTolerance, Manifest, Space
from contract.pixels import PixelSpec, PixelType, load_pixels

SIDE, SIZE = 8, 5
"""The toy graph: 8 x 8 pixels to 5 numbers."""


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Blocks of colour that no two seeds share."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def toy_graph(path: Path, spec: PixelSpec, seed: int = 0, pool: NDArray[np.float32] | None = None) -> None:
    """Pixels / 255, flattened; `base` keeps 5 sums, by `pool` or random; `aligned` is an affine map of them."""
    import onnx  # here, so that tests which need no graph need no onnx
    from onnx import TensorProto, helper, numpy_helper

    element = TensorProto.UINT8 if spec.dtype == "uint8" else TensorProto.FLOAT
    rng = np.random.default_rng(seed)
    weights = {
        "flat": np.array([0, -1], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "pool": rng.normal(size=(3 * spec.height * spec.width, SIZE)).astype(np.float32),
        "W": rng.normal(size=(SIZE, SIZE)).astype(np.float32),
        "b": rng.normal(size=SIZE).astype(np.float32),
    } | ({} if pool is None else {"pool": pool})
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["flattened"]),
        helper.make_node("MatMul", ["flattened", "pool"], ["base"]),
        helper.make_node("MatMul", ["base", "W"], ["mapped"]),
        helper.make_node("Add", ["mapped", "b"], ["aligned"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("pixels", element, ["n", *spec.shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in ("aligned", "base")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def toy_manifest(spec: PixelSpec) -> Manifest:
    """The toy's manifest, before `write_bundle` fills in hashes."""
    space = Space(
        size=SIZE,
        normalized=False,
        similarity="dot",
        temperature=2.0,
        calibrated=True,
        calibrated_on="nothing real",
        fingerprint="",
    )
    return Manifest(
        format="alignet-bundle",
        format_version=1,
        name="toy",
        description="random weights",
        created="2026-01-01T00:00:00Z",
        alignment="none",
        license="Apache-2.0",
        base_model=BaseModel(name="toy", source="tests/conftest.py", license="Apache-2.0"),
        training={},
        pixels=spec,
        spaces={"aligned": space, "base": space},
        precision="fp32",
        tie_rule="strict",
        figures=[],
        parity={},
        golden=GoldenTolerance(one_minus_cosine=1e-5, relative_norm=1e-4, pixel=0),
        files={},  # filled in by write_bundle
    )


def write_toy_bundle(
    target: Path,
    seed: int = 0,
    name: str = "toy",
    pool: NDArray[np.float32] | None = None,
    dimensions: tuple[str, ...] = (),
    dtype: PixelType = "uint8",
) -> Path:
    """A whole, honest bundle at `target`, which any engine runs in microseconds; `dimensions` are of its base space."""
    import onnxruntime as ort

    spec = PixelSpec(height=SIDE, width=SIDE, resize="squash", dtype=dtype)
    graph = target.with_suffix(".onnx")
    toy_graph(graph, spec, seed, pool)
    images = tuple(encoded(photo(seed)) for seed in range(3))
    pixels = np.stack([load_pixels(image, spec) for image in images])
    aligned, base = ort.InferenceSession(graph).run(["aligned", "base"], {"pixels": pixels})
    golden = Golden(images=images, pixels=pixels, vectors={"aligned": aligned, "base": base})
    manifest = toy_manifest(spec)
    spaces = manifest.spaces | {"base": replace(manifest.spaces["base"], dimensions=dimensions)}
    return write_bundle(target, replace(manifest, name=name, spaces=spaces), graph, golden).path
