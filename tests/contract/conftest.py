"""A good bundle, and a copy of it to break."""

import shutil
from pathlib import Path

import pytest

from contract.bundle import (
    Bundle,
)
from tests.contract.bundles import a_bundle


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A good bundle that no test changes."""
    return a_bundle(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Bundle, tmp_path: Path) -> Path:
    """A good bundle's folder to break."""
    return Path(shutil.copytree(whole.path, tmp_path / "toy"))
