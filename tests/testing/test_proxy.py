"""`FaultProxy` does what it says, on every loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from warrener.testing import EmbeddedBroker, FaultProxy
from warrener.testing._streams import Port, SocketStream, connect

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def through_proxy() -> AsyncIterator[tuple[FaultProxy, SocketStream, SocketStream]]:
    """Yield a proxy and both ends of a connection through it."""
    port = Port()
    port.listen()
    try:
        async with FaultProxy(("127.0.0.1", port.number)) as proxy:
            client = await connect("127.0.0.1", proxy.port)
            server = await port.accept()
            try:
                yield proxy, client, server
            finally:
                client.close_now()
                server.close_now()
    finally:
        port.close()


async def receive_exactly(stream: SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive(count - len(data))
    return data


async def test_forwards_both_ways_and_counts() -> None:
    """Without a fault it is a wire."""
    async with through_proxy() as (proxy, client, server):
        await client.send(b"up" * 100_000)
        assert b"up" * 100_000 == await receive_exactly(server, 200_000)
        await server.send(b"down")
        assert b"down" == await receive_exactly(client, 4)

        assert (200_000, 4) == (proxy.forwarded("up"), proxy.forwarded("down"))


async def test_fin_and_half_close_are_passed_on() -> None:
    """The end of one direction leaves the other open."""
    async with through_proxy() as (_, client, server):
        await client.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        await server.send(b"still here")
        assert b"still here" == await receive_exactly(client, 10)


async def test_reset_is_passed_on_as_reset() -> None:
    """A reset connection is a reset connection on the other side."""
    async with through_proxy() as (_, client, server):
        client.close_now(reset=True)
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


@pytest.mark.parametrize(("fault", "error"), [("fin", anyio.EndOfStream), ("reset", anyio.BrokenResourceError)])
async def test_ends_connections(fault: str, error: type[Exception]) -> None:
    """`fin` and `reset` end both sides."""
    async with through_proxy() as (proxy, client, server):
        getattr(proxy, fault)()
        for stream in (client, server):
            with pytest.raises(error):
                await stream.receive()


async def test_cut_after_n_bytes() -> None:
    """Exactly n bytes arrive, then the end."""
    async with through_proxy() as (proxy, client, server):
        proxy.cut_after(10, "up", reset=False)
        await client.send(b"0123456789abcdef")
        assert b"0123456789" == await receive_exactly(server, 10)
        with pytest.raises(anyio.EndOfStream):
            await server.receive()


async def test_slices() -> None:
    """All bytes arrive, in pieces of any size."""
    async with through_proxy() as (proxy, client, server):
        proxy.slice(1)
        await client.send(b"0123456789")
        assert b"0123456789" == await receive_exactly(server, 10)


async def test_corrupts_one_byte() -> None:
    """One byte is inverted, at the place that was asked for."""
    async with through_proxy() as (proxy, client, server):
        proxy.corrupt(after=3, direction="up")
        await client.send(b"\0\0")
        await client.send(b"\0\0\0")
        assert b"\0\0\0\xff\0" == await receive_exactly(server, 5)


async def test_freezes_one_way() -> None:
    """What is sent up waits for `thaw`; what is sent down passes."""
    async with through_proxy() as (proxy, client, server):
        proxy.freeze("up")
        await client.send(b"held")
        await server.send(b"passes")
        assert b"passes" == await receive_exactly(client, 6)
        assert 0 == proxy.forwarded("up")
        proxy.thaw()
        assert b"held" == await receive_exactly(server, 4)


async def test_what_it_holds_is_bounded() -> None:
    """A sender to a frozen proxy is held up once the buffers are full."""
    async with through_proxy() as (proxy, client, _):
        proxy.freeze()
        with anyio.move_on_after(0.2) as patience:
            await client.send(bytes(64 * 1024 * 1024))
        assert patience.cancelled_caught


async def test_black_hole_swallows() -> None:
    """Bytes go in and do not come out, even when it is over."""
    async with through_proxy() as (proxy, client, server):
        proxy.black_hole(direction="up")
        await client.send(b"gone")
        while proxy.swallowed("up") < 4:
            await checkpoint()
        proxy.black_hole(False)
        await client.send(b"heard")
        assert b"heard" == await receive_exactly(server, 5)
        assert 5 == proxy.forwarded("up")


async def test_slow_ways_lose_nothing() -> None:
    """Latency, bandwidth and late ends; how long they take is shown in virtual time (test_proxy_line.py)."""
    async with through_proxy() as (proxy, client, server):
        proxy.latency(0.01)
        proxy.bandwidth(1_000_000, "up")
        proxy.late_close(0.01)
        await client.send(bytes(6000))
        assert bytes(6000) == await receive_exactly(server, 6000)
        client.close_now()
        with pytest.raises(anyio.EndOfStream):
            await server.receive()


async def test_refuses_and_accepts_again_on_the_same_port() -> None:
    """A refused connection is refused by the kernel; open connections stay."""
    async with through_proxy() as (proxy, client, server):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect("127.0.0.1", proxy.port)
        await client.send(b"x")
        assert b"x" == await receive_exactly(server, 1)
        proxy.heal()
        (await connect("127.0.0.1", proxy.port)).close_now()


async def test_a_target_that_is_down_resets() -> None:
    """A client of a proxy whose target refuses is reset, not left hanging."""
    port = Port()
    try:
        async with FaultProxy(f"127.0.0.1:{port.number}") as proxy:
            client = await connect("127.0.0.1", proxy.port)
            with pytest.raises(anyio.BrokenResourceError):
                await client.receive()
            client.close_now()
    finally:
        port.close()


async def test_an_error_in_the_block_leaves_it_bare() -> None:
    """No exception group around what the test itself raises."""
    with pytest.raises(KeyError):
        async with FaultProxy(("127.0.0.1", 9)):
            raise KeyError("mine")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_on_a_thread(backend: str) -> None:
    """Controls called from another thread are in force when they return."""
    with EmbeddedBroker.in_thread() as broker, FaultProxy.in_thread(broker.url, backend=backend) as proxy:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
        proxy.heal()
        socket.create_connection(("127.0.0.1", proxy.port), timeout=60).close()

        assert proxy.url == broker.url.replace(str(broker.port), str(proxy.port))
