"""What a stranger gets: the wheel holds what serves, Docker's context holds what the wheel is made of."""

import argparse
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import shtab
import yaml

import alignet_client.__main__ as client
import app.__main__ as service
import export.__main__ as exporting

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_every_file_that_git_has_of_its_rooms(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    held = set(wheel.namelist())
    assert {file for file in listed.splitlines() if (ROOT / file).exists()} <= held
    starter = {f"app/starter/{name}" for name in ("manifest.json", "model.onnx", "golden.npz")}
    assert held >= starter | {"alignet_client/py.typed"}
    assert any(name.startswith("app/pages/") and name.endswith(".html") for name in held)
    assert not [name for name in held if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_wheel_brings_both_commands(wheel: zipfile.ZipFile) -> None:
    (points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    written = wheel.read(points).decode()
    for name, target in PROJECT["project"]["scripts"].items():
        assert f"{name} = {target}" in written


def test_dockers_context_has_all_that_the_wheel_is_made_of() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = PROJECT["project"]
    assert let_in >= {*ROOMS, "pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}


@pytest.mark.parametrize("parser", [client.parser, exporting.parser, service.parser])
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_can_complete_every_command(parser: "type[argparse.ArgumentParser]", shell: str) -> None:
    assert "--version" in shtab.complete(parser(), shell)


def test_the_citation_and_changelog_are_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["references"][0]["doi"] in PROJECT["project"]["urls"]["Paper"]
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("file", sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]), ids=str)
def test_templates_parse(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


def test_every_page_of_docs_is_in_the_sites_navigation() -> None:
    plain = (ROOT / "mkdocs.yml").read_text()
    pages = [file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in plain] == []
