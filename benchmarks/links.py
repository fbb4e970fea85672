"""Throughput against the number of links: ``python -m benchmarks.links [--count 20000]``.

One producer on Trio publishes small persistent messages to one queue of a private RabbitMQ, from 200 tasks that each wait for
their confirm, with 1, 2, 4 and 8 links. The runs are interleaved; the table has the median.
"""

from __future__ import annotations

import argparse
import statistics
import time

import trio

import warrener
from warrener.testing.rabbitmq import PrivateRabbitMQ

LINKS = (1, 2, 4, 8)
TASKS = 200
BODY = bytes(256)


async def measure(url: str, links: int, count: int) -> float:
    """Return the confirmed messages for each second."""
    async with warrener.open_producer(url, links=links, breaker=None) as producer:
        await producer.declare(warrener.Queue("links"))
        async with producer.changes() as changes:
            async for change in changes:
                if change.healthy:
                    break
        began = time.perf_counter()

        async def publish() -> None:
            for _ in range(count // TASKS):
                await producer.publish(BODY, routing_key="links")

        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(publish)
        rate = count / (time.perf_counter() - began)
        await producer.purge("links")
        return rate


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rates: dict[int, list[float]] = {links: [] for links in LINKS}
    with PrivateRabbitMQ() as broker:
        trio.run(measure, broker.url, 1, options.count)  # the first run warms up
        for _ in range(options.rounds):
            for links in LINKS:
                rates[links].append(trio.run(measure, broker.url, links, options.count))
    print(f"{'links':>5} {'messages a second':>18} {'lowest':>8} {'highest':>8}")
    for links, found in rates.items():
        print(f"{links:>5} {statistics.median(found):>18,.0f} {min(found):>8,.0f} {max(found):>8,.0f}")


if __name__ == "__main__":
    main()
