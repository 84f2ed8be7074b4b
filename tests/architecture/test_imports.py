"""The import arrows, seen from outside: what a fresh process really loads."""

import os
import subprocess
import sys
from importlib import util

import pytest

HEAVY = ("torch", "torchvision", "timm", "onnx", "training", "export")


def loaded_by(module: str) -> set[str]:
    """Top-level modules in a fresh process after importing `module`."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["app.main", "app.__main__", "app.engine", "onnxruntime"])
def test_serving_loads_nothing_of_training(module: str) -> None:
    assert not loaded_by(module) & set(HEAVY)


@pytest.mark.parametrize("module", ["contract.triplets", "contract.pixels", "contract.bundle", "contract.graph"])
def test_the_contract_loads_numpy_and_pillow_only(module: str) -> None:
    others = {"app", "fastapi", "pydantic", "onnxruntime", "starlette", "scipy", *HEAVY}
    assert not loaded_by(module) & others


@pytest.mark.skipif("EXPECT_NO_TORCH" not in os.environ, reason="set by `make test-serving`")
def test_this_environment_has_no_torch() -> None:
    # The third lock: these tests, and all of tests/app and tests/contract, run where torch is not installed.
    assert util.find_spec("torch") is None
