"""Commands of `python -m training` that the docs print are ones that it takes."""

import pytest

from tests.snippets import snippets
from training.__main__ import parser

FOUND = snippets("training")


@pytest.mark.parametrize(("page", "words"), [(page, words) for page, _, words in FOUND])
def test_a_printed_command_is_taken(page: str, words: list[str]) -> None:
    numbers = ["1" if word == "N" else word for word in words]  # `--seed N`
    parser(words[0]).parse_args(numbers)


def test_enough_commands_are_found() -> None:
    assert len(FOUND) > 30


def test_a_wrong_option_is_not_taken() -> None:
    with pytest.raises(SystemExit):
        parser("embed").parse_args(["embed", "vit-b", "photos", "--no-such"])
