"""The commands that README and docs print, word by word."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(
    r"(?:python -m (?P<room>training|export|app|benchmarks\.\w+)|(?P<program>alignet-serve|alignet))(?= |$)"
)


def snippets(*names: str) -> list[tuple[str, str, list[str]]]:
    """(page, command, its arguments) of blocks of shell and of `code` in a line, for the commands `names`."""
    found = []
    for page in PAGES:
        for line in _lines(page.read_text()):
            match = COMMAND.search(line)
            name = match and (match["room"] or match["program"])
            if match and name in names and "..." not in line:
                words = _words(line[match.end() :])
                found.append((page.relative_to(ROOT).as_posix(), name, words))
    return found


def _lines(page: str) -> Iterator[str]:
    """Commands begin a line of a block (after variables, or under torchrun), or are code within a sentence."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if re.match(r"(?:\w+=\S+ )*(?:\S*python -m |alignet|torchrun)", line):
            yield re.sub(r"^torchrun .*?-m ", "python -m ", line)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        line = " ".join(code.split())
        match = COMMAND.match(line)
        if match and " -" in line[match.end() :]:
            yield line


def _words(rest: str) -> list[str]:
    """Arguments up to a comment, a pipe or a redirection; three spaces part a command from what is said of it."""
    rest = re.split(r"\s{3,}(?=[^-\s])|\s[>|&]|\s#", rest)[0]
    return shlex.split(rest)
