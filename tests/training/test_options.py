"""Options of a command from the fields of its config."""

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from training.options import add_options, read_options


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


@pytest.mark.parametrize(
    "argv", [[], ["--how", "other"], ["--how", "this", "--count", "x"], ["--how", "this", "--new", "1"]]
)
def test_what_is_missing_wrong_or_unknown_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(*argv)
    assert "error:" in capsys.readouterr().err
