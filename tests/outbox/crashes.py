"""Kill the producing process again and again at random points, and settle the account with an independent consumer.

    python -m tests.outbox.crashes [--sqlite 1000] [--postgres 200]

For each: a process stores messages in an outbox and relays them; SIGKILL comes at a random moment; the next process goes
on with the same outbox. In a tenth of the lives RabbitMQ is killed as well. At the end everything that was reported as
stored must be in the queue, each key's first deliveries in the order of its commits, and every copy accounted for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pika
from attrs import define, field

from tests.outbox import crash_child
from tests.outbox.crash_child import NO_KEY, outbox_at
from warrener import Message
from warrener.outbox import PostgresOutbox
from warrener.outbox._rows import DUPLICATE_HEADER, encode
from warrener.outbox.records import Work
from warrener.testing import PrivateRabbitMQ
from warrener.testing.postgresql import PrivatePostgreSQL

BACKENDS = ("trio", "asyncio")
#: A process that has imported the library already makes the others.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.outbox.crash_child"])


@define
class Account:
    """What the processes reported and what the consumer found."""

    kills: int = 0
    broker_kills: int = 0
    #: message id → (key, position), as reported after `enqueue` had returned.
    stored: dict[str, tuple[str, int]] = field(factory=dict)
    #: Messages that a producer itself sent twice, by its receipts.
    again: set[str] = field(factory=set)
    #: (message id, key, flagged) in the order of the queue.
    found: list[tuple[str, str, bool]] = field(factory=list)

    @property
    def lost(self) -> set[str]:
        return set(self.stored) - {one for one, _, _ in self.found}

    @property
    def copies(self) -> int:
        return len(self.found) - len({one for one, _, _ in self.found})

    @property
    def unflagged(self) -> set[str]:
        """Messages found more often than once without a flag on a later copy or a receipt that says so."""
        seen: Counter[str] = Counter()
        bad: set[str] = set()
        for one, _, flagged in self.found:
            seen[one] += 1
            if seen[one] > 1 and not flagged and one not in self.again:
                bad.add(one)
        return bad

    @property
    def inversions(self) -> int:
        """First deliveries of a key that came after a later row of the key. Rows are numbered as they were stored."""
        last: dict[str, tuple[int, int]] = {}
        wrong, keys = 0, self.key_of
        for one in dict.fromkeys(one for one, _, _ in self.found):
            life, number = map(int, one.split("-"))
            key = keys[one]
            if key == NO_KEY:
                continue
            wrong += (life, number) < last.get(key, (-1, -1))
            last[key] = max((life, number), last.get(key, (-1, -1)))
        return wrong

    @property
    def key_of(self) -> dict[str, str]:
        return {one: key for one, key, _ in self.found}

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.broker_kills} of the broker too): {len(self.stored):,} reported as stored, "
            f"{len(set(self.key_of)):,} found, {len(self.lost)} lost, {self.copies:,} copies, "
            f"{len(self.unflagged)} of them without a flag, {self.inversions} inversions"
        )


def run(place, url, kills, draw, *, kill_broker=None):
    """Kill `kills` processes; return the account of what they reported. `kill_broker` kills and restarts the broker."""
    account = Account()
    for life in range(kills):
        account.kills += 1
        child = _Life(place, url, life, draw.choice(BACKENDS))
        if not child.ready.wait(60):
            child.kill()
            raise RuntimeError(f"life {life} did not begin: {child.lines}")
        if kill_broker is not None and draw.random() < 0.1:
            account.broker_kills += 1
            time.sleep(draw.uniform(0, 0.2))
            kill_broker()
        time.sleep(draw.uniform(0, draw.choice((0.2, 0.2, 0.2, 2.0))))
        child.kill()
        _take(account, child.lines)
        if account.kills % 50 == 0:
            print(f"  {account.kills} kills, {len(account.stored):,} messages stored", flush=True)
    child = _Life(place, url, kills, "trio", drain=True)
    if child.wait(1800):
        raise RuntimeError("the outbox was not emptied")
    _take(account, child.lines)
    account.found = consume(url)
    return account


def relay_in_order(place, url, draw, *, keys, rows, relays=3, kills=10):
    """Drain `keys` times `rows` rows by several relays, of which one is killed again and again; return the account."""
    account = Account()
    store = outbox_at(place, max_rows=keys * rows)._make_store()
    store.open()
    new = [
        encode(Message(b"", routing_key="crash", message_id=f"0-{number}", correlation_id=key), key)
        for number in range(keys * rows)
        for key in [f"k{number % keys}"]
    ]
    for done in range(0, len(new), 1000):
        store.transact(Work(inserts=new[done : done + 1000]), "", 0.0)
    account.stored = {row.message_id: (row.key, number) for number, row in enumerate(new)}
    running = [_Life(place, url, 1, draw.choice(BACKENDS), drain=True) for _ in range(relays)]
    ended = []
    while store.status().backlog or account.kills < kills:
        which = draw.randrange(relays)
        running[which].ready.wait(60)
        time.sleep(draw.uniform(0, 0.5))
        ended.append(running[which])
        running[which].kill()
        account.kills += 1
        running[which] = _Life(place, url, 1, draw.choice(BACKENDS), drain=True)
    for life in running:
        life.wait(1800)
    store.close()
    _take(account, [line for life in (*ended, *running) for line in life.lines])
    account.found = consume(url)
    return account


class _Life:
    """A child process and the lines that it has printed."""

    def __init__(self, place, url, life, backend, *, drain=False):
        self._pipe, pipe = PROCESSES.Pipe(duplex=False)
        arguments = (pipe, place, url, life, backend, drain)
        self._process = PROCESSES.Process(target=crash_child.live, args=arguments, daemon=True)
        self._process.start()
        pipe.close()
        self.lines = []
        #: It relays, or it has ended.
        self.ready = threading.Event()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self):
        with self._pipe, suppress(EOFError, OSError):
            while True:
                self.lines.append(self._pipe.recv_bytes().decode())
                if self.lines[-1] == "ready":
                    self.ready.set()
        self.ready.set()

    def kill(self):
        self._process.kill()
        self.wait(60)

    def wait(self, timeout):
        """Wait for its end; return its status."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise RuntimeError(f"a process did not end within {timeout:g} s")
        self._reading.join()
        return status


def _take(account, lines):
    for line in lines:
        match line.split():
            case ["stored", life, number, key, position]:
                account.stored[f"{life}-{number}"] = (key, int(position))
            case ["again", one]:
                account.again.add(one)


def consume(url):
    """Empty the queue with pika, which shares no code with this library."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    found = []
    try:
        channel = connection.channel()
        channel.queue_declare("crash", durable=True, passive=True)
        for method, properties, _body in channel.consume("crash", auto_ack=True, inactivity_timeout=1.0):
            if method is None:
                break
            flagged = bool((properties.headers or {}).get(DUPLICATE_HEADER))
            found.append((properties.message_id, properties.correlation_id, flagged))
    finally:
        connection.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sqlite", type=int, default=1000, help="kills with an outbox in SQLite (default: 1000)")
    parser.add_argument("--postgres", type=int, default=200, help="kills with an outbox in PostgreSQL (default: 200)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    failed = False
    with PrivateRabbitMQ() as broker:

        def kill_broker():
            broker.sync()
            broker.kill()
            broker.start()

        for name, kills in (("SQLite", args.sqlite), ("PostgreSQL", args.postgres)):
            if not kills:
                continue
            draw = random.Random(args.seed)
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder, _database(name) as dsn:
                place = dsn or str(Path(folder, "crash.db"))
                account = run(place, broker.url, kills, draw, kill_broker=kill_broker)
            print(f"{name}, {time.monotonic() - began:.0f} s: {account}", flush=True)
            failed = failed or bool(account.lost or account.inversions)
            with tempfile.TemporaryDirectory() as folder, _database(name) as dsn:
                place = dsn or str(Path(folder, "order.db"))
                account = relay_in_order(place, broker.url, draw, keys=1000, rows=50)
            print(f"{name}, order of 1,000 keys with 3 relays: {account}", flush=True)
            failed = failed or bool(account.lost or account.inversions)
    return int(failed)


@contextmanager
def _database(name):
    """The connection string of a private PostgreSQL with the tables; None for SQLite."""
    if name == "SQLite":
        yield None
        return
    with PrivatePostgreSQL() as server:
        PostgresOutbox(server.dsn).create()
        yield server.dsn


if __name__ == "__main__":
    sys.exit(main())
