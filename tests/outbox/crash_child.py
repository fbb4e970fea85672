"""The process that is killed: it enqueues without end and relays, and says on a pipe what was stored.

Each message is ``stored LIFE NUMBER KEY POSITION``, written after `enqueue` has returned, or ``again ID`` for a message that
the producer itself had to send twice. With `drain` it stores nothing and ends when the outbox is empty.
"""

from __future__ import annotations

import os

import anyio

from warrener import Backoff, Message, Queue, Receipt, open_producer
from warrener.outbox import OutboxFull, OutboxNotFlushed, OutboxUnusable, PostgresOutbox, SQLiteOutbox

#: Rows of one key are stored one after the other; four tasks at once store rows.
KEYS = 8
NO_KEY = "-"
TASKS = 4
#: Rows in the outbox, at most, and seconds between two rows of a task: a short life relays about as many as it stores.
MOST = 2_000
PAUSE = 0.01


def outbox_at(place, max_rows=MOST):
    if place.startswith("postgresql:"):
        return PostgresOutbox(place, poll_interval=0.1, max_rows=max_rows)
    return SQLiteOutbox(place, poll_interval=0.05, max_rows=max_rows)


async def store(producer, say, life, task):
    number = task
    while True:
        turn = number // TASKS
        # Every second row has no key: it is claimed in the transaction that stores it.
        key = f"k{task * (KEYS // TASKS) + turn // 2 % (KEYS // TASKS)}" if turn % 2 else None
        message_id = f"{life}-{number}"
        try:
            stored = await producer.enqueue(
                b"%d" % number, routing_key="crash", key=key, message_id=message_id, correlation_id=key or NO_KEY
            )
        except (OutboxFull, OutboxUnusable):
            await anyio.sleep(0.05)
            continue
        say(f"stored {life} {number} {key or NO_KEY} {stored.position}")
        number += TASKS
        await anyio.sleep(PAUSE)


def telling(publish_many, say):
    async def told(messages: list[Message], **arguments):
        outcomes = await publish_many(messages, **arguments)
        for outcome in outcomes:
            if isinstance(outcome, Receipt) and outcome.possible_duplicate:
                say(f"again {outcome.message_id}")
        return outcomes

    return told


async def empty(producer):
    """Wait until the outbox is empty, as long as it gets emptier."""
    left = float("inf")
    while True:
        try:
            await producer.wait_flushed(60)
        except OutboxNotFlushed as late:
            if late.waiting >= left:
                raise
            left = late.waiting
        else:
            return


async def main(say, place, url, life, drain):
    backoff = Backoff(initial=0.05, cap=0.5, min_gap=0.05, attempts=None)
    settings = {"topology": (Queue("crash"),), "backoff": backoff, "breaker": None, "outbox": outbox_at(place)}
    async with open_producer(url, **settings) as producer:
        producer.publish_many = telling(producer.publish_many, say)
        say("ready")
        if drain:
            await empty(producer)
            return
        async with anyio.create_task_group() as tasks:
            for task in range(TASKS):
                tasks.start_soon(store, producer, say, life, task)


def live(pipe, place, url, life, backend, drain):
    """The whole life of the process."""
    if not drain:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a broker that is killed as well is no news

    def say(line):
        pipe.send_bytes(line.encode())  # one write: a killed process leaves whole messages

    anyio.run(main, say, place, url, life, drain, backend=backend)
