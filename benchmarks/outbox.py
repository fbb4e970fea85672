# ruff: noqa: SLF001 - it measures the store behind an outbox
"""What the outbox costs, beside the plain database and beside the producer alone; run it on a quiet machine.

    python benchmarks/outbox.py [--broker embedded] [--rows 20000] [--drain 100000] [--repeat 1]

With `--repeat` each pair is measured several times in turn, and the best of each counts: other work on the machine only
makes a rate smaller. The processor time is that of the measuring process, all of its threads.

*accepted*: messages per second that `enqueue` accepted while the relay published and deleted them, beside the same rows
inserted and deleted in the same batches, with the same durability, by a loop without an outbox.
*drain*: a backlog after an outage, beside `publish_many` of the same messages.
*snapshot*: batches inserted and deleted while another session holds a snapshot, beside a table with SKIP LOCKED.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import psycopg

from warrener import Message, Queue, open_producer
from warrener.outbox import PostgresOutbox, SQLiteOutbox
from warrener.outbox._rows import encode
from warrener.outbox.records import Settlement, Want, Work
from warrener.testing import EmbeddedBroker, PrivateRabbitMQ
from warrener.testing.postgresql import PrivatePostgreSQL

BODY = b"x" * 200
QUEUE = Queue("bench")
#: What a row of an outbox holds of its message. The plain table has these columns, and no index but its primary key.
_COLUMNS = (
    "message_id text NOT NULL, key text, exchange text NOT NULL, routing_key text NOT NULL, properties text NOT NULL,"
    " stored_at {time} NOT NULL, body {bytes} NOT NULL"
)


def message() -> Message:
    """Return one message of the benchmark."""
    return Message(BODY, routing_key="bench")


class Recorded:
    """Wraps an outbox's store and notes how many rows each transaction inserted and deleted."""

    def __init__(self, outbox) -> None:
        self.batches: list[tuple[int, int]] = []
        make = outbox._make_store

        def recorded():
            store = make()
            transact = store.transact

            def noting(work, *arguments):
                if work.inserts or work.settlement.confirmed:
                    self.batches.append((len(work.inserts), len(work.settlement.confirmed)))
                return transact(work, *arguments)

            store.transact = noting
            return store

        outbox._make_store = recorded


async def accepted(url: str, outbox, rows: int, tasks_at_once: int) -> tuple[float, list[tuple[int, int]]]:
    """Enqueue `rows` messages by many tasks at once, to the last confirm; messages per second, and the batches."""
    recorded = Recorded(outbox)

    async def storing() -> None:
        for _ in range(rows // tasks_at_once):
            await producer.enqueue(BODY, routing_key="bench")

    async with open_producer(url, topology=(QUEUE,), outbox=outbox) as producer:
        await producer.wait_connected()
        began, spent = time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(tasks_at_once):
                tasks.start_soon(storing)
        stored = time.perf_counter() - began
        await producer.wait_flushed(600)
        flushed, spent = time.perf_counter() - began, time.process_time() - spent
    print(
        f"  {tasks_at_once} tasks enqueue: {rows / stored:,.0f}/s accepted, {rows / flushed:,.0f}/s to the last confirm, "
        f"{1e6 * spent / rows:.0f} µs of processor time for each"
    )
    return rows / stored, recorded.batches


def plain_sqlite(path: Path, batches: list[tuple[int, int]]) -> float:
    """The same rows in the same batches, without an outbox."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"CREATE TABLE rows (id INTEGER PRIMARY KEY, {_COLUMNS.format(time='REAL', bytes='BLOB')})")
    first = 1
    began = time.perf_counter()
    for inserts, deletes in batches:
        db.execute("BEGIN IMMEDIATE")
        now = time.time()
        db.executemany(
            "INSERT INTO rows (message_id, key, exchange, routing_key, properties, stored_at, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(f"{first + n:032x}", None, "", "bench", "{}", now, BODY) for n in range(inserts)],
        )
        db.executemany("DELETE FROM rows WHERE id = ?", [(n,) for n in range(first, first + deletes)])
        db.execute("COMMIT")
        first += deletes
    took = time.perf_counter() - began
    db.close()
    return sum(inserts for inserts, _ in batches) / took


def plain_postgres(dsn: str, batches: list[tuple[int, int]]) -> float:
    """The same for PostgreSQL."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS rows")
        db.execute(
            f"CREATE TABLE rows (id bigserial PRIMARY KEY, {_COLUMNS.format(time='timestamptz', bytes='bytea')})"
        )
        first = 1
        began = time.perf_counter()
        for inserts, deletes in batches:
            with db.transaction():
                if inserts:
                    db.execute(
                        "INSERT INTO rows (message_id, key, exchange, routing_key, properties, stored_at, body)"
                        " SELECT id, NULL, '', key, '{}', clock_timestamp(), body"
                        " FROM unnest(%s::text[], %s::text[], %b::bytea[]) AS new (id, key, body)",
                        ([f"{first + n:032x}" for n in range(inserts)], ["bench"] * inserts, [BODY] * inserts),
                    )
                if deletes:
                    db.execute("DELETE FROM rows WHERE id = ANY(%s)", ([*range(first, first + deletes)],))
            first += deletes
        return sum(inserts for inserts, _ in batches) / (time.perf_counter() - began)


async def drain(url: str, outbox, rows: int) -> None:
    """Publish a backlog, beside `publish_many` of as many messages."""
    store = outbox._make_store()
    store.open()
    for _ in range(rows // 1000):
        store.transact(Work(inserts=[encode(message()) for _ in range(1000)]), "", 0.0)
    store.close()
    async with open_producer(url, topology=(QUEUE,), outbox=outbox) as producer:
        began = time.perf_counter()
        await producer.wait_flushed(3600)
        outbox_rate = rows / (time.perf_counter() - began)
    async with open_producer(url, topology=(QUEUE,)) as producer:
        await producer.wait_connected()
        messages = [message() for _ in range(rows)]
        began = time.perf_counter()
        await producer.publish_many(messages, timeout=3600)
        many_rate = rows / (time.perf_counter() - began)
    print(
        f"  drain of {rows:,} rows: {outbox_rate:,.0f}/s; publish_many: {many_rate:,.0f}/s; "
        f"ratio {outbox_rate / many_rate:.2f}"
    )


def snapshot(dsn: str, rounds: int = 300, rows: int = 200) -> None:
    """Insert and delete batches while another session holds a snapshot."""
    store = PostgresOutbox(dsn)._make_store()
    store.open()
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn, autocommit=True) as db:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        db.execute("CREATE TABLE jobs (id bigserial PRIMARY KEY, body bytea)")
        for name in ("outbox", "SKIP LOCKED"):
            times = []
            for _ in range(rounds):
                began = time.perf_counter()
                if name == "outbox":
                    work = Work(inserts=[encode(message()) for _ in range(rows)], want=Want(rows, 1 << 24, rows))
                    taken = store.transact(work, "bench", 30.0).claimed.rows
                    confirmed = tuple((row.position, row.claim) for row in taken)
                    settlement = Settlement(confirmed=confirmed, claims={taken[0].claim: ()})
                    store.transact(Work(settlement=settlement), "bench", 30.0)
                else:
                    with db.transaction():
                        db.execute("INSERT INTO jobs (body) SELECT unnest(%b::bytea[])", ([BODY] * rows,))
                    with db.transaction():
                        db.execute(
                            "DELETE FROM jobs WHERE id IN"
                            " (SELECT id FROM jobs ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING body",
                            (rows,),
                        ).fetchall()
                times.append(time.perf_counter() - began)
            tenth = rounds // 10
            size = db.execute(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname LIKE %s",
                ("warrener_outbox__" if name == "outbox" else "jobs",),
            ).fetchone()
            print(
                f"  held snapshot, {name}: first tenth {1e3 * sum(times[:tenth]) / tenth:.1f} ms a batch, last tenth "
                f"{1e3 * sum(times[-tenth:]) / tenth:.1f} ms; {int(size[0]) / 1e6:.1f} MB at the end"
            )
    store.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", choices=("rabbitmq", "embedded"), default="rabbitmq")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--drain", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--backend", default="trio")
    args = parser.parse_args()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        server = held.enter_context(PrivatePostgreSQL())
        if args.broker == "embedded":
            broker = held.enter_context(EmbeddedBroker.in_thread())
        else:
            broker = held.enter_context(PrivateRabbitMQ())
        PostgresOutbox(server.dsn).create()
        for name, outbox in (("SQLite", SQLiteOutbox(folder / "o.db")), ("PostgreSQL", PostgresOutbox(server.dsn))):
            print(name)
            for tasks in (10, 100, 500):
                rates, plains = [], []
                for turn in range(args.repeat):
                    rate, batches = anyio.run(accepted, broker.url, outbox, args.rows, tasks, backend=args.backend)
                    rates.append(rate)
                    if name == "SQLite":
                        plains.append(plain_sqlite(folder / f"plain-{tasks}-{turn}.db", batches))
                    else:
                        plains.append(plain_postgres(server.dsn, batches))
                    sizes = [inserts for inserts, _ in batches if inserts]
                    print(
                        f"  plain, the same {len(batches)} transactions ({sum(sizes) / len(sizes):.0f} rows stored in each): "
                        f"{plains[-1]:,.0f}/s"
                    )
                print(
                    f"  {tasks} tasks: {max(rates):,.0f}/s beside {max(plains):,.0f}/s; ratio {max(rates) / max(plains):.2f}"
                )
            if args.drain:
                anyio.run(drain, broker.url, outbox, args.drain, backend=args.backend)
        snapshot(server.dsn)


if __name__ == "__main__":
    main()
