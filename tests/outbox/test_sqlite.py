"""The outbox in a SQLite file: what is kept, and each bad day as one clear error that overwrites nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warrener.errors import SettingsError
from warrener.outbox import OutboxFull, OutboxProblem, OutboxUnusable, SQLiteOutbox, Stored, add
from warrener.outbox import _sqlite_store as module
from warrener.outbox._owner import has_ended, this_process
from warrener.outbox._rows import encode
from warrener.outbox._schema import APPLICATION_ID, VERSION
from warrener.outbox._sqlite_store import SQLiteStore
from warrener.outbox.records import Again, SetAside, Settlement, Want, Work
from warrener.records import Message

WANT = Want(rows=100, bytes=1 << 20, per_key=10)
LEASE = 30.0


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


def insert(store, *keys, body=b"body"):
    done = store.transact(Work(inserts=[encode(Message(body, routing_key="q"), key) for key in keys]), "", 0.0)
    return list(done.stored)


def claim(store, token="relay", lease=LEASE):
    return store.transact(Work(want=WANT), token, lease).claimed.rows


def positions(rows):
    return [row.position for row in rows]


# --- keeping rows -------------------------------------------------------------------------------------------------


def test_rows_outlive_the_connection(open_store):
    """Another connection finds them, in their order, with every column."""
    first = open_store()
    message = Message(b"\x00\xff", exchange="x", routing_key="q", headers={"a": 1}, priority=3)
    first.transact(Work(inserts=[encode(message, "key")]), "", 0.0)
    first.close()

    (row,) = claim(open_store())
    assert (row.message, row.key, row.attempts, row.possible_duplicate) == (message, "key", 0, False)


def test_a_full_outbox_says_how_full(open_store):
    """`OutboxFull` carries the counts; rows of the same transaction that had a place are stored."""
    store = open_store(max_rows=2)
    first, second, refused = insert(store, None, None, None)

    assert (first, second) == (1, 2)
    assert isinstance(refused, OutboxFull)
    assert (refused.rows, refused.max_rows) == (2, 2)
    assert store.status().waiting == 2


def test_bytes_are_bounded_too(open_store):
    """The bodies of set-aside rows count as well."""
    store = open_store(max_bytes=10)
    insert(store, None, body=b"12345678")
    (row,) = claim(store)
    aside = SetAside(row.position, row.claim, 1, False, "Unroutable", "returned", holds=False)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={row.claim: ()})), "relay", LEASE)

    (refused,) = insert(store, None, body=b"12345678")
    assert isinstance(refused, OutboxFull)
    assert (refused.rows, refused.bytes) == (1, 8)


def test_a_limit_sees_what_other_programs_stored(open_store, path):
    """Rows that were inserted with plain SQL count."""
    store = open_store(max_rows=2)
    insert(store, None)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO warrener_outbox (routing_key, body) VALUES ('q', 'text')")
    db.close()

    assert isinstance(insert(store, None)[0], OutboxFull)


def test_a_position_is_never_given_twice(open_store):
    """A claim that lists a deleted row claims nothing that comes later."""
    store = open_store()
    insert(store, None)
    (row,) = claim(store)
    store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE)

    assert insert(store, None) == [2]
    assert store.last_position() == 2


# --- claims -------------------------------------------------------------------------------------------------------


def test_a_claimed_row_is_nobody_elses(open_store):
    """Neither for another relay, nor to drop."""
    store = open_store()
    insert(store, "a", None)

    assert positions(claim(store)) == [1, 2]
    assert positions(claim(open_store(), "other")) == []
    assert store.drop([1]) == 0
    assert [entry.state for entry in store.entries(None, None, 10, bodies=False)] == ["leased", "leased"]


def test_a_relay_whose_lease_ran_out_deletes_nothing(open_store):
    """Its rows are flagged and another relay's; the old token is told that it owns nothing."""
    store, other = open_store(), open_store()
    insert(store, None)
    (row,) = claim(store, "slow", lease=-1.0)
    (taken,) = claim(other, "other")
    done = store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "slow", LEASE)

    assert not done.owned
    assert (taken.position, taken.attempts, taken.possible_duplicate) == (1, 1, True)
    assert store.status().leased == 1


def test_a_late_confirm_deletes_a_row_that_is_still_owned(open_store):
    """A lease that ran out is prolonged, as long as no other relay has taken it over."""
    store = open_store()
    insert(store, None)
    (row,) = claim(store, lease=-1.0)
    done = store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE)

    assert done.owned
    assert store.status().backlog == 0


def test_rows_of_a_dead_process_need_not_wait_for_the_lease(open_store, path):
    """The process id and its start say that it has ended."""
    store = open_store()
    insert(store, None)
    script = (
        "from tests.outbox.test_sqlite import *\n"
        f"store = SQLiteStore({str(path)!r}, max_rows=9, max_bytes=9999); store.open()\n"
        "claim(store, 'dead')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    (row,) = claim(store)
    assert row.possible_duplicate


def test_a_living_process_is_not_taken_for_a_dead_one():
    """Nor is one of which nothing can be told."""
    assert not has_ended(this_process())
    assert not has_ended("somebody")
    assert not has_ended('{"pid": 1}')


def test_a_key_continues_behind_its_first_rows(open_store):
    """`unfinished` names a key with more rows than one claim takes, and the next claim begins with them."""
    store = open_store()
    insert(store, *["a"] * 4)
    want = Want(rows=100, bytes=1 << 20, per_key=2)
    claimed = store.transact(Work(want=want), "relay", LEASE).claimed
    (number,) = {row.claim for row in claimed.rows}
    settlement = Settlement(confirmed=((1, number), (2, number)), claims={number: ()})
    want = Want(rows=100, bytes=1 << 20, per_key=2, after=99, keys=("a",))
    again = store.transact(Work(settlement=settlement, want=want), "relay", LEASE).claimed

    assert (positions(claimed.rows), claimed.unfinished) == ([1, 2], {"a"})
    assert (positions(again.rows), again.unfinished) == ([3, 4], frozenset())


def test_what_an_attempt_taught_is_kept(open_store):
    """Attempts, nacks, the flag, the error, and the instant before which the row is not published."""
    store = open_store()
    insert(store, "a", "a")
    rows = claim(store)
    number = rows[0].claim
    again = Again(1, number, attempts=2, nacks=1, possible_duplicate=True, delay=60.0, error="full")
    store.transact(Work(settlement=Settlement(again=(again,), claims={number: ()})), "relay", LEASE)

    assert claim(store) == ()
    entry, _ = store.entries("waiting", None, 10, bodies=True)
    assert (entry.attempts, entry.possible_duplicate, entry.last_error) == (2, True, "full")
    assert entry.not_before is not None
    assert entry.not_before > entry.stored_at
    assert store.retry([1]) == 1
    assert [(row.position, row.nacks) for row in claim(store)] == [(1, 1), (2, 0)]


def test_a_row_that_was_set_aside_comes_back_to_its_place(open_store):
    """It holds up its key until it is retried or dropped; then its key goes on, in order."""
    store = open_store()
    insert(store, "a", "a", "b")
    number = claim(store)[0].claim
    aside = SetAside(1, number, 1, False, "Unroutable", "returned", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={number: ()})), "relay", LEASE)

    held = claim(store)
    assert positions(held) == [3]
    (entry,) = store.entries("set_aside", None, 10, bodies=True)
    assert (entry.reason, entry.last_error, entry.body) == ("Unroutable", "returned", b"body")
    assert store.retry([entry.message_id]) == 1
    assert positions(claim(store)) == [1, 2]


def test_a_set_aside_row_may_be_dropped(open_store):
    """The rows that it held up go on."""
    store = open_store()
    insert(store, "a", "a")
    number = claim(store)[0].claim
    aside = SetAside(1, number, 1, False, "Unroutable", "returned", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={number: ()})), "relay", LEASE)

    assert store.drop([1]) == 1
    assert positions(claim(store)) == [2]


def test_a_row_of_nonsense_is_claimed_with_its_problem(open_store, path):
    """The relay sets it aside; nothing raises."""
    store = open_store()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO warrener_outbox (routing_key, properties, body) VALUES ('q', '{', 'text')")
    db.close()

    (row,) = claim(store)
    assert row.message is None
    assert "properties" in row.problem


# --- in the application's transaction -----------------------------------------------------------------------------


def test_add_commits_and_rolls_back_with_the_application(open_store, path):
    """A rolled-back row is nowhere; a committed one is there with the application's own row."""
    open_store()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO orders VALUES (1)")
        stored = add(db, Message(b"one", routing_key="orders"), key="42")
    with pytest.raises(ZeroDivisionError), sqlite3.connect(path) as db:
        add(db, Message(b"two", routing_key="orders"))
        raise ZeroDivisionError
    db.close()

    (row,) = claim(open_store())
    assert isinstance(stored, Stored)
    assert (row.position, row.key, row.message.body) == (stored.position, "42", b"one")


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


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    """SQLite would only say that it is unable to open the file."""
    assert problem_of(tmp_path / "nowhere" / "tasks.db") is OutboxProblem.READ_ONLY


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
