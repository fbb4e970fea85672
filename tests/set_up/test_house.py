"""What a contributor and a public forge read names things that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ["CONTRIBUTING.md", "SECURITY.md", "llms.txt", "newsfragments/README.md"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KINDS = {"added", "changed", "removed", "fixed", "security"}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page: str) -> None:
    """No page at the root points at a file that is not there."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_path_and_target_exists(page: str) -> None:
    """`src/…`, `tests/…`, `scripts/…` and `make …` in backticks are there."""
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    paths = [
        text
        for text in quoted
        if re.fullmatch(r"(src|tests|scripts|docs|benchmarks|examples|\.github)(/[\w./-]+)?", text)
    ]
    made = [match[1] for text in quoted if (match := re.fullmatch(r"make ([\w-]+)(?: \w+=.*)?", text))]

    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert set(made) - TARGETS == set()


def workflow(path: Path) -> dict[str, Any]:
    """A workflow of the forge; YAML takes its key `on` for a truth value."""
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_digest(path: Path) -> None:
    """Each with the name of its release beside it, and no job has a permission that it was not given."""
    uses = re.findall(r"uses: (\S+)(.*)", path.read_text())

    assert uses != []
    assert [
        use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use[0]) or not re.match(r" # v\d", use[1])
    ] == []
    assert workflow(path)["permissions"] == {}
    assert [name for name, job in workflow(path)["jobs"].items() if "permissions" not in job] == []


def test_a_fragment_of_news_says_of_which_kind_it_is() -> None:
    """`<issue>.<kind>.md` or `+<word>.<kind>.md`, and not empty."""
    fragments = [path for path in (ROOT / "newsfragments").iterdir() if path.name != "README.md"]

    assert [
        path.name for path in fragments if not re.fullmatch(rf"(\d+|\+[\w-]+)\.({'|'.join(KINDS)})\.md", path.name)
    ] == []
    assert [path.name for path in fragments if not path.read_text().strip()] == []
