"""Options of a command from the fields of its config."""

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from training.options import add_options, override, read_options


@dataclass(frozen=True, kw_only=True)
class Config:
    how: Literal["this", "that"]
    count: int = 3
    grid: tuple[int, ...] = (1, 2)
    limit: int | None = 7
    single: bool = True


def read(*argv: str) -> Config:
    parser = argparse.ArgumentParser()
    add_options(parser, Config)
    return read_options(parser.parse_args(argv), Config)


def test_what_is_not_given_keeps_its_default() -> None:
    assert read("--how", "this") == Config(how="this")


def test_every_kind_of_field_is_read() -> None:
    given = read("--how", "that", "--count", "5", "--grid", "4", "8", "--limit", "none", "--no-single")
    assert given == Config(how="that", count=5, grid=(4, 8), limit=None, single=False)
    assert read("--how", "this", "--grid").grid == ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Config
    mode: Literal["none", "all"] = "all"


def test_none_is_a_choice_where_there_is_one_of_that_name_and_no_value_elsewhere() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Outer)
    given = parser.parse_args(["--how", "that", "--mode", "none", "--limit", "none"])
    assert read_options(given, Outer) == Outer(inner=Config(how="that", limit=None), mode="none")


def test_what_is_given_takes_the_place_of_a_configs_values_and_the_rest_stays() -> None:
    own = Outer(inner=Config(how="this", count=9, grid=(5,)), mode="none")
    parser = argparse.ArgumentParser()
    add_options(parser, Outer)
    given = parser.parse_args(["--how", "that", "--limit", "none", "--no-single"])
    changed = override(given, own)
    assert changed == Outer(inner=Config(how="that", count=9, grid=(5,), limit=None, single=False), mode="none")
    assert override(given, own.inner, but=("how", "limit")) == Config(how="this", count=9, grid=(5,), single=False)


@pytest.mark.parametrize(
    "argv", [[], ["--how", "other"], ["--how", "this", "--count", "x"], ["--how", "this", "--new", "1"]]
)
def test_what_is_missing_wrong_or_unknown_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(*argv)
    assert "error:" in capsys.readouterr().err
