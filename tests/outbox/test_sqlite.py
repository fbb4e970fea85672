"""The outbox in a SQLite file: what is kept, and each bad day as one clear error that overwrites nothing."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.outbox.rows import LEASE, claim, insert
from warrener.errors import SettingsError
from warrener.outbox import OutboxFull, OutboxProblem, OutboxUnusable, SQLiteOutbox, Stored, add
from warrener.outbox import _sqlite_store as module
from warrener.outbox._rows import encode
from warrener.outbox._schema import APPLICATION_ID, VERSION
from warrener.outbox._sqlite_store import SQLiteStore
from warrener.outbox.records import Settlement, Work
from warrener.records import Message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tasks.db"


@pytest.fixture
def open_store(path):
    stores = []

    def make(**arguments):
        store = SQLiteStore(path, **{"max_rows": 1_000, "max_bytes": 1 << 20} | arguments)
        stores.append(store)
        store.open()
        return store

    yield make
    for store in stores:
        store.close()


def test_a_limit_sees_what_other_programs_stored(open_store, path):
    """Rows that were inserted with plain SQL count."""
    store = open_store(max_rows=2)
    insert(store, None)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox (routing_key, body) VALUES ('q', 'text')")
    db.close()

    assert isinstance(insert(store, None)[0], OutboxFull)


def test_a_row_of_nonsense_is_claimed_with_its_problem(open_store, path):
    """The relay sets it aside; nothing raises."""
    store = open_store()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox (routing_key, properties, body) VALUES ('q', '{', 'text')")
    db.close()

    (row,) = claim(store)
    assert row.message is None
    assert "properties" in row.problem


@pytest.mark.parametrize("stored_at", ["2026-11-26 20:42:08", b"x", 1e300, -5, 1764189728000])
def test_a_time_of_nonsense_is_claimed_with_its_problem(open_store, path, stored_at):
    """An instant as text would look like a row of 1970; nobody can say how old the row is, and the count does not try."""
    store = open_store()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox (routing_key, body, stored_at) VALUES ('q', 'text', ?)", (stored_at,))

    (row,) = claim(store)
    assert row.message is None
    assert "stored_at" in row.problem
    assert store.status().oldest_age is None
    (entry,) = store.entries(None, None, 10, bodies=False)
    assert entry.stored_at is None


# --- in the application's transaction -----------------------------------------------------------------------------


def test_add_commits_and_rolls_back_with_the_application(open_store, path):
    """A rolled-back row is nowhere; a committed one is there with the application's own row."""
    open_store()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE orders (id INTEGER)")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO orders VALUES (1)")
        stored = add(db, Message(b"one", routing_key="orders"), key="42")
    with closing(sqlite3.connect(path)) as db, pytest.raises(ZeroDivisionError), db:
        add(db, Message(b"two", routing_key="orders"))
        raise ZeroDivisionError
    db.close()

    (row,) = claim(open_store())
    assert isinstance(stored, Stored)
    assert (row.position, row.key, row.message.body) == (stored.position, "42", b"one")


def test_add_says_what_to_pass_for_django():
    """A connection of Django has no `execute`; its cursor has."""
    with pytest.raises(TypeError, match=r"DatabaseWrapper has no execute.*connection\.cursor"):
        add(type("DatabaseWrapper", (), {})(), Message(b""))


def test_add_without_the_table_names_the_command(tmp_path):
    """The error says how the table is made."""
    db = sqlite3.connect(tmp_path / "app.db")
    with pytest.raises(OutboxUnusable, match="warrener outbox init") as caught:
        add(db, Message(b""))
    db.close()

    assert caught.value.problem is OutboxProblem.MISSING


def test_the_table_joins_the_applications_database(path):
    """Its other tables, its application_id and its user_version stay as they were."""
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE orders (id INTEGER); INSERT INTO orders VALUES (7); PRAGMA user_version = 12;")
    SQLiteOutbox(path).status()

    assert db.execute("SELECT id FROM orders").fetchall() == [(7,)]
    assert db.execute("PRAGMA user_version").fetchone() == (12,)
    assert db.execute("PRAGMA application_id").fetchone() == (0,)
    db.close()


# --- bad days -----------------------------------------------------------------------------------------------------


def problem_of(path, **arguments):
    with pytest.raises(OutboxUnusable) as caught:
        SQLiteOutbox(path, **arguments).status()
    assert str(path) in str(caught.value)
    return caught.value.problem


def test_a_file_that_is_no_database_is_not_touched(path):
    """Another program's file is refused."""
    path.write_bytes(b"a diary, and nobody's outbox " * 500)
    before = path.read_bytes()

    assert problem_of(path) is OutboxProblem.NOT_OURS
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_database_of_another_program_is_not_touched(path):
    """One that says by its application_id that it is another program's."""
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE tracks (id INTEGER); PRAGMA application_id = 252006674;")
    db.close()
    before = path.read_bytes()

    assert problem_of(path) is OutboxProblem.NOT_OURS
    assert path.read_bytes() == before


def test_a_table_of_the_same_name_is_not_touched(path):
    """A `warrener_outbox` that is not ours is refused."""
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE warrener_outbox (id INTEGER)")
    db.close()

    assert problem_of(path) is OutboxProblem.NOT_OURS


def test_a_newer_schema_is_refused(path):
    """An older program does not write to tables that it does not know."""
    SQLiteOutbox(path).status()
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE warrener_outbox_meta SET schema_version = ?", (VERSION + 1,))
    db.close()

    assert problem_of(path) is OutboxProblem.NEWER_SCHEMA


def test_a_corrupt_file_is_refused(path, open_store):
    """The check at opening finds it, and the file stays as it is for a rescue."""
    store = open_store()
    insert(store, *[None] * 200, body=b"x" * 500)
    store.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :: 7] = b"\xff" * len(data[len(data) // 2 :: 7])
    path.write_bytes(data)

    assert problem_of(path) is OutboxProblem.CORRUPT
    assert path.read_bytes() == data


def test_a_full_disk_loses_nothing(open_store):
    """The message is refused; the stored ones stay, can be claimed and deleted."""
    store = open_store()
    insert(store, None)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutboxUnusable) as caught:
        insert(store, *[None] * 100, body=b"x" * 1000)

    assert caught.value.problem is OutboxProblem.FULL_DISK
    (row,) = claim(store)
    assert store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE).owned
    assert store.status().backlog == 0


def test_a_file_that_cannot_be_written_is_said_to_be_so(open_store):
    """As on a disk that is mounted read-only."""
    store = open_store()
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(OutboxUnusable) as caught:
        insert(store, None)

    assert caught.value.problem is OutboxProblem.READ_ONLY


@pytest.mark.parametrize("make", [True, False])
def test_a_missing_folder_is_said_to_be_missing(tmp_path, make):
    """SQLite would only say that it is unable to open the file; a look makes neither the folder nor the file."""
    folder = tmp_path / "nowhere"
    with pytest.raises(OutboxUnusable, match=f"the folder {folder} does not exist") as caught:
        SQLiteOutbox(folder / "tasks.db", make=make).status()

    assert caught.value.problem is OutboxProblem.MISSING
    assert not folder.exists()


def test_a_locked_file_is_waited_for_and_then_reported(open_store, path):
    """Longer than `busy_timeout` is an error that names it."""
    store = open_store(busy_timeout=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutboxUnusable, match=r"0\.05 s") as caught:
        insert(store, None)
    other.execute("ROLLBACK")
    other.close()

    assert caught.value.problem is OutboxProblem.LOCKED
    assert insert(store, None) == [1]


def test_a_file_on_a_network_is_refused(path, monkeypatch):
    """Where the mount table says so."""
    kinds = {line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    monkeypatch.setattr(module, "_NETWORK_FILE_SYSTEMS", kinds)

    assert problem_of(path) is OutboxProblem.NETWORK_FILE
    assert not path.exists()


@pytest.mark.parametrize("wrong", [{"path": ":memory:"}, {"synchronous": "OFF"}, {"poll_interval": 0}])
def test_arguments_that_cannot_be_meant_are_refused(wrong, path):
    """At once, as a `SettingsError`."""
    with pytest.raises(SettingsError):
        SQLiteOutbox(**{"path": path} | wrong)


# --- settings of the file -----------------------------------------------------------------------------------------


def test_the_file_is_set_up_as_promised(open_store):
    """WAL, synchronous FULL unless told otherwise, our application_id on a file of our own."""

    def pragma(store, name):
        return store._db.execute(f"PRAGMA {name}").fetchone()[0]

    store = open_store()
    assert (pragma(store, "journal_mode"), pragma(store, "synchronous")) == ("wal", 2)
    assert pragma(store, "application_id") == APPLICATION_ID
    assert pragma(open_store(synchronous="NORMAL"), "synchronous") == 1
    assert pragma(open_store(secure_delete=True), "secure_delete") == 1


def test_secure_delete_leaves_nothing_of_a_body(open_store, path):
    """After the confirm the bytes are in neither file, once the log has been taken over."""
    store = open_store(secure_delete=True)
    insert(store, None, body=b"personal data " * 20)
    (row,) = claim(store)
    store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    assert b"personal data" not in path.read_bytes()


def test_entries_by_id_and_state(path):
    """By position and by message id; a body is read only when it is asked for."""
    outbox = SQLiteOutbox(path)
    outbox.status()
    db = sqlite3.connect(path)
    with db:
        first = add(db, Message(b"one", routing_key="q"))
        second = add(db, Message(b"two", routing_key="q"))
    db.close()

    assert [entry.position for entry in outbox.entries(ids=[first.message_id, second.position])] == [1, 2]
    assert [entry.body for entry in outbox.entries(limit=1, bodies=False)] == [b""]
    assert outbox.entries("set_aside") == []
    assert outbox.drop([first.position]) == 1
    assert outbox.status().waiting == 1
    assert outbox.status().oldest_age < time.time()
    with pytest.raises(ValueError, match="state"):
        outbox.entries("gone")


def test_confirmed_rows_make_room_in_the_same_transaction(tmp_path):
    """A full outbox takes a new row together with the outcome that deletes an old one."""
    store = SQLiteStore(tmp_path / "tasks.db", max_rows=1, max_bytes=1 << 20)
    store.open()
    insert(store, None)
    (row,) = claim(store)
    gone = Settlement(confirmed=((row.position, row.claim),), claims={row.claim: ()})
    done = store.transact(Work(inserts=[encode(Message(b"", routing_key="q"))], settlement=gone), "relay", LEASE)

    assert done.stored == [row.position + 1]
    assert store.status().waiting == 1
    store.close()
