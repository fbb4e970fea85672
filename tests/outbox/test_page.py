"""docs/outbox.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from warrener.outbox import ddl

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "outbox.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_page_has_the_statements_of_the_code(database):
    """Whoever copies them makes the same tables."""
    assert ddl(database).rstrip() + "\n" in blocks("sql")


def test_each_claim_names_a_test_that_exists():
    """The table of guarantees points at tests, and none of them has been renamed."""
    table = PAGE.split("## What is guaranteed")[1].split("What is *not*")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    source = "".join(path.read_text() for path in HERE.glob("test_*.py"))

    for row in rows:
        named = re.findall(r"`(test_\w+|\w+_\w+_\w+_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        assert [name for name in named if f"def {name}(" not in source] == []


def test_the_page_promises_at_least_once():
    """And never the other thing."""
    assert "at least once" in PAGE
    assert "exactly once" not in PAGE.lower()
