"""Rules of the house that a machine can check."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("alignet_client", "app", "contract", "export", "training")
FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_stays_readable(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{file} has no module docstring"
    assert len(file.read_text().splitlines()) <= 600
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno > 80]
    assert not long, f"{file}: {long} have more than 80 lines"


def test_no_room_without_a_name() -> None:
    assert not [file for file in FILES if file.stem in ("utils", "helpers", "common", "misc")]


def test_the_readme_is_short_and_its_layout_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for room in (*ROOMS, "deploy", "tests", "docs"):
        assert f"{room}/" in readme


def test_the_base_install_pulls_no_torch_and_no_onnx_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert not requirement.startswith(("torch", "onnx", "timm"))
    assert set(project["optional-dependencies"]) >= {"cpu", "gpu", "triton", "train", "dev"}
