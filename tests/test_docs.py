"""The pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import warrener
from warrener import Settings

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = (DOCS / "reference.md").read_text()


def test_the_reference_names_every_public_name() -> None:
    """Nothing public is missing from the page."""
    named = set(re.findall(r"`(\w+)", REFERENCE)) | set(re.findall(r"↳ `(\w+)`", REFERENCE))
    assert set(warrener.__all__) - named == set()


def rows() -> dict[str, str]:
    """The table of settings: name and default."""
    return dict(
        re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", REFERENCE.split("## Settings")[1].split("## Errors")[0], re.MULTILINE)
    )


def test_the_table_of_settings_is_complete() -> None:
    """Every row that text can set, and no other."""
    from warrener.settings import _TEXT_RULES

    assert set(rows()) == set(_TEXT_RULES)


def test_the_defaults_of_the_table_are_the_defaults() -> None:
    """Given in the environment, the table's defaults make the settings that nothing makes."""
    given = {f"WARRENER_{name.upper()}": default for name, default in rows().items() if name != "name"}
    url = "amqp://localhost/"

    assert Settings.resolve(url, environ=given, name="x") == Settings.resolve(url, environ={}, name="x")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    """No page points at a page or a heading's file that is not there."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
