"""Small bundles for the tests of the contract."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from contract.bundle import (
    Bundle,
    Golden,
    write_bundle,
)
from contract.manifest import (
    FORMAT,
    FORMAT_VERSION,
    BaseModel,
    Figure,
    GoldenTolerance,
    Manifest,
    Space,
)
from contract.pixels import PixelSpec, load_pixels

SPEC = PixelSpec(height=6, width=8, resize="squash", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
SIZES = {"aligned": 4, "base": 5}
SHA = hashlib.sha256(b"a graph").hexdigest()

Way = Callable[[Path], object]


def a_manifest(**changes: Any) -> Manifest:
    space = Space(
        size=4,
        normalized=False,
        similarity="dot",
        temperature=1.5,
        calibrated=True,
        calibrated_on="things",
        fingerprint="",
    )
    figure = Figure(
        name="odd-one-out",
        space="aligned",
        value=0.6,
        low=0.5,
        high=0.7,
        n=100,
        unit="share",
        note="",
        command="python -m x",
    )
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": "toy-1.0_b",
        "description": "Für Tests",
        "created": "2025-01-01T00:00:00Z",
        "alignment": "none",
        "license": "Apache-2.0",
        "base_model": BaseModel(name="toy", source="here", license="CC0"),
        "training": {"seed": 1},
        "pixels": SPEC,
        "spaces": {"aligned": space, "base": replace(space, size=5, calibrated=False, calibrated_on="")},
        "precision": "float32",
        "tie_rule": "strict",
        "figures": [figure, replace(figure, value=None, low=None, high=None, note="no data")],
        "parity": {"one_minus_cosine": 1e-7},
        "golden": GoldenTolerance(one_minus_cosine=1e-5, relative_norm=1e-4, pixel=1),
    }
    return Manifest(**{"files": {}, **values, **changes})


def a_golden(spec: PixelSpec = SPEC, n: int = 2) -> Golden:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
        images.append(stream.getvalue())
    vectors = {name: rng.standard_normal((n, size)).astype(np.float32) for name, size in SIZES.items()}
    return Golden(images=tuple(images), pixels=np.stack([load_pixels(i, spec) for i in images]), vectors=vectors)


def a_bundle(folder: Path, manifest: Manifest | None = None, golden: Golden | None = None) -> Bundle:
    folder.mkdir(exist_ok=True)
    graph = folder / "graph"
    graph.write_bytes(b"a graph")
    manifest = manifest or a_manifest()
    return write_bundle(folder / "toy", manifest, graph, golden or a_golden(manifest.pixels))
