"""One direction of the fault proxy in memory and virtual time: rates, latency, late ends, and no silly small pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from trio.testing import MockClock

from warrener.testing._proxy_line import BEHIND, Line, Pace, Way
from warrener.testing._streams import MemoryStream, memory_stream_pair

RATES = [1024, 20 * 1024, 2 * 2**20, 20 * 2**20, 100 * 2**20]


@asynccontextmanager
async def line(way: Way, window: int = 65536) -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
    """Yield the client's end and the server's end."""
    client, source = memory_stream_pair()
    sink, server = memory_stream_pair()
    carried = Line(way, source, sink, window, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carried.read)
        nursery.start_soon(carried.write)
        yield client, server
        nursery.cancel_scope.cancel()


async def _carried(way: Way, count: int) -> tuple[float, list[int]]:
    """Send `count` bytes; return the seconds until the last has arrived, and the sizes that arrived."""
    began, sizes = trio.current_time(), list[int]()
    async with line(way) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send, bytes(count))
        while sum(sizes) < count:
            sizes.append(len(await server.receive()))
    return trio.current_time() - began, sizes


@pytest.mark.trio
@pytest.mark.parametrize("rate", RATES)
async def test_a_line_carries_its_bandwidth(autojump_clock: MockClock, rate: int) -> None:
    """Within ten percent over two seconds, from a kilobyte a second on."""
    took, sizes = await _carried(Way(bandwidth=rate), 2 * rate)
    assert 2.0 == pytest.approx(took, rel=0.1)
    assert max(sizes) <= max(rate // 50, 1)


@pytest.mark.parametrize("rate", RATES)
def test_a_sleep_that_ends_late_does_not_slow_the_line(rate: int) -> None:
    """Each sleep takes two milliseconds more than asked for, and each write a tenth of one."""
    way, pace, now, sent = Way(bandwidth=rate), Pace(), 0.0, 0
    while now < 2.0:
        size = way.piece_size(65536)
        now += 0.0001
        sent += size
        until = pace.after(size, rate, now)
        now = now if until is None else max(now, until) + 0.002
    assert rate == pytest.approx(sent / now, rel=0.1)


def test_an_idle_line_saves_little() -> None:
    """After ten idle seconds no more than `BEHIND` seconds' worth goes out at once."""
    pace, sent = Pace(), 0
    while pace.after(100, 10_000, now=10.0) is None:
        sent += 100
    assert sent / 10_000 <= BEHIND + 0.02


@pytest.mark.trio
async def test_latency_delays_and_loses_nothing(autojump_clock: MockClock) -> None:
    """Each byte arrives that long after it was sent."""
    async with line(Way(latency=0.1)) as (client, server):
        began = trio.current_time()
        await client.send(b"late")
        assert b"late" == await server.receive()
        assert 0.1 == pytest.approx(trio.current_time() - began)


@pytest.mark.trio
async def test_an_end_is_passed_on_late(autojump_clock: MockClock) -> None:
    """`late_close` holds the end back, and nothing else."""
    async with line(Way(late_close=5.0)) as (client, server):
        await client.send(b"x")
        client.close_now()
        assert b"x" == await server.receive()
        began = trio.current_time()
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        assert 5.0 == pytest.approx(trio.current_time() - began)


class Counting(MemoryStream):
    """A stream that counts the calls of `send`."""

    calls = 0

    async def send(self, item: bytes) -> None:
        """Count and send."""
        self.calls += 1
        await super().send(item)


@pytest.mark.trio
async def test_small_writes_do_not_make_all_pieces_small(autojump_clock: MockClock) -> None:
    """What piled up on a slow line in small pieces is followed by large ones."""
    client, source = memory_stream_pair()
    outward, server = memory_stream_pair()
    sink, received = Counting(outward._in, outward._out), 0
    carried = Line(Way(latency=1.0), source, sink, 1000, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carried.read)
        nursery.start_soon(carried.write)
        for _ in range(140):
            await client.send(bytes(7))
            await trio.sleep(0.001)
        await client.send(bytes(20_000))
        while received < 20_980:
            received += len(await server.receive())
        nursery.cancel_scope.cancel()
    assert sink.calls < 150
