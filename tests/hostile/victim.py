"""The process that a hostile broker attacks: one producer, watched from inside.

    python -m tests.hostile.victim URL DRIVER BACKEND

It keeps up to 1,000 messages of 256 bytes accepted, without pause. Lines on standard input are orders: ``watch`` (the attack
begins: count from here), ``recover`` (the attack is over: publish until the broker confirms), ``end``. Each order is answered
with a line of JSON. The secret of the URL must be in no line of the log, no status and no exception.
"""

from __future__ import annotations

import base64
import gc
import json
import logging
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import anyio
import anyio.abc
import anyio.to_thread

import warrener
from warrener import Backoff, Receipt

ACCEPTED, SIZE = 1000, 256


def forms(secret: str) -> tuple[str, ...]:
    """How a secret may be written."""
    raw = secret.encode()
    encoded = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
    return (secret, quote(secret), quote(secret, safe=""), *(each.decode().rstrip("=") for each in encoded))


class Watch(logging.Handler):
    """What can be seen from outside of the producer: log, status, exceptions; and how long the loop was held."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._forms = forms(secret)
        self.lines = self.bytes = self.leaks = 0
        self.held = 0.0
        self.outcomes: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.lines += 1
        self.bytes += len(text)
        self.look(text)

    def look(self, text: str) -> None:
        """Look for the secret."""
        self.leaks += any(form in text for form in self._forms)

    def settled(self, outcome: Receipt | warrener.PublishError) -> None:
        """Note how a message ended."""
        self.outcomes[type(outcome).__name__] += 1
        if isinstance(outcome, Exception):
            self.look(f"{outcome} {outcome!r}")

    async def tick(self) -> None:
        """Measure the processor time of this thread between two turns of the loop: other processes do not count."""
        before = time.thread_time()
        while True:
            await anyio.sleep(0.005)
            now = time.thread_time()
            self.held, before = max(self.held, now - before), now

    async def follow(self, producer: warrener.Producer) -> None:
        """Read each change of the status."""
        async with producer.changes() as changes:
            async for change in changes:
                self.look(repr(change))

    async def publish(self, producer: warrener.Producer, patience: float) -> None:
        """Publish one message after the other."""
        while True:
            try:
                self.settled(await producer.publish(bytes(SIZE), routing_key="q", timeout=patience))
            except warrener.PublishError as error:
                self.settled(error)
                await anyio.sleep(0.2)  # a thousand callers that try again at once would be an attack of their own


async def main(url: str, driver: str) -> None:
    """Obey until ``end``."""
    watch = Watch(unquote(urlsplit(url).password or ""))
    logging.getLogger().addHandler(watch)
    logging.getLogger().setLevel(logging.INFO)
    producer = warrener.Producer(
        url, driver=driver, backoff=Backoff(initial=0.1, cap=0.2, attempts=None), breaker=None, connect_timeout=1.0,
        confirm_timeout=2.0, frame_timeout=1.0, write_stall_timeout=1.0, close_timeout=0.2, abort_timeout=0.2,
        drain_timeout=0.2, publish_timeout=60.0, topology=(warrener.Queue("q"),), declare_timeout=1.0,
    )  # fmt: skip
    async with producer, anyio.create_task_group() as tasks:
        for task in (watch.tick, lambda: watch.follow(producer)):
            tasks.start_soon(task)
        for number in range(ACCEPTED):
            tasks.start_soon(watch.publish, producer, 5.0 if number % 2 else 60.0)
        while True:
            order = (await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)).strip()
            answer: dict[str, Any] = {}
            if order == "watch":
                while watch.outcomes["Receipt"] < 2 * ACCEPTED:
                    await anyio.sleep(0.01)
                gc.collect()
                watch.lines = watch.bytes = watch.leaks = 0
                watch.held = 0.0
                watch.outcomes.clear()
            elif order == "recover":
                answer = {"held": watch.held, "lines": watch.lines, "log": watch.bytes}
                answer["faults"] = {kind.value: count for kind, count in producer.faults.items()}
                watch.outcomes.clear()
                with anyio.move_on_after(30):
                    while watch.outcomes["Receipt"] < ACCEPTED:
                        producer.reconnect()
                        await anyio.sleep(0.02)
                answer["recovered"] = watch.outcomes["Receipt"] >= ACCEPTED
                answer["leaks"] = watch.leaks
            print(json.dumps(answer), flush=True)
            if order not in ("watch", "recover"):
                break
        tasks.cancel_scope.cancel()
    counters = producer.counters
    settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
    print(json.dumps({"accepted": counters["accepted"], "settled": settled}), flush=True)


if __name__ == "__main__":
    _, given, name, backend = sys.argv
    anyio.run(main, given, name, backend=backend)
