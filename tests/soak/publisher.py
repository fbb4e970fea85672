"""The process under test: publishes without pause until SIGTERM, and writes down what it was told about each message.

    python -m tests.soak.publisher URL FOLDER SEED

Lines on standard input are orders: ``queue NAME`` has publishes go to that queue from now on, ``burst N`` publishes N at once.
The outcomes of a queue's messages go to FOLDER/NAME.outcomes, one line each: message id, verdict, attempts. The last line on
standard output is the account of the producer itself, as JSON.
"""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import TextIO

import trio

import warrener
from warrener import Backoff, Receipt, open_producer

#: Tasks that publish with patience, and with little.
PATIENT, IMPATIENT = 20, 5


class Journal:
    """What the publishers were told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def note(self, queue: str, outcome: Receipt | warrener.PublishError) -> None:
        """Write one outcome down."""
        file = self._files.get(queue)
        if file is None:
            # Messages of an older queue are settled by now; one may still come late, and opens its file again.
            while len(self._files) > 3:
                self._files.pop(next(iter(self._files))).close()
            file = self._files[queue] = (self._folder / f"{queue}.outcomes").open("a")
        if isinstance(outcome, Receipt):
            verdict = "duplicate?" if outcome.possible_duplicate else "confirmed"
        else:
            verdict = "unknown" if outcome.may_have_been_delivered else "not sent"
        file.write(f"{outcome.message_id}\t{verdict}\n")
        file.flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class Publishers:
    """The tasks that publish."""

    def __init__(self, producer: warrener.Producer, journal: Journal, rng: random.Random) -> None:
        self.queue = ""
        self.stopped = False
        self._producer, self._journal, self._rng = producer, journal, rng

    async def publish(self, patience: tuple[float, float]) -> None:
        """Publish one message after the other."""
        while not self.stopped:
            queue = self.queue
            try:
                outcome: Receipt | warrener.PublishError = await self._producer.publish(
                    self._rng.randbytes(self._rng.randrange(100, 5000)),
                    routing_key=queue,
                    timeout=self._rng.uniform(*patience),
                )
            except warrener.PublishError as error:
                outcome = error
            self._journal.note(queue, outcome)
            await trio.sleep(self._rng.uniform(0, 0.2))

    async def burst(self, count: int) -> None:
        """Publish many at once."""
        queue = self.queue
        bodies = (self._rng.randbytes(500) for _ in range(count))
        for outcome in await self._producer.publish_many(bodies, routing_key=queue, timeout=30):
            self._journal.note(queue, outcome)

    async def obey(self) -> None:
        """Carry out the orders on standard input."""
        nursery: trio.Nursery
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(sys.stdin.fileno()) as orders:
            rest = b""
            while data := await orders.receive_some():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    order, _, argument = line.decode().partition(" ")
                    if order == "queue":
                        self.queue = argument
                    else:
                        nursery.start_soon(self.burst, int(argument))


async def main(url: str, folder: Path, seed: int) -> None:
    """Publish until SIGTERM."""
    journal = Journal(folder)
    settings = {"backoff": Backoff(initial=0.1, cap=1.0, attempts=None), "heartbeat": 2.0, "confirm_timeout": 10.0}
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_producer(url, **settings) as producer, trio.open_nursery() as nursery:
            publishers = Publishers(producer, journal, random.Random(seed))
            nursery.start_soon(publishers.obey)
            while not publishers.queue:
                await trio.sleep(0.01)
            async with trio.open_nursery() as tasks:
                for _ in range(PATIENT):
                    tasks.start_soon(publishers.publish, (10.0, 30.0))
                for _ in range(IMPATIENT):
                    tasks.start_soon(publishers.publish, (0.001, 2.0))
                async for _ in signals:
                    publishers.stopped = True
                    break
            nursery.cancel_scope.cancel()
        print(json.dumps(dict(producer.counters)), flush=True)
    journal.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
