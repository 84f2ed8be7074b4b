"""What the docs say of the code is true."""

import re
from pathlib import Path

import pytest

from app.errors import TABLE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_api_page_lists_every_error_under_its_status() -> None:
    page = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \| (.+) \|$", page, re.MULTILINE)
    listed = {code: statuses for statuses, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert set(listed) == set(TABLE)
    assert all(str(row.status) in listed[kind] for kind, row in TABLE.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links {target}"
