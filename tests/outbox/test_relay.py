"""The relay with a broker, on every backend: what is stored is published, whatever happens to the connection."""

from __future__ import annotations

import inspect
import random
import sqlite3
import threading
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from tests.outbox.rows import claim, insert
from warrener import Backoff, Message, Producer, ProducerClosed, Queue, Unreachable, open_producer
from warrener.outbox import OutboxFull, OutboxNotFlushed, OutboxProblem, OutboxUnusable, SQLiteOutbox, Stored, add
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.anyio

QUEUES = (Queue("tasks"), Queue("small", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}))
SOON = Backoff(initial=0.05, cap=0.05, min_gap=0.05, attempts=None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tasks.db"


@asynccontextmanager
async def relaying(broker, outbox, **settings):
    """A producer with the outbox beside it."""
    settings = {"topology": QUEUES, "backoff": SOON, "breaker": None} | settings
    async with open_producer(broker.url, outbox=outbox, **settings) as producer:
        yield producer._relay


def outbox_at(path, **arguments):
    return SQLiteOutbox(path, **{"poll_interval": 0.02} | arguments)


def task(number, routing_key="tasks"):
    return Message(b"%d" % number, routing_key=routing_key)


async def test_what_is_stored_is_published(path):
    """`enqueue` returns the place of the row; afterwards the row is gone and the message is in its queue."""
    async with EmbeddedBroker() as broker, relaying(broker, outbox_at(path)) as relay:
        message = task(1)
        stored = await relay.enqueue(message, key="user-42")
        await relay.wait_flushed(10)

        assert (stored.message_id, stored.position) == (message.message_id, 1)
        assert broker.messages("tasks") == [b"1"]
        status = relay.status()
        assert (status.backlog, status.set_aside, status.confirmed, status.possible_duplicates) == (0, 0, 1, 0)
        assert status.last_confirm is not None


async def test_an_outage_is_outlived(path):
    """Messages are accepted while there is no broker, and go out in order when there is one."""
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path)) as relay:
            for number in range(20):
                await relay.enqueue(task(number), key="one")
            with pytest.raises(
                OutboxNotFlushed, match=r"still holds \d+ waiting rows, because there is no connection to the broker"
            ):
                await relay.wait_flushed(0.05)
            broker.restart()
            await relay.wait_flushed(10)

            assert broker.messages("tasks") == [b"%d" % number for number in range(20)]


async def test_rows_outlive_the_process(path):
    """The next producer publishes what the last one left."""
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path)) as relay:
            await relay.enqueue(task(1))
        broker.restart()
        async with relaying(broker, outbox_at(path)) as relay:
            await relay.wait_flushed(10)

        assert broker.messages("tasks") == [b"1"]


async def test_what_another_program_commits_is_found(path):
    """A plain insert in a transaction of its own; a rolled-back one is never published."""
    outbox = outbox_at(path)
    outbox.status()
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        db = sqlite3.connect(path)
        with db:
            add(db, task(1))
        add(db, task(2))
        db.rollback()
        db.close()
        await relay.wait_flushed(10)

        assert broker.messages("tasks") == [b"1"]


NONSENSE = (
    {"message_id": b"\xff"}, {"message_id": ""}, {"key": b"\xff"}, {"exchange": b"\xff"}, {"exchange": "x" * 300},
    {"routing_key": b"tasks"}, {"properties": "{"}, {"properties": b"\xff"},
    {"properties": '{"expiration": -1}'}, {"properties": '{"headers": {"x": {"!table": 5}}}'}, {"stored_at": "yesterday"},
    {"stored_at": 1e300}, {"attempts": "many"}, {"attempts": -3}, {"nacks": b"\x00"}, {"possible_duplicate": "perhaps"},
    {"not_before": "tomorrow"}, {"last_error": b"\xff"}, {"body": 7},
)  # fmt: skip


@pytest.mark.parametrize("columns", NONSENSE, ids=lambda columns: next(iter(columns)))
async def test_nonsense_in_any_column_is_published_or_set_aside(path, columns):
    """A row that another program inserted wrongly stops neither the relay, nor the other rows, nor a person who looks at it."""
    outbox = outbox_at(path)
    outbox.create()
    row = {"routing_key": "tasks", "body": b"1"} | columns
    with sqlite3.connect(path) as db:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        db.execute(f"INSERT INTO warrener_outbox ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
        add(db, task(2))
    db.close()
    assert len(outbox.entries()) == 2
    assert outbox.status().oldest_age is not None
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        await relay.wait_flushed(10)
        entries = await anyio.to_thread.run_sync(outbox.entries)

        assert len(entries) + len(broker.messages("tasks")) == 2
        assert b"2" in broker.messages("tasks")
        assert all((entry.state, entry.reason) == ("set_aside", "InvalidRow") for entry in entries)


async def test_a_returned_row_is_set_aside_and_loud(path, caplog):
    """Its key waits for a person and the log says so; other keys go on; a retry keeps the order."""
    outbox = outbox_at(path)
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        await relay.enqueue(task(1, "missing"), key="a")
        await relay.enqueue(task(2), key="a")
        await relay.enqueue(task(3), key="b")
        with pytest.raises(
            OutboxNotFlushed, match="1 waiting row, because later rows of the same key wait for 1 row that is set aside"
        ):
            await relay.wait_flushed(0.3)
        (entry,) = await anyio.to_thread.run_sync(outbox.entries, "set_aside")
        assert (entry.position, entry.reason, entry.attempts) == (1, "Unroutable", 1)
        assert entry.last_error.startswith("the broker returned it: ")
        assert broker.messages("tasks") == [b"3"]
        assert "row 1 (exchange '', routing key 'missing') was set aside (Unroutable)" in caplog.text

        broker.declare_queue("missing")
        assert await anyio.to_thread.run_sync(outbox.retry, [entry.position]) == 1
        await relay.wait_flushed(10)
        assert broker.messages("missing") == [b"1"]
        assert broker.messages("tasks") == [b"3", b"2"]


async def test_nacks_beyond_the_attempts_set_a_row_aside(path):
    """A queue that refuses gets as many attempts as the outbox allows."""
    async with EmbeddedBroker() as broker, relaying(broker, outbox_at(path, attempts=1)) as relay:
        await relay.enqueue(task(1, "small"))
        await relay.wait_flushed(10)
        await relay.enqueue(task(2, "small"))
        await relay.wait_flushed(10)

        assert relay.status().set_aside == 1
        assert broker.messages("small") == [b"1"]


async def test_a_lost_confirm_is_sent_again_and_flagged(path):
    """A relay that ends without the confirm leaves the row; the copy carries the header and the same id."""
    async with EmbeddedBroker(sync_interval=1e6, rng=random.Random(1)) as broker:
        with anyio.CancelScope() as life:
            async with relaying(broker, outbox_at(path)) as relay:
                stored = await relay.enqueue(task(1))
                while not broker.log:
                    await anyio.sleep(0.01)
                life.cancel()
        async with relaying(broker, outbox_at(path)) as relay:
            while relay.status().confirmed == 0:
                broker.sync()
                await anyio.sleep(0.01)
            assert relay.status().possible_duplicates == 1

        first, copy = broker.log
        assert first.message_id == copy.message_id == stored.message_id
        assert broker.messages("tasks") == [b"1", b"1"]


async def test_a_second_attempt_is_said(path, caplog):
    """Of a row that this relay did not get confirmed, and of one that another relay left behind."""
    caplog.set_level("INFO", "warrener.outbox")
    store = SQLiteOutbox(path)._make_store()
    store.open()
    insert(store, None)
    claim(store, "dead", lease=0.0)
    store.close()
    async with EmbeddedBroker(sync_interval=1e6, rng=random.Random(1)) as broker:
        broker.declare_queue("q")
        async with relaying(broker, outbox_at(path, publish_timeout=0.05)) as relay:
            while "row 1 is published again" not in caplog.text:
                await anyio.sleep(0.01)
            while relay.status().confirmed == 0:
                broker.sync()
                await anyio.sleep(0.01)

    lines = [line.partition(": ")[2] for line in caplog.messages if "again" in line]
    assert lines[0].startswith("another relay ended before the outcome of 1 of its rows was known")
    assert lines[1].startswith("row 1 is published again, with the header x-warrener-possible-duplicate: ")


async def test_a_claim_whose_answer_was_lost_does_not_hold_its_rows(path):
    """The claim was committed and the connection broke before the relay heard of it: its rows are claimed again."""
    async with EmbeddedBroker() as broker, relaying(broker, outbox_at(path)) as relay:
        transact, lost = relay._store.transact, []

        def losing(work, *arguments):
            done = transact(work, *arguments)
            if done.claimed.rows and not lost:
                lost.extend(done.claimed.rows)
                raise OutboxUnusable(OutboxProblem.UNREACHABLE, "the connection broke")
            return done

        relay._store.transact = losing
        with suppress(OutboxUnusable):  # its own commit may be the one whose answer is lost
            await relay.enqueue(task(1), key="a")
        while not lost:
            await anyio.sleep(0.01)
        await relay.enqueue(task(2), key="a")
        await relay.wait_flushed(10)

        assert broker.messages("tasks") == [b"1", b"2"]
        assert relay.status().possible_duplicates == 0


async def test_a_full_outbox_refuses_and_keeps(path):
    """`OutboxFull` reaches the caller; what was stored is published."""
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path, max_rows=1)) as relay:
            await relay.enqueue(task(1))
            with pytest.raises(OutboxFull, match="1 of at most 1 rows"):
                await relay.enqueue(task(2))
            broker.restart()
            await relay.wait_flushed(10)

        assert broker.messages("tasks") == [b"1"]


async def test_calls_that_wait_together_share_a_commit(path):
    """A thousand tasks that enqueue at once cost a few transactions."""
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path)) as relay:
            transact, commits = relay._store.transact, []

            def counting(work, *arguments):
                commits.append(len(work.inserts))
                return transact(work, *arguments)

            relay._store.transact = counting
            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    tasks.start_soon(relay.enqueue, task(number))

            assert sum(commits) == 1000
            assert len([size for size in commits if size]) <= 20


async def test_new_rows_are_claimed_in_the_transaction_that_stores_them(path):
    """Then nothing is read: `enqueue` while the broker is there costs two transactions, its own and that of the delete."""
    outbox = outbox_at(path, poll_interval=60.0)
    works = []
    make = outbox._make_store

    def recorded():
        store = make()
        transact = store.transact

        def noting(work, *arguments):
            works.append(work)
            return transact(work, *arguments)

        store.transact = noting
        return store

    outbox._make_store = recorded
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        await relay._producer.wait_connected()
        await relay.wait_flushed(10)  # the first claim, which finds nothing
        works.clear()
        message = Message(b"1", routing_key="tasks", headers={"of": "the call"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.enqueue, message)
            await anyio.lowlevel.checkpoint()
            message.headers["of"] = "later"
            tasks.start_soon(relay.enqueue, task(2))
        await relay.wait_flushed(10)

        assert sorted(broker.messages("tasks")) == [b"1", b"2"]
        assert all(work.take for work in works if work.inserts)
        assert not any(work.want for work in works)
        assert sum(len(work.settlement.confirmed) for work in works) == 2
        assert relay.status().confirmed == 2


async def test_new_rows_do_not_pass_those_that_wait(path):
    """While a backlog is there, new rows go their way through a claim as all others."""
    outbox = outbox_at(path)
    with sqlite3.connect(path) as db:
        outbox.create()
        for number in range(5000):
            add(db, task(number))
    db.close()
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        for number in range(5000, 5005):
            await relay.enqueue(task(number))
        await relay.wait_flushed(20)

        assert {int(body) for body in broker.messages("tasks")} == {*range(5005)}


async def test_cancelled_before_the_row_is_on_its_way_nothing_is_stored(path):
    """The call raises the cancellation."""
    outbox = outbox_at(path)
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox) as relay:
            with anyio.move_on_after(0) as scope:
                await relay.enqueue(task(1))
            assert scope.cancelled_caught
            assert await anyio.to_thread.run_sync(outbox.entries) == []


async def test_cancelled_on_the_way_to_the_disk_the_call_returns_stored(path):
    """The message is stored, so the caller is told, and the cancellation comes at the next checkpoint."""
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path)) as relay, anyio.create_task_group() as tasks:
            transact, results = relay._store.transact, []

            def cancelling(work, *arguments):
                if work.inserts:
                    anyio.from_thread.run_sync(tasks.cancel_scope.cancel)
                return transact(work, *arguments)

            async def caller():
                results.append(await relay.enqueue(task(1)))
                await anyio.sleep(60)

            relay._store.transact = cancelling
            tasks.start_soon(caller)
        (stored,) = results
        assert stored.position == 1


async def test_before_and_after_its_life_the_producer_refuses(path):
    """An error in words, not a call that never returns."""
    async with EmbeddedBroker() as broker:
        producer = Producer(broker.url, outbox=outbox_at(path))
        with pytest.raises(RuntimeError, match="not running"):
            await producer.enqueue(b"1", routing_key="tasks")
        async with producer:
            pass
        with pytest.raises(ProducerClosed):
            await producer.enqueue(b"1", routing_key="tasks")
        async with open_producer(broker.url) as without:
            with pytest.raises(RuntimeError, match="has no outbox"):
                await without.enqueue(b"1", routing_key="tasks")


async def test_the_producer_takes_bodies_and_messages(path):
    """`enqueue` takes what `publish` takes, and its status shows the outbox."""
    async with (
        EmbeddedBroker() as broker,
        open_producer(broker.url, topology=QUEUES, outbox=outbox_at(path)) as producer,
    ):
        stored = await producer.enqueue(b"1", routing_key="tasks", key="user-42", message_id="mine")
        await producer.enqueue(task(2))
        with pytest.raises(TypeError, match="routing_key"):
            await producer.enqueue(task(3), routing_key="tasks")
        await producer.wait_flushed(10)

        assert stored == Stored("mine", 1)
        assert broker.messages("tasks") == [b"1", b"2"]
        assert producer.status().outbox.confirmed == 2
        assert "routing_key" in inspect.signature(producer.enqueue).parameters


async def test_a_file_that_cannot_be_used_is_said_before_the_body_begins(path):
    """The error is raised without an ExceptionGroup where the producer is opened."""
    path.write_bytes(b"no database " * 1000)
    async with EmbeddedBroker() as broker:
        with pytest.raises(OutboxUnusable):
            async with open_producer(broker.url, outbox=outbox_at(path)):
                pytest.fail("the body ran")


async def test_a_producer_that_gives_up_keeps_the_rows(path):
    """Its own error is raised, and what was stored is published by the next one."""
    outbox = outbox_at(path)
    async with EmbeddedBroker() as broker:
        broker.stop()
        with pytest.raises(Unreachable):
            backoff = Backoff(initial=0.05, cap=0.05, min_gap=0.05, attempts=2)
            async with relaying(broker, outbox, backoff=backoff, when_exhausted="raise") as relay:
                await relay.enqueue(task(1))
                await anyio.sleep(60)
        broker.restart()
        async with relaying(broker, outbox) as relay:
            await relay.wait_flushed(10)

        assert broker.messages("tasks") == [b"1"]


async def test_one_outbox_object_has_one_relay_at_a_time(path):
    """A second producer makes its own; the file takes any number."""
    outbox = outbox_at(path)
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        with pytest.raises(RuntimeError, match="belongs to a running producer"):
            outbox.relay(relay._producer)
        async with relaying(broker, outbox_at(path)) as second:
            await second.enqueue(task(1))
            await second.wait_flushed(10)


async def test_three_relays_keep_the_order_of_each_key(path):
    """Thirty keys, three relays on one file, one of them cancelled in the middle: no inversion."""
    keys, rows = 30, 10
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with relaying(broker, outbox_at(path)) as relay:
            async with anyio.create_task_group() as tasks:
                for number in range(keys * rows):
                    await relay.enqueue(task(number), key=f"k{number % keys}")
            async with anyio.create_task_group() as tasks:

                async def doomed():
                    async with relaying(broker, outbox_at(path)):
                        while len(broker.log) < keys:
                            await anyio.sleep(0.001)
                        cancelled.cancel()
                        await anyio.sleep(60)

                cancelled = anyio.CancelScope()

                async def run_doomed():
                    with cancelled:
                        await doomed()

                tasks.start_soon(run_doomed)
                async with relaying(broker, outbox_at(path)) as other:
                    broker.restart()
                    await other.wait_flushed(30)
                    await relay.wait_flushed(30)
        firsts = list(dict.fromkeys(int(body) for body in broker.messages("tasks")))
        assert sorted(firsts) == list(range(keys * rows))
        for key in range(keys):
            of_key = [number for number in firsts if number % keys == key]
            assert of_key == sorted(of_key)


@pytest.mark.parametrize("call", ["open", "release"])
async def test_a_database_that_hangs_does_not_hold_up_the_end(path, call, monkeypatch):
    """A call of the store that does not return is broken off before the relay's tasks run, and after they have ended."""
    monkeypatch.setattr("warrener.outbox._store_thread._STORE_TIMEOUT", 0.1)
    outbox, broken = outbox_at(path), threading.Event()
    make = outbox._make_store

    def hang(*arguments):
        assert broken.wait(30)
        raise OutboxUnusable(OutboxProblem.UNREACHABLE, "the connection was broken")

    def hanging():
        store = make()
        store.interrupt = broken.set
        setattr(store, call, hang)
        return store

    outbox._make_store = hanging
    async with EmbeddedBroker() as broker, relaying(broker, outbox) as relay:
        pass

    assert broken.is_set()
    assert relay.ended


async def test_a_hint_during_a_claim_is_not_lost(path):
    """A row that is committed after the claim has looked, and before the claim returns, is claimed by the next one."""
    async with EmbeddedBroker() as broker, relaying(broker, outbox_at(path, poll_interval=1000.0)) as relay:
        transact, done = relay._store.transact, []

        def late(work, *arguments):
            answer = transact(work, *arguments)
            if work.want is not None and not done:
                done.append(work)
                db = sqlite3.connect(path)
                with db:
                    add(db, task(1))
                db.close()
                anyio.from_thread.run_sync(relay._hint)
            return answer

        relay._store.transact = late
        relay._hint()
        with anyio.fail_after(10):
            while not (relay.status().confirmed and broker.messages("tasks")):
                await anyio.sleep(0.01)
