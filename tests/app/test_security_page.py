"""The threat model names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_threat_names_tests_and_every_test_named_exists() -> None:
    threats, _, _ = (ROOT / "docs/security.md").read_text().partition("## Figures")
    rows = re.findall(r"^\| (?!threat|---)(.+) \|$", threats, re.MULTILINE)
    written = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
    assert len(rows) > 50
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split(" | ")[2])
        assert named, f"no test for: {row}"
        assert set(named) <= known, f"no such test: {set(named) - known}"
