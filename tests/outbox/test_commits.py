"""How many transactions a relay makes, on a clock that stands still while anything can run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace

import trio
import trio.testing

from tests.outbox.memory import Database, MemoryStore
from warrener import ConnectionState, Message
from warrener.outbox._decisions import RelayPolicy
from warrener.outbox._relay import Relay
from warrener.records import Receipt


class Confirming:
    """A producer that confirms each message at once."""

    name = "producer"

    def status(self):
        return SimpleNamespace(connection_state=ConnectionState.CONNECTED, blocked=None)

    async def publish_many(self, messages, *, timeout):
        return [Receipt(message.message_id, 1, False, 1) for message in messages]

    @asynccontextmanager
    async def changes(self):
        yield _never()

    outcomes = changes


async def _never():
    await trio.sleep_forever()
    yield


class Noting(MemoryStore):
    """A store that notes what each transaction inserted and deleted, and when."""

    def __init__(self):
        super().__init__(Database(), trio.current_time)
        self.noted = []

    def transact(self, work, token, lease):
        if work.inserts or work.settlement:
            self.noted.append((trio.current_time(), len(work.inserts), len(work.settlement.confirmed)))
        return super().transact(work, token, lease)


@asynccontextmanager
async def relaying(store):
    """A relay that has nothing to do yet."""
    relay = Relay(store, Confirming(), RelayPolicy(), poll_interval=1.0, publish_timeout=30.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        await trio.sleep(0.5)
        yield relay
        relay.stop()


def test_outcomes_share_the_commit_of_the_next_row():
    """One caller that stores one message after another: one commit for each. The last outcome waits for 10 ms."""

    async def run():
        store = Noting()
        async with relaying(store) as relay:
            began = trio.current_time()
            for number in range(5):
                await relay.enqueue(Message(b"%d" % number, routing_key="tasks"))
                await trio.testing.wait_all_tasks_blocked()
            assert [noted[1:] for noted in store.noted] == [(1, 0), (1, 1), (1, 1), (1, 1), (1, 1)]
            await trio.sleep(0.1)
            at, *last = store.noted[-1]
            assert (round(at - began, 6), last) == (0.01, [0, 1])

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_flush_does_not_wait_for_the_next_row():
    """`wait_flushed` returns as soon as the last outcome is known and written."""

    async def run():
        store = Noting()
        async with relaying(store) as relay:
            began = trio.current_time()
            await relay.enqueue(Message(b"1", routing_key="tasks"))
            await relay.wait_flushed(10)
            assert trio.current_time() == began
            assert relay.status().backlog == 0

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
