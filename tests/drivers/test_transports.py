"""The transports of the native driver: each on its event loop, plain and with TLS, against a peer on a socket."""

from __future__ import annotations

import errno
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from tests.drivers.recording import raw_socket
from warrener.drivers.native._driver import dial_sockets
from warrener.drivers.native._transport import ENDS, PIECE, Transport
from warrener.records import Endpoint

pytestmark = pytest.mark.anyio

#: Guards against hanging.
_PATIENCE = 60.0
#: More than the kernel takes from a peer that does not read.
_MUCH = 12_000_000

Handler = Callable[[ByteStream], Awaitable[None]]
Connected = Callable[[Handler], Any]


@pytest.fixture(params=["plain", "tls"])
def connected(request: pytest.FixtureRequest) -> Connected:
    """Connects a transport to a peer that runs a handler."""
    theirs: ssl.SSLContext | None = None
    ours: ssl.SSLContext | None = None
    if request.param == "tls":
        authority = trustme.CA()
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(theirs)
        ours = ssl.create_default_context()
        authority.configure_trust(ours)

    @asynccontextmanager
    async def connect(handler: Handler) -> AsyncGenerator[Transport]:
        async def handle(stream: ByteStream) -> None:
            async with stream:
                try:
                    if theirs is not None:
                        stream = await TLSStream.wrap(
                            stream, server_side=True, ssl_context=theirs, standard_compatible=False
                        )
                    await handler(stream)
                except ENDS:
                    return

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        # Otherwise the kernel may take all for a peer that reads nothing.
        for each in listener.listeners:
            each.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        endpoint = Endpoint("127.0.0.1", listener.extra(SocketAttribute.local_port), tls=ours is not None)
        with anyio.fail_after(_PATIENCE):
            async with listener, anyio.create_task_group() as group:
                group.start_soon(listener.serve, handle)
                dialed = await dial_sockets(endpoint, require_tls=False, ssl_context=ours, first_address=0)
                try:
                    yield dialed.stream
                finally:
                    await dialed.stream.aclose()
                group.cancel_scope.cancel()

    return connect


class Heard:
    """Takes bytes, in pieces, until there are enough of them."""

    def __init__(self, enough: int) -> None:
        self.data = bytearray()
        self.pieces: list[int] = []
        self._enough = enough

    def __call__(self, data: bytes | memoryview) -> bool:
        self.pieces.append(len(data))
        self.data += data
        return len(self.data) < self._enough


class Digest:
    """A peer that reads on when it is told to, and answers with a digest of it all."""

    def __init__(self, size: int, *, waits: bool = False) -> None:
        self.may_read = anyio.Event()
        if not waits:
            self.may_read.set()
        self._size = size

    async def __call__(self, stream: ByteStream) -> None:
        await self.may_read.wait()
        digest, left = hashlib.sha256(), self._size
        while left:
            data = await stream.receive()
            digest.update(data)
            left -= len(data)
        await stream.send(digest.digest())
        await anyio.sleep_forever()


def _payload(size: int) -> bytes:
    return hashlib.shake_128(b"x").digest(size)


async def test_what_the_kernel_takes_at_once_is_out(connected: Connected) -> None:
    """After a small write nothing is left, without a pass of the event loop."""
    async with connected(Digest(5)) as transport:
        transport.write(b"hello")
        assert (transport.prompt, transport.left) == (True, 0)
        await transport.drain()
        heard = Heard(32)
        await transport.read_on(heard)
    assert bytes(heard.data) == hashlib.sha256(b"hello").digest()


async def test_a_peer_that_reads_later(connected: Connected) -> None:
    """The kernel takes a part; the rest is left until the peer reads. A drain can be cancelled and called again."""
    data = _payload(_MUCH)
    peer = Digest(_MUCH, waits=True)
    async with connected(peer) as transport:
        transport.write(data)
        left = transport.left
        assert 0 < left <= _MUCH * 1.01  # TLS adds a little
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.drain()
        assert scope.cancelled_caught
        assert transport.left <= left
        peer.may_read.set()
        await transport.drain()
        assert transport.left == 0
        heard = Heard(32)
        await transport.read_on(heard)
    assert bytes(heard.data) == hashlib.sha256(data).digest()


async def test_a_reader_may_leave_and_come_back(connected: Connected) -> None:
    """Neither a cancelled read nor one that has enough loses a byte; other tasks have a turn between two pieces."""
    data = _payload(1_000_000)

    async def handler(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(data)
        await anyio.sleep_forever()

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with connected(handler) as transport:
        with anyio.move_on_after(0.01):
            await transport.read_on(Heard(1))
        transport.write(b"go")
        got = bytearray()
        for enough in (1, 100_000, len(data)):
            heard = Heard(enough - len(got))
            async with anyio.create_task_group() as group:
                group.start_soon(count)
                turns = 0
                await transport.read_on(heard)
                passes = turns
                group.cancel_scope.cancel()
            assert max(heard.pieces) <= PIECE
            assert passes >= len([size for size in heard.pieces if size]) / 4 - 2
            got += heard.data
    assert bytes(got) == data


async def test_the_end_comes_after_the_bytes(connected: Connected) -> None:
    """What came before the peer's end is taken first."""

    async def handler(stream: ByteStream) -> None:
        await stream.send(b"last words")

    async with connected(handler) as transport:
        heard = Heard(1000)
        with pytest.raises(anyio.EndOfStream):
            await transport.read_on(heard)
        assert bytes(heard.data) == b"last words"
        with pytest.raises(ENDS):
            await transport.read_on(heard)


async def test_a_reset(connected: Connected) -> None:
    """A reset ends the reader and the drain; a write behind it raises nothing."""

    async def handler(stream: ByteStream) -> None:
        await stream.receive(1)
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with connected(handler) as transport:
        transport.write(_payload(_MUCH))
        with pytest.raises(ENDS):
            await transport.read_on(Heard(1))
        while not transport.left:
            transport.write(b"x")
            await anyio.lowlevel.checkpoint()
        for _ in range(3):
            transport.write(b"y")
        with pytest.raises(ENDS):
            await transport.drain()


async def test_nothing_is_sent_after_a_stop(connected: Connected) -> None:
    """The bytes that the kernel had not taken are dropped."""
    heard = 0
    ended = anyio.Event()
    may_read = anyio.Event()

    async def handler(stream: ByteStream) -> None:
        nonlocal heard
        await may_read.wait()
        try:
            while True:
                heard += len(await stream.receive())
        finally:
            ended.set()

    async with connected(handler) as transport:
        transport.write(_payload(_MUCH))
        assert transport.left
        transport.stop()
        may_read.set()
        await anyio.lowlevel.checkpoint()
        await transport.aclose()
        await ended.wait()
    assert heard < _MUCH


async def test_closing(connected: Connected) -> None:
    """A close under a cancellation closes too; a second one does nothing, and a closed transport reads and drains nothing."""

    async def handler(stream: ByteStream) -> None:
        await anyio.sleep_forever()

    async with connected(handler) as transport:
        assert transport.descriptor >= 0
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.aclose()
        await transport.aclose()
        assert transport.descriptor == -1
        with pytest.raises(ENDS):
            await transport.read_on(Heard(1))


async def test_what_a_reader_raises(connected: Connected) -> None:
    """An exception of the taker is raised by `read_on`; no event loop swallows it."""

    async def handler(stream: ByteStream) -> None:
        await stream.send(b"hello")
        await anyio.sleep_forever()

    def take(data: bytes | memoryview) -> bool:
        if data:
            raise KeyError
        return True

    async with connected(handler) as transport:
        with pytest.raises(KeyError):
            await transport.read_on(take)


async def test_the_takers_backend_is_known(connected: Connected, anyio_backend: Any) -> None:
    """In a taker, which asyncio calls outside of any task, anyio's functions work."""
    scopes: list[anyio.CancelScope] = []

    async def handler(stream: ByteStream) -> None:
        await stream.send(b"hello")
        await anyio.sleep_forever()

    def take(data: bytes | memoryview) -> bool:
        scopes.append(anyio.CancelScope(deadline=anyio.current_time() + 1))
        anyio.Event().set()
        return not data

    async with connected(handler) as transport:
        await transport.read_on(take)
    assert scopes


@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "x"), MemoryError()])
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_what_a_socket_raises_on_trio(connected: Connected, error: Exception) -> None:
    """An error of the system in a send is raised by the drain, that of a receive by the reader."""

    async def handler(stream: ByteStream) -> None:
        await anyio.sleep_forever()

    class Short:
        def __init__(self, raw: socket.socket) -> None:
            self.fileno, self.close = raw.fileno, raw.close

        def send(self, data: Any) -> int:
            raise error

        def recv_into(self, buffer: Any) -> int:
            raise error

    async with connected(handler) as transport:
        below: Any = getattr(transport, "_below", transport)
        below._socket = Short(raw_socket(transport))
        transport.write(b"x")
        assert transport.left
        with pytest.raises(type(error)):
            await transport.drain()
        with pytest.raises(type(error)):
            await transport.read_on(Heard(1))
