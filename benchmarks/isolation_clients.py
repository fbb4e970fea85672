"""Clients of the isolation benchmark: ``python -m benchmarks.isolation_clients NAME LOAD`` publishes good and bad messages.

Each client holds one connection and publishes on it as its documentation says, with persistent, mandatory messages and
publisher confirms. Good messages are due 50 times a second. For the first seconds they are alone; then bad ones are due
`rate` times a second beside them. Neither waits for earlier ones. The latency of a good message is counted from the instant
at which it was due. A client whose channel was closed opens another; a good message that raised an error has failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import trio
from attrs import asdict, define, field, frozen

__all__ = ["BAD", "CLIENTS", "MAX_SIZE", "Bad", "Load", "Report"]

#: Good messages per second.
GOOD_RATE = 50
GOOD_QUEUE = "isolation.good"
#: The largest body that the broker of the benchmark takes.
MAX_SIZE = 1024 * 1024
#: Seconds for which a client waits for the last good messages.
PATIENCE = 15.0


@frozen
class Bad:
    """One kind of bad message."""

    exchange: str = ""
    key: str = "x"
    user_id: str | None = None
    headers: dict[str, str] | None = None
    size: int = 256
    #: Whether each message goes to an exchange of its own.
    numbered: bool = False

    def to(self, number: int) -> str:
        """Return the exchange of the bad message with this number."""
        return f"{self.exchange}.{number}" if self.numbered else self.exchange


BAD: dict[str, Bad] = {
    "missing exchange": Bad("isolation.missing"),
    "missing exchanges, each another": Bad("isolation.missing", numbered=True),
    "no permission": Bad("isolation.forbidden"),
    "full queue": Bad(key="isolation.full"),
    "queue that never confirms": Bad(key="isolation.mute"),
    "refused user_id": Bad(key=GOOD_QUEUE, user_id="nobody"),
    # RabbitMQ takes this header only as a list, and closes the channel.
    "refused header": Bad(key=GOOD_QUEUE, headers={"CC": "x"}),
    "body over the limit": Bad(key=GOOD_QUEUE, size=MAX_SIZE + 1),
}


@frozen
class Load:
    """One measurement; handed to a client as JSON."""

    url: str
    kind: str
    #: Bad messages per second.
    rate: float
    #: Seconds with bad messages, after `alone` seconds without.
    seconds: float
    alone: float

    def schedule(self) -> Iterator[tuple[float, bool, int]]:
        """Yield when each message is due, in seconds from the start, whether it is a good one, and its number."""
        good = [(number / GOOD_RATE, True, number) for number in range(int((self.alone + self.seconds) * GOOD_RATE))]
        count = max(1, round(self.seconds * self.rate))
        step = self.seconds / count
        bad = [(self.alone + (number + 0.5) * step, False, number) for number in range(count)]
        yield from sorted(good + bad)


@define
class Report:
    """What a client measured; one line of JSON."""

    #: Seconds of each good message that was confirmed, those due while there were no bad ones and the others.
    alone: list[float] = field(factory=list[float])
    beside: list[float] = field(factory=list[float])
    #: Good messages that ended with an error.
    failed: int = 0
    #: Connections and channels that had to be opened again; for warrener, links.
    reopened: int = 0
    #: How the bad messages ended: the names of the errors.
    bad: dict[str, int] = field(factory=dict[str, int])

    def note(self, load: Load, due: float, took: float) -> None:
        """Note a good message that was confirmed."""
        (self.alone if due < load.alone else self.beside).append(took)


Publish = Callable[[bool, int], Awaitable[object]]


async def _follow(load: Load, report: Report, publish: Publish) -> None:
    """Publish each message when it is due, in a task of its own; return when each good one has ended."""
    ended: Counter[str] = Counter()
    schedule = list(load.schedule())
    left = sum(good for _, good, _ in schedule)
    done = anyio.Event()
    for _ in range(20):  # Neither the handshake nor the first message of a connection is measured.
        await publish(True, 0)
    began = time.perf_counter()

    async def one(due: float, good: bool, number: int) -> None:
        nonlocal left
        try:
            await publish(good, number)
        except Exception as error:  # noqa: BLE001 - each client has errors of its own; a bad message has to have one
            report.failed += good
            ended[type(error).__name__] += not good
        else:
            if good:
                report.note(load, due, time.perf_counter() - began - due)
            else:
                ended["confirmed"] += 1
        left -= good
        if not left:
            done.set()

    async with anyio.create_task_group() as tasks:
        for due, good, number in schedule:
            await anyio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.start_soon(one, due, good, number)
        with anyio.move_on_after(PATIENCE):
            await done.wait()
        report.failed += left
        report.bad = {name: count for name, count in ended.items() if count}
        report.bad["none yet"] = len(schedule) - sum(good for _, good, _ in schedule) - sum(report.bad.values())
        tasks.cancel_scope.cancel()


def tell(report: Report) -> None:
    """Print the report and end the process: an orderly close would wait for confirms that never come."""
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    sys.stdout.flush()
    os._exit(0)


def _warrener(driver: str) -> Callable[[Load], None]:
    def client(load: Load) -> None:
        from warrener import open_producer

        report = Report()
        kind = BAD[load.kind]

        async def main() -> None:
            async with open_producer(load.url, driver=driver) as producer:
                await producer.wait_connected(30)

                async def publish(good: bool, number: int) -> None:
                    if good:
                        await producer.publish(bytes(256), routing_key=GOOD_QUEUE)
                    else:
                        await producer.publish(
                            bytes(kind.size),
                            exchange=kind.to(number),
                            routing_key=kind.key,
                            user_id=kind.user_id,
                            headers=kind.headers,
                        )

                await _follow(load, report, publish)
                report.reopened = producer.status().link - 1
                tell(report)

        trio.run(main)

    return client


def _aio_pika(load: Load) -> None:
    import aio_pika

    report = Report()
    kind = BAD[load.kind]

    async def main() -> None:
        connection = await aio_pika.connect_robust(load.url)
        channel = await connection.channel(publisher_confirms=True)
        reopening = asyncio.Lock()

        async def publish(good: bool, number: int) -> None:
            nonlocal channel
            async with reopening:
                if channel.is_closed:
                    report.reopened += 1
                    channel = await connection.channel(publisher_confirms=True)
            message = aio_pika.Message(
                bytes(256 if good else kind.size),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                user_id=None if good else kind.user_id,
                headers=None if good else kind.headers,
            )
            name = "" if good else kind.to(number)
            exchange = await channel.get_exchange(name, ensure=False) if name else channel.default_exchange
            await exchange.publish(message, GOOD_QUEUE if good else kind.key)

        await _follow(load, report, publish)
        tell(report)

    asyncio.run(main())


def _pika(load: Load) -> None:
    """A BlockingConnection: one message after the other."""
    import pika

    report = Report()
    kind = BAD[load.kind]
    ended: Counter[str] = Counter()
    connection: Any = None

    def opened() -> Any:
        nonlocal connection
        if connection is None or connection.is_closed:
            connection = pika.BlockingConnection(pika.URLParameters(load.url))
        fresh = connection.channel()
        fresh.confirm_delivery()
        return fresh

    channel = opened()

    def end() -> None:
        report.failed += sum(good for _, good, _ in schedule) - len(report.alone) - len(report.beside) - report.failed
        report.bad = dict(ended)
        tell(report)

    schedule = list(load.schedule())
    # A confirm that never comes blocks this client for ever, and it has no timeout for one publish.
    threading.Timer(load.alone + load.seconds + PATIENCE, end).start()
    began = time.perf_counter()
    for due, good, number in schedule:
        time.sleep(max(0.0, began + due - time.perf_counter()))
        properties = pika.BasicProperties(
            delivery_mode=2, user_id=None if good else kind.user_id, headers=None if good else kind.headers
        )
        try:
            if channel.is_closed:
                report.reopened += 1
                channel = opened()
            if good:
                channel.basic_publish("", GOOD_QUEUE, bytes(256), properties, mandatory=True)
                report.note(load, due, time.perf_counter() - began - due)
            else:
                channel.basic_publish(kind.to(number), kind.key, bytes(kind.size), properties, mandatory=True)
                ended["confirmed"] += 1
        except pika.exceptions.AMQPError as error:
            report.failed += good
            ended[type(error).__name__] += not good
    end()


CLIENTS: dict[str, Callable[[Load], None]] = {
    "warrener": _warrener("native"),
    "warrener on aiormq": _warrener("aiormq"),
    "aio-pika": _aio_pika,
    "pika BlockingConnection": _pika,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](Load(**json.loads(sys.argv[2])))
