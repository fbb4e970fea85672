"""docs/outbox.md says what the code does."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import warrener
from warrener.outbox import SQLiteOutbox, ddl
from warrener.testing import EmbeddedBroker

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


def test_plain_sql_works_as_the_page_writes_it(tmp_path):
    """The one statement that any language needs."""
    outbox = SQLiteOutbox(tmp_path / "app.db")
    outbox.create()
    (statement,) = [sql for sql in blocks("sql") if sql.startswith("INSERT INTO warrener_outbox (routing_key, body)")]
    db = sqlite3.connect(tmp_path / "app.db")
    db.executescript(statement)
    db.close()

    (entry,) = outbox.entries()
    assert (entry.routing_key, entry.body) == ("tasks", b"resize 7")


@pytest.mark.slow
def test_the_first_two_examples_run(tmp_path):
    """As they stand on the page, against a broker at another port."""
    first, second, *_ = blocks("python")
    with closing(sqlite3.connect(tmp_path / "app.db")) as db, db:
        db.execute("CREATE TABLE orders (item TEXT)")
    db.close()
    SQLiteOutbox(tmp_path / "app.db").create()
    with EmbeddedBroker.in_thread() as broker:
        first = first.replace("amqp://guest:guest@localhost/", broker.url)
        for example in (first, second):
            environment = {**os.environ, "PYTHONPATH": str(Path(warrener.__file__).parents[1])}
            subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=environment, check=True, timeout=60)

        assert broker.messages("tasks") == [b"resize 7"]
    assert [entry.key for entry in SQLiteOutbox(tmp_path / "app.db").entries()] == ["customer-42"]
