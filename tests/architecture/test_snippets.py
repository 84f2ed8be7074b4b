"""Commands that the docs print are ones that the programs take. Those of training: tests/training/test_snippets.py."""

import argparse
import importlib
import subprocess
import sys
from contextlib import suppress

import pytest

import alignet_client.__main__ as client
import app.__main__ as service
import export.__main__ as exporting
from app import bulk
from app.judging import export as judgments
from tests.snippets import ROOT, snippets

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def parser_of(name: str, words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    if name == "alignet":
        return client.parser(), words
    if name == "export":
        return exporting.parser(), words
    if words[:1] == ["bulk"]:
        return bulk.parser(), words[1:]
    if words[:1] == ["judgments"]:
        return judgments.parser(), words[1:]
    return service.parser(), words


@pytest.mark.parametrize(("page", "name", "words"), snippets("alignet", "alignet-serve", "app", "export"))
def test_a_printed_command_is_taken(page: str, name: str, words: list[str]) -> None:
    parser, rest = parser_of(name, words)
    with suppress(SystemExit) if {"--help", "--version"} & set(rest) else pytest.MonkeyPatch.context():
        parser.parse_args(rest)


@pytest.mark.parametrize(
    ("name", "words"), [found[1:] for found in snippets(*(f"benchmarks.{file.stem}" for file in BENCHMARKS))]
)
def test_a_printed_benchmark_has_the_options(name: str, words: list[str]) -> None:
    source = (ROOT / f"{name.replace('.', '/')}.py").read_text()
    for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
        known = f'"{option}"' in source or f'"{option.replace("--no-", "--")}"' in source
        assert known, f"{name} has no {option}"


def test_a_wrong_option_is_not_taken() -> None:
    for name, words in [("alignet", ["odd", "--x"]), ("export", ["card"]), ("alignet-serve", ["--no-such"])]:
        parser, rest = parser_of(name, words)
        with pytest.raises(SystemExit):
            parser.parse_args(rest)


def test_enough_commands_are_found() -> None:
    assert len(snippets("alignet", "alignet-serve", "app", "export")) > 30


@pytest.mark.parametrize("room", ["app", "alignet_client", "training", "export"])
def test_every_command_tells_its_version(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", room, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[1:] == [importlib.metadata.version("alignet-serve")]
