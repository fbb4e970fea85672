"""Every file that cannot be used is one clear error: in each command, for a producer, and in `add`."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing, contextmanager
from functools import partial

import anyio
import psycopg
import pytest

import warrener
from tests.outbox.rows import insert
from warrener._cli import outbox as command
from warrener._cli.main import main
from warrener.outbox import OutboxProblem, OutboxUnusable, PostgresOutbox, SQLiteOutbox, add
from warrener.outbox._schema import VERSION
from warrener.records import Message
from warrener.testing import EmbeddedBroker

NOBODY = "amqp://127.0.0.1:1/"
ACTIONS = {
    "ls": (), "show": ("1",), "retry": ("1",), "drop": ("1",), "stats": (), "relay": ("--to", NOBODY),
}  # fmt: skip


def executed(path, script):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def no_database(path):
    path.write_bytes(b"a diary, and nobody's outbox " * 500)


def another_program(path):
    executed(path, "CREATE TABLE tracks (id INTEGER); PRAGMA application_id = 252006674;")


def another_table(path):
    executed(path, "CREATE TABLE warrener_outbox (id INTEGER)")


def newer(path):
    SQLiteOutbox(path).create()
    executed(path, f"UPDATE warrener_outbox_meta SET schema_version = {VERSION + 1}")  # noqa: S608  # noqa: S608


def corrupt(path, begin=None):
    store = SQLiteOutbox(path)._make_store()
    store.open()
    insert(store, *[None] * 200, body=b"x" * 500)
    store.close()
    data = bytearray(path.read_bytes())
    begin = begin or len(data) // 2
    data[begin::7] = b"\xff" * len(data[begin::7])
    path.write_bytes(data)


#: What makes the file, what every text names, and the problem.
FILES = {
    "no folder": ("nowhere/app.db", lambda path: None, "does not exist", OutboxProblem.MISSING),
    "no file": ("app.db", lambda path: None, "there is no file", OutboxProblem.MISSING),
    "no database": ("app.db", no_database, "is no SQLite database", OutboxProblem.NOT_OURS),
    "another program": ("app.db", another_program, "of another program", OutboxProblem.NOT_OURS),
    "another table": ("app.db", another_table, "of another format", OutboxProblem.NOT_OURS),
    "newer": ("app.db", newer, "update warrener", OutboxProblem.NEWER_SCHEMA),
    "corrupt": ("app.db", corrupt, "is corrupt", OutboxProblem.CORRUPT),
}


@pytest.fixture(params=FILES)
def bad(request, tmp_path):
    """A file that cannot be used."""
    name, make, text, problem = FILES[request.param]
    make(tmp_path / name)
    return tmp_path / name, text, problem


def kept(path):
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("action", ACTIONS)
def test_each_command_says_it_in_one_line(bad, action, capsys):
    """With status 2, and the file stays as it was."""
    path, text, _ = bad
    before = kept(path)

    assert main(["outbox", action, str(path), *ACTIONS[action]]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("warrener outbox: ")
    assert (err.count("\n"), str(path) in err, text in err) == (1, True, True)
    assert out == ""
    assert kept(path) == before


@pytest.mark.anyio
async def test_a_producer_raises_it(bad):
    """By itself, without an ExceptionGroup; where a producer may make the file, it makes one."""
    path, text, problem = bad
    before = kept(path)
    with pytest.raises(OutboxUnusable, match=text) as caught:
        async with warrener.open_producer(NOBODY, outbox=SQLiteOutbox(path, make=False)):
            pytest.fail("the producer began")

    assert caught.value.problem is problem
    assert kept(path) == before


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, OutboxProblem.MISSING),
        (no_database, OutboxProblem.NOT_OURS),
        (another_program, OutboxProblem.MISSING),
        (another_table, OutboxProblem.NOT_OURS),
        (newer, OutboxProblem.NEWER_SCHEMA),
        (partial(corrupt, begin=4096), OutboxProblem.CORRUPT),
    ],
)
def test_add_raises_it(tmp_path, make, problem):
    """The application's own connection finds the same file."""
    make(tmp_path / "app.db")
    with closing(sqlite3.connect(tmp_path / "app.db")) as db, pytest.raises(OutboxUnusable) as caught:
        add(db, Message(b"1", routing_key="q"))

    assert caught.value.problem is problem


# --- a file that was good when it was opened ----------------------------------------------------------------------


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "app.db"
    SQLiteOutbox(path).create()
    with closing(sqlite3.connect(path)) as db, db:
        add(db, Message(b"1", routing_key="q"))
    return path


@contextmanager
def read_only(monkeypatch, path):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **rest: connect(f"file:{path}?mode=ro", uri=True, **rest))
    yield "cannot be written"


@contextmanager
def locked(monkeypatch, path):
    connect = sqlite3.connect
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite3, "connect", lambda path, **rest: connect(path, **rest | {"timeout": 0.05}))
        yield "was locked by another program"


@pytest.mark.parametrize("happens", [read_only, locked])
def test_commands_that_write_say_why_they_cannot(good, happens, monkeypatch, capsys):
    """To look is possible. The relay does not begin; where the file is locked, it says so and goes on, because the file
    may be free again at any moment.
    """
    said = []

    def say(line):
        said.append(line)
        if "cannot be used" in line or len(said) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "say", say)
    with happens(monkeypatch, good) as text:
        for action in ("ls", "show", "stats"):
            assert main(["outbox", action, str(good), *ACTIONS[action]]) == 0
        capsys.readouterr()

        for action in ("retry", "drop"):
            assert main(["outbox", action, str(good), *ACTIONS[action]]) == 2
            err = capsys.readouterr().err
            assert (err.count("\n"), text in err) == (1, True)
        if happens is read_only:
            assert main(["outbox", "relay", str(good), "--to", NOBODY]) == 2
            out, err = capsys.readouterr()
            assert (out, said, text in err) == ("", [], True)
            return
        with EmbeddedBroker.in_thread() as broker:
            assert main(["outbox", "relay", str(good), "--to", broker.url]) == 0
        assert [line for line in said if "cannot be used" in line and text in line] == said[-2:-1]


def test_add_says_why_a_good_file_cannot_be_written(good):
    """Locked for longer than the connection waits, read-only, full: what was stored before stays."""
    with closing(sqlite3.connect(good, isolation_level=None, timeout=0.05)) as db:
        with closing(sqlite3.connect(good, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OutboxUnusable, match=r"locked .* for longer than the connection waits") as caught:
                add(db, Message(b"2", routing_key="q"))
            assert caught.value.problem is OutboxProblem.LOCKED
            other.execute("ROLLBACK")
        db.execute("PRAGMA query_only = 1")
        with pytest.raises(OutboxUnusable, match="cannot be written"):
            add(db, Message(b"2", routing_key="q"))
        db.execute("PRAGMA query_only = 0")
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutboxUnusable, match="no space"):
            add(db, Message(bytes(100_000), routing_key="q"))

    assert SQLiteOutbox(good).status().waiting == 1


def test_an_error_that_is_not_the_outboxs_stays_as_it_is():
    """Such as a connection that was closed."""
    db = sqlite3.connect(":memory:")
    db.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        add(db, Message(b""))


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE warrener_outbox_meta SET schema_version = 9", OutboxProblem.NEWER_SCHEMA),
        ("DROP TABLE warrener_outbox_meta", OutboxProblem.MISSING),
        ("ALTER TABLE warrener_outbox RENAME COLUMN body TO text", OutboxProblem.NOT_OURS),
        ("SET default_transaction_read_only = on", OutboxProblem.READ_ONLY),
    ],
)
def test_add_raises_it_for_a_bad_table(outbox_dsn, statement, problem):
    """And nothing is stored; `add_async` is the same."""

    async def add_async():
        async with await psycopg.AsyncConnection.connect(outbox_dsn, autocommit=True) as db:
            await db.execute(statement)
            await warrener.outbox.add_async(db, Message(b"1", routing_key="q"))

    with psycopg.connect(outbox_dsn, autocommit=True) as db:
        db.execute(statement)
        with pytest.raises(OutboxUnusable) as caught:
            add(db, Message(b"1", routing_key="q"))
        assert caught.value.problem is problem
        assert db.execute("SELECT count(*) FROM warrener_outbox").fetchone() == (0,)
    if problem is OutboxProblem.READ_ONLY:
        with pytest.raises(OutboxUnusable, match="cannot be written"):
            anyio.run(add_async, backend="asyncio")


@pytest.mark.slow
def test_add_async_raises_it_for_a_newer_table(outbox_dsn):
    """As `add` does."""

    async def attempt():
        async with await psycopg.AsyncConnection.connect(outbox_dsn) as db:
            await warrener.outbox.add_async(db, Message(b"1", routing_key="q"))

    with psycopg.connect(outbox_dsn, autocommit=True) as db:
        db.execute("UPDATE warrener_outbox_meta SET schema_version = 9")
    with pytest.raises(OutboxUnusable, match="update warrener"):
        anyio.run(attempt, backend="asyncio")


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("prepare", [None, "UPDATE warrener_outbox_meta SET schema_version = 9"])
def test_each_command_says_it_of_a_postgresql_database(database_dsn, action, prepare, capsys):
    """Without the tables, and with newer ones."""
    if prepare is not None:
        PostgresOutbox(database_dsn).create()
        with psycopg.connect(database_dsn, autocommit=True) as db:
            db.execute(prepare)

    assert main(["outbox", action, database_dsn, *ACTIONS[action]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("warrener outbox: ")
    assert err.count("\n") == 1
    assert ("outbox init" if prepare is None else "update warrener") in err
