"""The outbox in PostgreSQL: the order of commits, no bloat, and each bad day of the database."""

from __future__ import annotations

import itertools
import socket
import threading

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import errors as pg

from tests.outbox.rows import LEASE, claim, insert, positions
from warrener import Message, Queue, SettingsError, open_producer
from warrener.outbox import OutboxProblem, OutboxUnusable, PostgresOutbox, add, add_async
from warrener.outbox import _postgres_store as module
from warrener.outbox._postgres_connect import Connector
from warrener.outbox._postgres_rows import unusable
from warrener.outbox._postgres_store import PostgresStore
from warrener.outbox._rows import encode
from warrener.outbox._schema import VERSION
from warrener.outbox.records import Settlement, Want, Work
from warrener.testing import EmbeddedBroker

_numbers = itertools.count(1)


@pytest.fixture
def open_store(outbox_dsn):
    stores = []

    def make(*dsns, **arguments):
        store = PostgresStore(dsns or [outbox_dsn], **{"max_rows": 100_000, "max_bytes": 1 << 30} | arguments)
        stores.append(store)
        store.open()
        return store

    yield make
    for store in stores:
        store.close()


def task(number):
    return Message(b"%d" % number, routing_key="tasks")


# --- order --------------------------------------------------------------------------------------------------------


def test_a_keyed_row_waits_for_older_transactions(open_store, outbox_dsn):
    """Until they have ended nobody knows whether they hold an earlier row; rows without a key do not wait."""
    store = open_store()
    with psycopg.connect(outbox_dsn) as older, psycopg.connect(outbox_dsn) as younger:
        older.execute("SELECT pg_current_xact_id()")
        add(younger, task(1), key="a")
        add(younger, task(2))
        younger.commit()
        assert positions(claim(store)) == [2]
        older.commit()
    assert positions(claim(store)) == [1]


def test_a_row_that_waits_holds_up_the_later_ones_of_its_key(open_store, outbox_dsn):
    """A later row of an older transaction does not pass one that was committed before it was inserted."""
    store = open_store()
    with (
        psycopg.connect(outbox_dsn) as late,
        psycopg.connect(outbox_dsn) as bystander,
        psycopg.connect(outbox_dsn) as early,
    ):
        late.execute("SELECT pg_current_xact_id()")
        bystander.execute("SELECT pg_current_xact_id()")
        first = add(early, task(1), key="a")
        early.commit()
        second = add(late, task(2), key="a")
        late.commit()
        # Only the second row is older than every running transaction.
        assert claim(store) == ()
        bystander.commit()
    assert positions(claim(store)) == [first.position, second.position]


def test_skip_locked_alone_would_reorder(outbox_dsn, open_store):
    """With two writers and three relays it passes rows of a key that are not committed yet, or that another relay has locked."""
    relays = [open_store() for _ in range(3)]
    query = "SELECT position FROM warrener_outbox ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED"
    with (
        psycopg.connect(outbox_dsn) as slow,
        psycopg.connect(outbox_dsn) as quick,
        psycopg.connect(outbox_dsn) as one,
        psycopg.connect(outbox_dsn) as other,
    ):
        add(slow, task(1), key="a")
        add(quick, task(2), key="a")
        add(quick, task(3), key="a")
        quick.commit()
        assert [one.execute(query).fetchone(), other.execute(query).fetchone()] == [(2,), (3,)]
        one.rollback()
        other.rollback()

        assert [claim(relay, f"relay {number}") for number, relay in enumerate(relays)] == [(), (), ()]
        slow.commit()
    claims = [positions(claim(relay, f"relay {number}")) for number, relay in enumerate(relays)]
    assert claims == [[1, 2, 3], [], []]


# --- in the application's transaction -----------------------------------------------------------------------------


def test_add_commits_and_rolls_back_with_the_application(open_store, outbox_dsn):
    """With a connection or a cursor, whatever rows they make."""
    with psycopg.connect(outbox_dsn, row_factory=psycopg.rows.dict_row) as db:
        kept = add(db, task(1), key="42")
        add(db.cursor(row_factory=psycopg.rows.tuple_row), task(2))
    with pytest.raises(ZeroDivisionError), psycopg.connect(outbox_dsn) as db:
        add(db, task(3))
        raise ZeroDivisionError

    rows = claim(open_store())
    assert [(row.key, row.message.body) for row in rows] == [("42", b"1"), (None, b"2")]
    assert rows[0].position == kept.position


async def _add(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as db:
        return await add_async(db, task(1), key="42")


def test_add_async_does_the_same(open_store, outbox_dsn):
    """psycopg's asynchronous connections run on asyncio."""
    stored = anyio.run(_add, outbox_dsn, backend="asyncio")

    (row,) = claim(open_store())
    assert (row.position, row.key) == (stored.position, "42")


def test_plain_sql_is_enough(open_store, outbox_dsn):
    """The columns that have no default are one."""
    with psycopg.connect(outbox_dsn) as db:
        db.execute("INSERT INTO warrener_outbox (routing_key, body) VALUES ('tasks', convert_to('größe', 'UTF8'))")

    (row,) = claim(open_store())
    assert row.message.body == "größe".encode()
    assert len(row.message.message_id) == 36


def test_add_without_the_table_names_the_command(database_dsn):
    """As for SQLite."""
    with psycopg.connect(database_dsn) as db, pytest.raises(OutboxUnusable, match="warrener outbox init"):
        add(db, task(1))


# --- bad days -----------------------------------------------------------------------------------------------------


def problem_of(outbox):
    with pytest.raises(OutboxUnusable) as caught:
        outbox.status()
    return caught.value


def test_a_database_without_the_tables_names_the_command(database_dsn):
    """And `create` makes them, also when they are there."""
    outbox = PostgresOutbox(database_dsn)
    error = problem_of(outbox)
    outbox.create()
    outbox.create()

    assert error.problem is OutboxProblem.MISSING
    assert "warrener outbox init" in str(error)
    assert outbox.status().backlog == 0


def test_a_newer_schema_is_refused(outbox_dsn):
    """An older program does not write to tables that it does not know."""
    with psycopg.connect(outbox_dsn) as db:
        db.execute("UPDATE warrener_outbox_meta SET schema_version = %s", (VERSION + 1,))

    assert problem_of(PostgresOutbox(outbox_dsn)).problem is OutboxProblem.NEWER_SCHEMA


def test_a_server_that_is_not_there_is_said_to_be_so(outbox_dsn, postgresql):
    """The error does not show the connection string, which may hold a password."""
    postgresql.stop()
    error = problem_of(PostgresOutbox(outbox_dsn.replace("warrener@", "warrener:secret@"), connect_timeout=2))

    assert error.problem is OutboxProblem.UNREACHABLE
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://warrener:secr%et@127.0.0.1/x",
        "postgresql://warrener:an@secret@127.0.0.1/x",
        "postgresql://warrener:secret/1@127.0.0.1/x",
        "host=127.0.0.1 password=a secret",
    ],
)
def test_a_malformed_connection_string_is_not_shown(dsn):
    """libpq's own message quotes the part that it cannot read: the password."""
    error = problem_of(PostgresOutbox(dsn, connect_timeout=2))

    assert "connection string cannot be read" in str(error)
    assert "secr" not in str(error)


def test_the_cause_is_shown_and_not_the_hint_below_it():
    """libpq adds an indented question to the cause."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        port = silent.getsockname()[1]
        error = problem_of(PostgresOutbox(f"postgresql://warrener@127.0.0.1:{port}/x", connect_timeout=2))

    assert "Connection refused" in str(error)
    assert "\\t" not in str(error)


def test_a_relay_that_is_paused_in_a_transaction_does_not_stop_the_others(open_store, monkeypatch):
    """The server ends its session, and with it the locks; the paused relay has written nothing."""
    monkeypatch.setattr(module, "_PAUSE", 200)
    paused, other = open_store(), open_store()
    insert(other, "a")
    want = Want(rows=10, bytes=1 << 20, per_key=10)
    with pytest.raises(OutboxUnusable, match="paused"), paused._errors(), paused._db.transaction():
        assert positions(paused._work(paused._db, Work(want=want), "paused", LEASE)[0].claimed.rows) == [1]
        assert positions(claim(other, "other")) == [1]

    assert positions(claim(paused, "paused")) == []


def test_a_disk_that_is_full_refuses_and_keeps(open_store, outbox_dsn):
    """As the server reports it: the message is refused, stored ones are still claimed and deleted."""
    store = open_store()
    insert(store, None)
    with psycopg.connect(outbox_dsn) as db:
        raising = "BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END"
        db.execute(f"CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $${raising}$$")
        db.execute("CREATE TRIGGER no_space BEFORE INSERT ON warrener_outbox FOR EACH ROW EXECUTE FUNCTION no_space()")
    with pytest.raises(OutboxUnusable, match="free some space") as caught:
        insert(store, None)

    assert caught.value.problem is OutboxProblem.FULL_DISK
    assert confirm_all(store).owned
    assert store.status().backlog == 0


def test_a_database_that_cannot_be_written_is_said_to_be_so(open_store, outbox_dsn):
    """Such as a standby that is the only one of the list."""
    store = open_store(outbox_dsn + "%20-c%20default_transaction_read_only%3Don")
    with pytest.raises(OutboxUnusable, match="cannot be written") as caught:
        insert(store, None)

    assert caught.value.problem is OutboxProblem.READ_ONLY


def test_nonsense_is_claimed_with_its_problem(open_store, outbox_dsn):
    """The relay sets the row aside; the other row goes on."""
    store = open_store()
    with psycopg.connect(outbox_dsn) as db:
        db.execute(
            "INSERT INTO warrener_outbox (routing_key, properties, body) VALUES ('q', '{', 'x'), ('q', '{}', 'y')"
        )

    nonsense, sound = claim(store)
    assert nonsense.message is None
    assert "properties" in nonsense.problem
    assert sound.message.body == b"y"


@pytest.mark.parametrize("stored_at", ["infinity", "-infinity", "1066-10-14", "12026-01-01"])
def test_a_time_of_nonsense_is_claimed_with_its_problem(open_store, outbox_dsn, stored_at):
    """It ends neither the count nor the list, which Python's datetime could not hold."""
    store = open_store()
    with psycopg.connect(outbox_dsn) as db:
        db.execute(
            "INSERT INTO warrener_outbox (routing_key, body, stored_at, not_before) VALUES ('q', 'x', %s, '-infinity')",
            (stored_at,),
        )

    (row,) = claim(store)
    assert row.message is None
    assert "stored_at" in row.problem
    assert store.status().oldest_age is None
    (entry,) = store.entries(None, None, 10, bodies=False)
    assert entry.not_before is None
    assert entry.stored_at is None


@pytest.mark.anyio
async def test_a_failover_is_followed(postgresql):
    """The first database refuses connections while the relay runs: it goes on with the next one of the list."""
    first, second = f"first_{next(_numbers)}", f"second_{next(_numbers)}"

    def databases():
        dsns = [postgresql.create_database(name) for name in (first, second)]
        for dsn in dsns:
            PostgresOutbox(dsn).create()
        return dsns

    def end_the_first():
        with psycopg.connect(postgresql.dsn, autocommit=True) as db:
            db.execute(f"ALTER DATABASE {first} ALLOW_CONNECTIONS false")
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (first,))

    dsns = await anyio.to_thread.run_sync(databases)
    async with EmbeddedBroker() as broker, relaying(broker, dsns) as producer:
        await producer.enqueue(b"1", routing_key="tasks")
        await producer.wait_flushed(30)
        await anyio.to_thread.run_sync(end_the_first)
        while True:
            try:
                await producer.enqueue(b"2", routing_key="tasks")
            except OutboxUnusable:
                await anyio.sleep(0.05)
            else:
                break
        await producer.wait_flushed(30)

        assert broker.messages("tasks") == [b"1", b"2"]
        assert PostgresOutbox(dsns[1]).status().backlog == 0


def test_the_next_database_of_the_list_is_used(open_store, outbox_dsn, private_postgresql):
    """One that does not answer, and one that is read-only, are passed over."""
    read_only = private_postgresql.create_database("read_only")
    with psycopg.connect(read_only, autocommit=True) as db:
        db.execute("ALTER DATABASE read_only SET default_transaction_read_only = on")
    store = open_store("postgresql://warrener@127.0.0.1:1/postgres", read_only, outbox_dsn, connect_timeout=2)

    assert insert(store, None) == [1]


def test_a_missing_permission_is_advice():
    """The text names who can help, and with which statement."""
    text = str(unusable(pg.InsufficientPrivilege("permission denied for table warrener_outbox")))
    assert "permission denied for table warrener_outbox" in text
    assert "the owner of the tables can give it with GRANT (SELECT, INSERT, UPDATE and DELETE on each table" in text


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (pg.DiskFull("no space left on device"), OutboxProblem.FULL_DISK),
        (pg.ReadOnlySqlTransaction("cannot execute INSERT"), OutboxProblem.READ_ONLY),
        (pg.AdminShutdown("terminating connection"), OutboxProblem.UNREACHABLE),
        (pg.DeadlockDetected("deadlock detected"), OutboxProblem.LOCKED),
        (pg.InsufficientPrivilege("permission denied"), OutboxProblem.FAILED),
        (psycopg.OperationalError("server closed the connection"), OutboxProblem.UNREACHABLE),
    ],
)
def test_each_error_has_one_meaning(error, problem):
    """And its text is quoted."""
    found = unusable(error)

    assert found.problem is problem
    assert str(error) in str(found)


def test_a_commit_whose_answer_was_lost_is_found_to_have_happened(open_store, monkeypatch):
    """The server is asked for the transaction; the row is stored once and the caller is told so."""
    store = open_store()
    db = store._db
    exit_transaction = psycopg.Transaction.__exit__

    def cut(transaction, *error):
        result = exit_transaction(transaction, *error)
        if transaction.connection is db and error == (None, None, None):
            store.interrupt()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return result

    monkeypatch.setattr(psycopg.Transaction, "__exit__", cut)
    assert insert(store, None) == [1]
    assert store.status().waiting == 1


def test_a_commit_that_did_not_happen_is_an_error(open_store, monkeypatch):
    """The connection breaks before COMMIT: nothing is stored, and the caller is told so."""
    store = open_store()
    db = store._db
    exit_transaction = psycopg.Transaction.__exit__

    def cut(transaction, *error):
        if transaction.connection is db:
            store.interrupt()
        return exit_transaction(transaction, *error)

    monkeypatch.setattr(psycopg.Transaction, "__exit__", cut)
    with pytest.raises(OutboxUnusable, match="nothing was written"):
        insert(store, None)
    assert store.status().waiting == 0


# --- no bloat -----------------------------------------------------------------------------------------------------


def size_of(dsn):
    with psycopg.connect(dsn) as db:
        query = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('warrener_outbox') WHERE isleaf"
        return db.execute(query).fetchone()[0]


def confirm_all(store):
    """Claim all rows and delete them as confirmed, in two transactions; return the second one's answer."""
    rows = claim(store)
    confirmed = tuple((row.position, row.claim) for row in rows)
    return store.transact(Work(settlement=Settlement(confirmed, claims={rows[0].claim: ()})), "relay", LEASE)


def slot_of(dsn):
    with psycopg.connect(dsn) as db:
        return db.execute("SELECT pg_sequence_last_value('warrener_outbox_slot')").fetchone()[0]


@pytest.mark.parametrize("reachable", [True, False])
def test_a_rotation_that_fails_leaves_the_commit_as_it_is(open_store, outbox_dsn, monkeypatch, reachable):
    """The connection breaks between the commit and the rotation: the deletes are done, and are not called failed."""
    monkeypatch.setattr(module, "_ROTATE_AFTER", 1)
    store = open_store()
    insert(store, None)
    rotate, connector = store._rotate, store._connector

    def cut_off():
        store.interrupt()
        if not reachable:
            store._drop()
            store._connector = Connector(["postgresql://warrener@127.0.0.1:1/postgres"], 2.0)
        rotate()

    store._rotate = cut_off
    assert confirm_all(store).owned
    store._connector = connector
    assert store.status().backlog == 0
    assert slot_of(outbox_dsn) == 0

    del store._rotate
    insert(store, None)
    confirm_all(store)
    assert slot_of(outbox_dsn) != 0


def test_space_comes_back_while_an_old_snapshot_is_held(open_store, outbox_dsn, monkeypatch):
    """Ten times as many rows as fit into one rotation leave the tables as small as one."""
    monkeypatch.setattr(module, "_ROTATE_AFTER", 200)
    store = open_store()
    sizes = []
    with psycopg.connect(outbox_dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1 FROM warrener_outbox_meta").fetchall()
        for _ in range(20):
            insert(store, *[None] * 100, body=b"x" * 1000)
            rows = claim(store)
            settlement = Settlement(
                confirmed=tuple((row.position, row.claim) for row in rows), claims={rows[0].claim: ()}
            )
            store.transact(Work(settlement=settlement), "relay", LEASE)
            sizes.append(size_of(outbox_dsn))
        dead = reader.execute("SELECT count(*) FROM warrener_outbox").fetchone()

    assert max(sizes[10:]) <= max(sizes[:10])
    assert dead == (0,)


def test_a_partition_with_an_open_transaction_is_not_emptied(open_store, outbox_dsn, monkeypatch):
    """A row that is not committed yet is not lost by the truncation."""
    monkeypatch.setattr(module, "_ROTATE_AFTER", 1)
    store = open_store()
    with psycopg.connect(outbox_dsn) as writer:
        add(writer, task(1))
        for _ in range(6):
            insert(store, None)
            (row,) = claim(store)
            settlement = Settlement(confirmed=((row.position, row.claim),), claims={row.claim: ()})
            store.transact(Work(settlement=settlement), "relay", LEASE)
        writer.commit()

    (row,) = claim(store)
    assert row.message.body == b"1"


# --- the relay ----------------------------------------------------------------------------------------------------


def relaying(broker, dsn, **arguments):
    outbox = PostgresOutbox(dsn, **{"poll_interval": 0.1} | arguments)
    return open_producer(broker.url, topology=(Queue("tasks"),), outbox=outbox)


@pytest.mark.anyio
async def test_what_is_stored_is_published(outbox_dsn):
    """By `enqueue`, and by another session, whose NOTIFY wakes the relay long before the poll."""

    def by_another_session():
        with psycopg.connect(outbox_dsn) as db:
            add(db, task(2))

    async with EmbeddedBroker() as broker, relaying(broker, outbox_dsn, poll_interval=1000.0) as producer:
        await producer.enqueue(b"1", routing_key="tasks")
        await producer.wait_connected()
        await anyio.to_thread.run_sync(by_another_session)
        while len(broker.messages("tasks")) < 2:
            await anyio.sleep(0.01)

        assert sorted(broker.messages("tasks")) == [b"1", b"2"]


@pytest.mark.anyio
async def test_what_this_session_stores_is_a_hint_only_with_a_key(open_store):
    """The relay knows it already; a row with a key may have to be looked for again. Rows of others are always a hint."""
    ours, others = open_store(), open_store()
    hints = []

    async def listen():
        while True:
            await ours.wait_hint()
            hints.append("hint")
            heard.set()

    def store(into, *keys):
        return anyio.to_thread.run_sync(insert, into, *keys)

    async with anyio.create_task_group() as tasks:
        heard = anyio.Event()
        tasks.start_soon(listen)
        await heard.wait()  # it listens
        for _ in range(3):
            await store(ours, None)
        for session, keys in ((others, [None]), (ours, ["a"])):
            heard = anyio.Event()
            await store(session, *keys)
            await heard.wait()
        tasks.cancel_scope.cancel()

    assert len(hints) == 3


@pytest.mark.anyio
async def test_a_restart_of_the_database_is_outlived(outbox_dsn, postgresql):
    """While it is away `enqueue` says so; afterwards everything that was stored is published, in order."""
    stored = []
    async with EmbeddedBroker() as broker, relaying(broker, outbox_dsn) as producer:
        stored.append((await producer.enqueue(b"1", routing_key="tasks", key="a")).position)
        await anyio.to_thread.run_sync(postgresql.kill)
        with pytest.raises(OutboxUnusable) as caught:
            await producer.enqueue(b"2", routing_key="tasks", key="a")
        await anyio.to_thread.run_sync(postgresql.start)
        while True:
            try:
                await producer.enqueue(b"3", routing_key="tasks", key="a")
            except OutboxUnusable:
                await anyio.sleep(0.05)
            else:
                break
        await producer.wait_flushed(30)

        assert caught.value.problem is OutboxProblem.UNREACHABLE
        assert list(dict.fromkeys(broker.messages("tasks"))) == [b"1", b"3"]
        assert producer.status().outbox.last_error is None


@pytest.mark.anyio
async def test_a_frozen_database_is_given_up(outbox_dsn, postgresql, monkeypatch):
    """A call that does not return is broken off; when the server thaws, the relay goes on."""
    monkeypatch.setattr("warrener.outbox._store_thread._STORE_TIMEOUT", 1.0)
    monkeypatch.setattr(module, "_RESOLVE", 0.1)
    async with EmbeddedBroker() as broker, relaying(broker, outbox_dsn, connect_timeout=2) as producer:
        await producer.enqueue(b"1", routing_key="tasks")
        await producer.wait_flushed(30)
        postgresql.freeze()
        with pytest.raises(OutboxUnusable):
            await producer.enqueue(b"2", routing_key="tasks")
        postgresql.thaw()
        while producer.status().outbox.last_error is not None:
            await anyio.sleep(0.05)
        await producer.enqueue(b"3", routing_key="tasks")
        await producer.wait_flushed(30)

        assert broker.messages("tasks")[-1] == b"3"


@pytest.mark.anyio
async def test_a_frozen_database_does_not_hold_up_the_end(outbox_dsn, postgresql, monkeypatch):
    """The producer closes, and the message stays where it was stored."""
    monkeypatch.setattr("warrener.outbox._store_thread._STORE_TIMEOUT", 0.5)
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_dsn, connect_timeout=2) as producer:
            await producer.enqueue(b"1", routing_key="tasks")
            postgresql.freeze()
    postgresql.thaw()

    assert PostgresOutbox(outbox_dsn).status().backlog == 1


def test_a_connection_that_hangs_before_it_is_ready_is_broken(outbox_dsn):
    """As when the server freezes between the login and the first answer."""
    store = PostgresStore([outbox_dsn], max_rows=1, max_bytes=1)

    def hang(db):
        threading.Timer(0.1, store.interrupt).start()
        db.execute("SELECT pg_sleep(60)")

    with pytest.raises(OutboxUnusable) as caught, store._connector.made() as db:
        hang(db)
    assert caught.value.problem is OutboxProblem.UNREACHABLE
    assert db.closed


@pytest.mark.anyio
async def test_a_producer_starts_while_the_database_is_away(outbox_dsn, postgresql):
    """As it does while the broker is away."""
    await anyio.to_thread.run_sync(postgresql.stop)
    async with EmbeddedBroker() as broker, relaying(broker, outbox_dsn) as producer:
        assert "does not answer" in str(producer.status().outbox.last_error) or "reached" in str(
            producer.status().outbox.last_error
        )
        await anyio.to_thread.run_sync(postgresql.start)
        while producer.status().outbox.last_error is not None:
            await anyio.sleep(0.05)
        await producer.enqueue(b"1", routing_key="tasks")
        await producer.wait_flushed(30)


@pytest.mark.parametrize("wrong", ["", []])
def test_a_connection_string_is_needed(wrong):
    """At once, as a `SettingsError`."""
    with pytest.raises(SettingsError, match="connection string"):
        PostgresOutbox(wrong)


def test_rows_are_stored_in_the_order_given(open_store):
    """The positions of one call go up as its rows do."""
    store = open_store()
    rows = [encode(task(number), "a") for number in range(500)]
    stored = store.transact(Work(inserts=rows), "", 0.0).stored

    assert list(stored) == sorted(stored)
    want = Want(rows=500, bytes=1 << 20, per_key=500)
    claimed = store.transact(Work(want=want), "relay", LEASE).claimed.rows
    assert [row.message.body for row in claimed[:3]] == [b"0", b"1", b"2"]


def test_rows_that_another_program_gave_one_position_are_rows_of_their_own(open_store, outbox_dsn):
    """No index of a partitioned table can forbid them. A confirm of one would delete all: so the others get new positions."""
    store = open_store()
    with psycopg.connect(outbox_dsn) as db:
        for body in ("1", "2", "3"):
            db.execute(
                "INSERT INTO warrener_outbox (position, routing_key, body) VALUES (7, 'q', %s)", (body.encode(),)
            )

    first, *others = claim(store)
    assert (first.position, others) == (7, [])
    confirmed = Settlement(confirmed=((7, first.claim),), claims={first.claim: ()})
    store.transact(Work(settlement=confirmed), "relay", LEASE)
    rest = claim(store)
    assert len({row.position for row in rest}) == 2
    assert {first.message.body, *(row.message.body for row in rest)} == {b"1", b"2", b"3"}
