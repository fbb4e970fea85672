"""A producer on a machine that is short of something: it publishes all the time, and says at the end what became of it.

    python -m tests.shortages.child KIND DRIVER BACKEND URL FOLDER

It publishes until 100 messages are confirmed; then the shortage begins, and its connections are ended (a line ``cut`` on
standard output asks the parent for that); after some failed dials, or as long as the kind lasts, the shortage ends, and 100 more
messages must be confirmed. The last line is JSON: outcomes, faults, the account.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

import warrener
from warrener import Backoff
from warrener.outbox import OutboxError, SQLiteOutbox

PUBLISHERS, CONFIRMS = 20, 100


class Publishing:
    """What the publishers were told."""

    def __init__(self, producer: warrener.Producer) -> None:
        self.producer = producer
        self.outcomes: Counter[str] = Counter()

    async def publish(self, number: int) -> None:
        """Publish one message after the other."""
        while True:
            try:
                await self.producer.publish(bytes(200), routing_key="q", timeout=60.0 if number % 2 else 0.5)
            except (warrener.PublishError, MemoryError) as error:
                self.outcomes[type(error).__name__] += 1
            else:
                self.outcomes["Receipt"] += 1
            await anyio.sleep(0.005)

    async def enqueue(self) -> None:
        """Store one message after the other in the outbox."""
        while True:
            try:
                await self.producer.enqueue(bytes(200), routing_key="q")
            except OutboxError as error:
                self.outcomes[type(error).__name__] += 1
            else:
                self.outcomes["Stored"] += 1
            await anyio.sleep(0.05)

    async def confirms(self, more: int = CONFIRMS) -> None:
        """Wait for confirms."""
        wanted = self.outcomes["Receipt"] + more
        while self.outcomes["Receipt"] < wanted:
            await anyio.sleep(0.01)

    async def failed_dials(self, more: int) -> None:
        """Wait until that many more dials have failed."""
        wanted = self.producer.counters["dials_failed"] + more
        while self.producer.counters["dials_failed"] < wanted:
            await anyio.sleep(0.01)


def cut() -> None:
    """Ask the parent to end the connections."""
    print("cut", flush=True)


def address_space() -> int:
    """Return the size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


Shortage = Callable[[Publishing, Path], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def descriptors(publishing: Publishing, _: Path) -> AsyncIterator[None]:
    """No file descriptor is free."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    while True:
        try:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    os.close(taken.pop())  # the one that the last open link gives back must not be a way out
    cut()
    while True:
        try:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            if publishing.producer.counters["dials_failed"] >= 3:
                break
        await anyio.sleep(0.005)
    yield
    for descriptor in taken:
        os.close(descriptor)


@asynccontextmanager
async def memory(publishing: Publishing, _: Path) -> AsyncIterator[None]:
    """There is no address space for a thread or for a large object; two megabytes are free."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space(), hard))
    taken: list[bytearray] = []
    try:
        while True:
            taken.append(bytearray(1 << 20))
    except MemoryError:
        del taken[-2:]
    cut()
    for _ in range(20):
        try:
            await publishing.producer.publish(bytes(64 << 20), routing_key="q", timeout=1)
        except (MemoryError, warrener.PublishError) as error:
            publishing.outcomes[f"large {type(error).__name__}"] += 1
        await anyio.sleep(0.1)
    yield
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


@asynccontextmanager
async def resolver(publishing: Publishing, _: Path) -> AsyncIterator[None]:
    """The resolver hangs."""
    real, hung = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "localhost":
            hung.wait()
        return real(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    cut()
    await publishing.failed_dials(4)
    resolving = [each for each in threading.enumerate() if each.name == "warrener resolver"]
    publishing.outcomes["threads of the resolver"] = len(resolving)
    yield
    hung.set()


@asynccontextmanager
async def wall_clock(publishing: Publishing, _: Path) -> AsyncIterator[None]:
    """The wall clock jumps by a year, there and back, at each look."""
    real, looks = time.time, 0

    def jumping() -> float:
        nonlocal looks
        looks += 1
        return real() + (365 * 86400 if looks % 2 else -365 * 86400)

    time.time = jumping
    await publishing.confirms()
    cut()
    await publishing.confirms()
    yield
    time.time = real


@asynccontextmanager
async def held(publishing: Publishing, _: Path) -> AsyncIterator[None]:
    """The event loop is held for five seconds, longer than the broker bears silence."""
    for _ in range(2):
        time.sleep(5)  # noqa: ASYNC251 - that is the point
        await publishing.confirms()
    yield


@asynccontextmanager
async def disk(publishing: Publishing, folder: Path) -> AsyncIterator[None]:
    """No byte can be written to a file: neither to the log nor to the outbox."""
    handler = logging.FileHandler("/dev/full")
    logging.getLogger("warrener").addHandler(handler)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    cut()
    await publishing.confirms()
    while publishing.outcomes["OutboxUnusable"] < 3:
        await anyio.sleep(0.01)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    logging.getLogger("warrener").removeHandler(handler)


KINDS: dict[str, Shortage] = {each.__name__: each for each in (descriptors, memory, resolver, wall_clock, held, disk)}


async def main(kind: str, driver: str, url: str, folder: Path) -> None:
    """Publish through the shortage."""
    logging.raiseExceptions = False  # a log that cannot be written is no error of the program
    outbox = SQLiteOutbox(folder / "outbox.sqlite") if kind == "disk" else None
    producer = warrener.Producer(
        url, driver=driver, outbox=outbox, backoff=Backoff(initial=0.1, cap=0.2, attempts=None), breaker=None, connect_timeout=0.5,
        confirm_timeout=5.0, heartbeat=2.0, abort_timeout=0.2, close_timeout=0.5,
    )  # fmt: skip
    async with producer:
        publishing = Publishing(producer)
        async with anyio.create_task_group() as tasks:
            for number in range(PUBLISHERS):
                tasks.start_soon(publishing.publish, number)
            if outbox is not None:
                tasks.start_soon(publishing.enqueue)
            await publishing.confirms()
            before = producer.status().link
            async with KINDS[kind](publishing, folder):
                pass
            await publishing.confirms()
            if outbox is not None:
                stored = publishing.outcomes["Stored"]
                while publishing.outcomes["Stored"] < stored + 5:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        if outbox is not None:
            await producer.wait_flushed(timeout=30)
        links = producer.status().link - before
    counters = producer.counters
    print(
        json.dumps(
            {
                "outcomes": publishing.outcomes,
                "faults": {fault.value: count for fault, count in producer.faults.items()},
                "links": links,
                "accepted": counters["accepted"],
                "settled": sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown")),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    _, given, name, backend, url, folder = sys.argv
    anyio.run(main, given, name, url, Path(folder), backend=backend)
