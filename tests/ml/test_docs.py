"""docs/ml-service.md and the README say what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from attrs import fields

from tests.ml.test_metrics import scrape
from warrener._cli.main import main
from warrener.ml import MLSettings
from warrener.ml.app import TASKS
from warrener.ml.metrics import MLCollector
from warrener.ml.payloads import from_mapping
from warrener.ml.settings import _variables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ml-service.md").read_text()
COMMANDS = (ROOT / "docs/command-line.md").read_text()


def test_the_table_of_settings_is_complete_and_its_defaults_are_the_defaults() -> None:
    """File key, variable and default of every setting."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert [row.name for row in fields(MLSettings) if row.name != "broker"] == [name for name, _, _ in rows]
    assert _variables() == [variable for _, variable, _ in rows]
    defaults = MLSettings()
    assert {name: shown(getattr(defaults, name)) for name, _, _ in rows} == {name: default for name, _, default in rows}


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return str(value).lower()


def test_the_table_of_metrics_is_the_scrape(ml) -> None:
    """Every series is named, and no other."""
    named = set(re.findall(r"^\| `(ml_producer_\w+)`", PAGE, re.MULTILINE))
    emitted = {re.sub(r"_(bucket|sum|count)$", "", name) for name in scrape(MLCollector(ml))}
    assert emitted == named


@pytest.mark.parametrize("source", ["README.md", "docs/ml-service.md", "scripts/serve.py"])
def test_what_the_curl_lines_post_is_a_task(source) -> None:
    """Whoever copies them gets a 202."""
    text = (ROOT / source).read_text()
    if source.endswith(".py"):
        text = text.replace("{{", "{").replace("}}", "}")
    posted = re.findall(r"/v1/ml/tasks/([\w-]+)[^\n]*\n\s+-d '([^']+)'", text)
    assert posted
    for name, body in posted:
        from_mapping(TASKS[name], json.loads(body))


def test_every_option_of_publish_that_the_page_names_exists(capsys) -> None:
    """And the page knows every format."""
    with pytest.raises(SystemExit):
        main(["publish", "--help"])
    known = capsys.readouterr().out
    section = COMMANDS.split("## publish")[1].split("## check")[0]
    assert [option for option in set(re.findall(r"--[a-z][a-z-]+", section)) if option not in known] == []
    assert {"lines", "jsonl", "messages", "files"} <= set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
