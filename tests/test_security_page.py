"""Each guard that the security page names has a test, and the page says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
GUARDS = PAGE.partition("## Attacks, guards, tests")[2].partition("## Out of scope")[0]
ROWS = [line for line in GUARDS.splitlines() if "|" in line]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_tests_that_the_page_names_are_there(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE)


def test_every_row_has_a_test_or_says_that_there_is_no_guard() -> None:
    rows = [row for row in ROWS if not re.fullmatch(r"\|[-|]+\||\| who .*", row)]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row and "**no guard**" not in row] == []
