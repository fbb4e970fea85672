"""The process under test: publishes to three queues until SIGTERM, and writes down what it was told about each message.

    python -m tests.cluster.publisher CLIENT FOLDER URL [URL ...]

CLIENT is ``warrener``, ``warrener-persistent`` (it writes nacked messages again, and its breaker turns nothing away) or
``aio-pika``; publisher.js is the same for amqp-connection-manager. A line ``queues A B C`` on standard
input names the queues from now on. The outcomes of a queue's messages go to FOLDER/QUEUE.outcomes, one line each: message id,
verdict, and the instant on the monotonic clock of the machine.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

import anyio

import warrener
from warrener import Receipt, Retry, open_producer

#: Tasks for each queue, seconds between two publishes of a task, and the patience of one publish.
TASKS, PAUSE, PATIENCE = 6, 0.1, 60.0
HEARTBEAT = 4
BODY = bytes(300)

#: Publishes one message; returns its verdict.
Publish = Callable[[str, str], Awaitable[str]]


class Journal:
    """What the publishers were told, and where they publish."""

    def __init__(self, folder: Path) -> None:
        self.queues: list[str] = []
        self.stopped = False
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def note(self, queue: str, message_id: str, verdict: str) -> None:
        """Write one outcome down."""
        file = self._files.get(queue)
        if file is None:
            file = self._files[queue] = (self._folder / f"{queue}.outcomes").open("a", buffering=1)
        file.write(f"{message_id}\t{verdict}\t{time.monotonic():.4f}\n")

    def obey(self) -> None:
        """Read orders until standard input ends; runs in a thread."""
        for line in sys.stdin:
            self.queues = line.split()[1:]

    async def publish_all(self, publish: Publish) -> None:
        """Publish from all tasks until stopped."""
        threading.Thread(target=self.obey, daemon=True).start()
        while len(self.queues) < 3:
            await anyio.sleep(0.01)
        async with anyio.create_task_group() as tasks:
            for place in range(3):
                for _ in range(TASKS):
                    tasks.start_soon(self._publish_one_by_one, publish, place)

    async def _publish_one_by_one(self, publish: Publish, place: int) -> None:
        while not self.stopped:
            queue, message_id = self.queues[place], uuid.uuid4().hex
            self.note(queue, message_id, await publish(queue, message_id))
            await anyio.sleep(PAUSE)


async def _until_told(journal: Journal) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            journal.stopped = True
            return


async def with_warrener(journal: Journal, urls: list[str], retry: Retry | None) -> None:
    """Publish with this library."""
    settings = {"heartbeat": HEARTBEAT, "publish_timeout": PATIENCE, "retry": retry}
    async with open_producer(urls, **settings) as producer, anyio.create_task_group() as tasks:  # type: ignore[arg-type]

        async def publish(queue: str, message_id: str) -> str:
            try:
                receipt: Receipt = await producer.publish(BODY, routing_key=queue, message_id=message_id)
            except warrener.PublishError as error:
                if isinstance(error, warrener.CircuitOpen):
                    await anyio.sleep(1)
                return "unknown" if error.may_have_been_delivered else "not sent"
            return "duplicate?" if receipt.possible_duplicate else "confirmed"

        tasks.start_soon(_until_told, journal)
        await journal.publish_all(publish)
    print(json.dumps(dict(producer.counters)), flush=True)


async def with_aio_pika(journal: Journal, urls: list[str]) -> None:
    """Publish with aio-pika's robust connection. It takes one URL."""
    import aio_pika

    connection = await aio_pika.connect_robust(f"{urls[0]}?heartbeat={HEARTBEAT}")
    channel = await connection.channel(publisher_confirms=True)

    async def publish(queue: str, message_id: str) -> str:
        message = aio_pika.Message(BODY, message_id=message_id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        try:
            await channel.default_exchange.publish(message, routing_key=queue, timeout=PATIENCE)
        except Exception:  # noqa: BLE001 - any error of the other library is the same to the account
            return "failed"
        return "confirmed"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_told, journal)
        await journal.publish_all(publish)
    with anyio.move_on_after(10):
        await connection.close()
    print("{}", flush=True)


def main(client: str, folder: str, *urls: str) -> None:
    """Publish until SIGTERM."""
    journal = Journal(Path(folder))
    if client == "aio-pika":
        asyncio.run(with_aio_pika(journal, list(urls)))
    else:
        persistent = Retry(on={"unknown", "nacked", "not_sent"}, fail_fast=False)
        retry = persistent if client == "warrener-persistent" else None
        anyio.run(with_warrener, journal, list(urls), retry, backend="trio")


if __name__ == "__main__":
    main(*sys.argv[1:])
