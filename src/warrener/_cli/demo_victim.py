"""The process that the demo's second act kills: it stores tasks in an outbox, publishes them, and prints the id of each.

``python -m warrener._cli.demo_victim FILE`` reads ``RABBITMQ_URL``. A line is printed after `enqueue` has returned. When its
standard input ends, it stores nothing more, and ends when every task is confirmed.
"""

from __future__ import annotations

import sys
import uuid

import trio

from warrener._publishing.producer import Producer, running
from warrener.machine.backoff import Backoff
from warrener.outbox import SQLiteOutbox
from warrener.topology import Queue

__all__ = ["QUEUE"]

QUEUE = "demo.outbox"
#: Tasks that store, and messages that each stores in a second.
TASKS, RATE = 4, 50.0


async def _store(producer: Producer, number: int) -> None:
    for turn in range(1_000_000):
        message_id = str(uuid.uuid4())
        await producer.enqueue(b"resize 7", routing_key=QUEUE, key=f"user-{number}-{turn % 25}", message_id=message_id)
        sys.stdout.write(f"{message_id}\n")
        sys.stdout.flush()
        await trio.sleep(1 / RATE)


async def _main(path: str) -> None:
    # Only the outbox sends a message again, so each further copy has the header that says so.
    producer = Producer(
        name="warrener demo", topology=(Queue(QUEUE),), outbox=SQLiteOutbox(path), delivery="at_most_once",
        backoff=Backoff(initial=0.5, cap=3.0, attempts=None),
    )  # fmt: skip
    async with running(producer):
        async with trio.open_nursery() as storing:
            for number in range(TASKS):
                storing.start_soon(_store, producer, number)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            storing.cancel_scope.cancel()
        await producer.wait_flushed(60)


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])
