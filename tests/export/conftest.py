"""What the export tests share: a finished tiny run, its model, and that model as a float32 graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contract.bundle import Bundle
from export import package as packaging
from export.graph import AlignedModel, export_graph
from export.package import PackageOptions
from export.sources import read_run
from tests.training.tiny import TINY, TINY_MODEL, tiny_encoder, write_tiny_data
from training.align import Transform
from training.models import MODELS
from training.run import run


@dataclass(frozen=True)
class Run:
    """A finished run and the data that it was made from."""

    data: Path
    folder: Path


@dataclass(frozen=True)
class Exported:
    """A model, its float32 graph, and 40 images of blurred noise."""

    model: AlignedModel
    transform: Transform
    file: Path
    pixels: NDArray[np.uint8]


def package_run(run: Path, data: Path, target: Path, **options: Any) -> tuple[Bundle, str]:
    """A run and the photos of its data through `package`."""
    source, photos = read_run(run, data)
    assert photos is not None
    return packaging.package(source, photos, target, PackageOptions(**options))


@pytest.fixture(scope="session", autouse=True)
def tiny_constants() -> Iterator[None]:
    """The tiny encoder is known, and parity takes as few photos as the tiny data have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY_MODEL)
        patch.setattr(packaging, "PARITY_PHOTOS", 48)
        patch.setattr(packaging, "CALIBRATION_PHOTOS", 8)
        yield


@pytest.fixture(scope="session")
def tiny_run(tiny_constants: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Read only: tests copy what they change."""
    root = tmp_path_factory.mktemp("tiny")
    run(TINY, write_tiny_data(root / "data"), root / "run")
    return Run(root / "data", root / "run")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A random transform with a power, as the starter has one."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(64, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    mean = np.full(64, 0.1, np.float32)
    transform = Transform(weights, bias, mean, np.array(0.05, np.float32), np.array(0.4, np.float32))
    model = AlignedModel(tiny_encoder(), transform).eval()
    file = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    export_graph(model, (3, 8, 8), file)
    pixels = rng.integers(0, 150, (40, 3, 1, 1)) + rng.integers(0, 100, (40, 3, 8, 8))
    return Exported(model, transform, file, pixels.astype(np.uint8))
