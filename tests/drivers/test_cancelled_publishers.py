"""Publishers that leave before, while and after their bytes are written, before a broker that takes no illegal byte.

Plain functions, for want of the time limit that fixtures with a mock clock bring.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from anyio.abc import ByteStream
from trio.testing import MockClock

from warrener import Receipt, open_producer
from warrener.drivers._dial import Dialed
from warrener.drivers.native import NativeDriver
from warrener.records import Endpoint
from warrener.testing import EmbeddedBroker

URL = "amqp://localhost/"


class Slow(ByteStream):
    """A stream that takes bytes in pieces with a pause between them, so that much happens while something is written."""

    def __init__(self, stream: ByteStream, piece: int, pause: float) -> None:
        self._stream = stream
        self._piece = piece
        self._pause = pause

    async def send(self, item: bytes) -> None:
        for at in range(0, len(item), self._piece):
            await self._stream.send(item[at : at + self._piece])
            await trio.sleep(self._pause)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def driver_to(broker: EmbeddedBroker, *, piece: int, pause: float) -> NativeDriver:
    """The native driver, by way of a slow stream in memory."""

    async def dial(endpoint: Endpoint, /, **_: Any) -> Dialed[ByteStream]:
        return Dialed(Slow(await broker.connect(), piece, pause), "memory", None)

    return NativeDriver(dial=dial)


async def publish_and_leave(count: int, seed: int, *, piece: int, pause: float, span: float) -> None:
    """Have `count` publishers come within `span` seconds and half of them leave at some instant; see what became of all."""
    rng = random.Random(seed)
    confirmed: list[str] = []
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("tasks")
        driver = driver_to(broker, piece=piece, pause=pause)
        async with (
            open_producer(URL, driver=driver, drain_timeout=1000.0, max_in_flight=count // 30) as producer,
            producer.outcomes() as outcomes,
        ):
            await producer.wait_connected()

            async def publisher(comes: float, stays: float, size: int) -> None:
                await trio.sleep(comes)
                with trio.move_on_after(stays):
                    receipt = await producer.publish(bytes(size), routing_key="tasks", timeout=900.0)
                    confirmed.append(receipt.message_id)

            async with trio.open_nursery() as nursery:
                for number in range(count):
                    stays = rng.choice((0.0, rng.random() * span, 2000.0, 2000.0))
                    nursery.start_soon(publisher, rng.random() * span, stays, number % 300)
            report = await producer.aclose()
            late = [outcome.message_id async for outcome in outcomes if isinstance(outcome.result, Receipt)]
            status, counters = producer.status(), producer.counters
        enqueued = Counter(entry.message_id for entry in broker.log)
        assert (broker.violations, broker.clients) == ((), ())
    assert (report.unconfirmed, report.not_sent) == ((), ())
    # Who stayed was confirmed; who left too late was, too; who left in time was never sent; nobody was sent twice.
    assert max(enqueued.values()) == 1
    assert len(enqueued) == len(confirmed) + len(late) + outcomes.missed == counters["confirmed"]
    assert set(confirmed) | set(late) <= set(enqueued)
    assert counters["cancelled"] > 0
    assert counters["accepted"] == counters["confirmed"] + counters["rejected"]
    assert counters["cancelled"] == counters["rejected"]
    assert (status.in_flight, status.buffered) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("piece", "pause"), [(1, 0.0001), (37, 0.005), (4096, 0.2)])
def test_publishers_that_leave_at_any_moment(seed: int, piece: int, pause: float) -> None:
    """Whether a publisher leaves before, while or after its bytes go out: the stream stays legal, the account is right."""
    trio.run(
        lambda: publish_and_leave(90, seed, piece=piece, pause=pause, span=0.7),
        clock=MockClock(autojump_threshold=0),
    )


@pytest.mark.slow
def test_ten_thousand_publishers_that_leave_at_random() -> None:
    """The same for ten thousand at once; no slot, task, byte or outcome is left over."""
    trio.run(
        lambda: publish_and_leave(10_000, 7, piece=4096, pause=0.001, span=0.3), clock=MockClock(autojump_threshold=0)
    )
