"""Clients of the isolation benchmark: ``python -m benchmarks.isolation_clients NAME LOAD`` publishes good and bad messages.

Each client holds one connection and publishes on it as its documentation says, with persistent, mandatory messages and
publisher confirms. Good messages are due 50 times a second, bad ones `rate` times a second, whether or not earlier ones
are confirmed. The latency of a good message is counted from the instant at which it was due. A client whose channel was
closed opens another; a good message that raised an error has failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import trio
from attrs import asdict, define, field, frozen

__all__ = ["BAD", "CLIENTS", "Load", "Report"]

#: Good messages per second.
GOOD_RATE = 50
GOOD_QUEUE = "isolation.good"
#: Each kind of bad message: exchange, routing key, user_id.
BAD: dict[str, tuple[str, str, str | None]] = {
    "missing exchange": ("isolation.missing", "x", None),
    "no permission": ("isolation.forbidden", "x", None),
    "full queue": ("", "isolation.full", None),
    "refused property": ("", GOOD_QUEUE, "nobody"),
}


@frozen
class Load:
    """One measurement; handed to a client as JSON."""

    url: str
    kind: str
    #: Bad messages per second.
    rate: float
    seconds: float

    def schedule(self) -> Iterator[tuple[float, bool]]:
        """Yield when each message is due, in seconds from the start, and whether it is a good one."""
        good = [(number / GOOD_RATE, True) for number in range(int(self.seconds * GOOD_RATE))]
        bad = (
            [((number + 0.5) / self.rate, False) for number in range(int(self.seconds * self.rate))]
            if self.rate
            else []
        )
        yield from sorted(good + bad)


@define
class Report:
    """What a client measured; one line of JSON."""

    #: Seconds of each good message that was confirmed.
    latencies: list[float] = field(factory=list[float])
    #: Good messages that ended with an error.
    failed: int = 0
    #: Connections and channels that had to be opened again.
    reopened: int = 0


Publish = Callable[[bool], Awaitable[object]]


async def _follow(load: Load, report: Report, publish: Publish) -> None:
    """Publish each message when it is due, in a task of its own."""
    began = time.perf_counter()

    async def one(due: float, good: bool) -> None:
        try:
            with anyio.fail_after(30):
                await publish(good)
        except Exception:  # noqa: BLE001 - each client has errors of its own; a bad message has to have one
            report.failed += good
        else:
            if good:
                report.latencies.append(time.perf_counter() - began - due)

    async with anyio.create_task_group() as tasks:
        for due, good in load.schedule():
            await anyio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.start_soon(one, due, good)


def _warrener(driver: str) -> Callable[[Load], Report]:
    def client(load: Load) -> Report:
        from warrener import open_producer

        report = Report()
        exchange, key, user_id = BAD[load.kind]

        async def main() -> None:
            async with open_producer(load.url, driver=driver) as producer:
                await producer.wait_connected(30)

                async def publish(good: bool) -> None:
                    if good:
                        await producer.publish(bytes(256), routing_key=GOOD_QUEUE)
                    else:
                        await producer.publish(bytes(256), exchange=exchange, routing_key=key, user_id=user_id)

                await _follow(load, report, publish)
                report.reopened = producer.status().link - 1

        trio.run(main)
        return report

    return client


def _aio_pika(load: Load) -> Report:
    import aio_pika

    report = Report()
    exchange_name, key, user_id = BAD[load.kind]

    async def main() -> None:
        connection = await aio_pika.connect_robust(load.url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            reopening = asyncio.Lock()

            async def publish(good: bool) -> None:
                nonlocal channel
                async with reopening:
                    if channel.is_closed:
                        report.reopened += 1
                        channel = await connection.channel(publisher_confirms=True)
                message = aio_pika.Message(
                    bytes(256), delivery_mode=aio_pika.DeliveryMode.PERSISTENT, user_id=None if good else user_id
                )
                name = "" if good else exchange_name
                exchange = await channel.get_exchange(name, ensure=False) if name else channel.default_exchange
                await exchange.publish(message, GOOD_QUEUE if good else key)

            await _follow(load, report, publish)

    asyncio.run(main())
    return report


def _pika(load: Load) -> Report:
    """A BlockingConnection: one message after the other."""
    import pika

    report = Report()
    exchange, key, user_id = BAD[load.kind]
    connection: Any = None
    channel: Any = None

    def opened() -> Any:
        nonlocal connection
        if connection is None or connection.is_closed:
            connection = pika.BlockingConnection(pika.URLParameters(load.url))
        fresh = connection.channel()
        fresh.confirm_delivery()
        return fresh

    channel = opened()
    began = time.perf_counter()
    for due, good in load.schedule():
        time.sleep(max(0.0, began + due - time.perf_counter()))
        properties = pika.BasicProperties(delivery_mode=2, user_id=None if good else user_id)
        try:
            if channel.is_closed:
                report.reopened += 1
                channel = opened()
            if good:
                channel.basic_publish("", GOOD_QUEUE, bytes(256), properties, mandatory=True)
                report.latencies.append(time.perf_counter() - began - due)
            else:
                channel.basic_publish(exchange, key, bytes(256), properties, mandatory=True)
        except pika.exceptions.AMQPError:
            report.failed += good
    return report


CLIENTS: dict[str, Callable[[Load], Report]] = {
    "warrener": _warrener("native"),
    "warrener on aiormq": _warrener("aiormq"),
    "aio-pika": _aio_pika,
    "pika BlockingConnection": _pika,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(CLIENTS[sys.argv[1]](Load(**json.loads(sys.argv[2]))))) + "\n")
