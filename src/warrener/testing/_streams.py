"""Byte streams for the test tools: TCP sockets that can be reset, and bounded pipes in memory.

anyio's own socket streams only close in order. A test also needs a RST instead of a FIN, a port that refuses and that
no other program can take, and half-closed directions. And anyio has no in-memory byte stream with a bounded window,
which is how a peer with a full receive buffer behaves.

Both streams are `anyio.abc.ByteStream`s with one method more: `close_now`, a plain function, so that a fault happens at
one instant and not at some checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

__all__ = ["MemoryStream", "Port", "SocketStream", "connect", "memory_stream_pair"]

CHUNK = 65536


class SocketStream(ByteStream):
    """A connected TCP socket."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._raw = raw
        self._closed = False

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Wait for bytes; raises `EndOfStream`, `BrokenResourceError` or `ClosedResourceError`."""
        await checkpoint()
        while True:
            self._check_open()
            try:
                data = self._raw.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._raw)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        """Send all of it; raises as `receive`."""
        await checkpoint()
        rest = memoryview(item)
        while rest:
            self._check_open()
            try:
                rest = rest[self._raw.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._raw)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """Send a FIN; the other direction stays open."""
        await checkpoint()
        self._check_open()
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close with a FIN; where bytes are unread, the kernel sends a RST."""
        self.close_now()
        await checkpoint()

    def close_now(self, *, reset: bool = False) -> None:
        """Close at once, with a RST when asked, which drops the bytes that the kernel still holds. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if reset:
            with contextlib.suppress(OSError):
                self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        anyio.notify_closing(self._raw)
        self._raw.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


async def connect(host: str, port: int) -> SocketStream:
    """Connect over TCP; raises `OSError`."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    raw = socket.socket(family, kind, protocol)
    try:
        raw.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raw.connect(address)
        await anyio.wait_writable(raw)
        error = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"cannot connect to {host}:{port}")
    except BaseException:
        raw.close()
        raise
    return SocketStream(raw)


class Port:
    """One TCP port on one address, that listens or refuses.

    While the port refuses, a socket stays bound to it. So no other program can get the port. And a client that redials
    cannot get this port as its own source port, which would connect the client to itself.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.number = port
        self.listening = False
        self._raw = self._bound()
        self.number = self._raw.getsockname()[1]

    def _bound(self) -> socket.socket:
        raw = socket.socket(self._family, socket.SOCK_STREAM)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.setblocking(False)
        try:
            raw.bind((self.host, self.number))
        except OSError as error:
            raw.close()
            raise self._unusable(error) from None
        return raw

    def _unusable(self, error: OSError) -> OSError:
        why = (
            "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        )
        return OSError(
            error.errno, f"port {self.number} of {self.host} {why}; choose another port, or 0 for a free one"
        )

    def listen(self) -> None:
        """Accept connections from now on; raises `OSError` where another socket listens on the port."""
        if not self.listening:
            try:
                self._raw.listen(128)
            except OSError as error:
                self._raw.close()
                raise self._unusable(error) from None
            self.listening = True

    def refuse(self) -> None:
        """Refuse connections from now on; connections that were not accepted yet are reset."""
        if self.listening:
            self.listening = False
            anyio.notify_closing(self._raw)
            self._raw.close()
            self._raw = self._bound()

    async def accept(self) -> SocketStream:
        """Wait for the next connection; raises `ClosedResourceError` once the port refuses or is closed."""
        await checkpoint()
        while True:
            if not self.listening:
                raise anyio.ClosedResourceError
            try:
                raw, _ = self._raw.accept()
            except (BlockingIOError, ConnectionAbortedError):
                await anyio.wait_readable(self._raw)
                continue
            return SocketStream(raw)

    def close(self) -> None:
        """Give the port back."""
        self.listening = False
        with contextlib.suppress(anyio.NoEventLoopError):
            anyio.notify_closing(self._raw)
        self._raw.close()


class _Direction:
    """One direction of a memory stream."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.data = bytearray()
        #: The writer sends no more.
        self.finished = False
        #: The reader takes no more.
        self.abandoned = False
        self.reset = False
        self._changed = anyio.Event()

    def change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_change(self) -> None:
        await self._changed.wait()


class MemoryStream(ByteStream):
    """One end of a connection in memory: no sockets, no threads, the same under any clock."""

    def __init__(self, inward: _Direction, outward: _Direction) -> None:
        self._in = inward
        self._out = outward
        self._closed = False

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Wait for bytes; raises `EndOfStream`, `BrokenResourceError` or `ClosedResourceError`."""
        await checkpoint()
        while True:
            self._check_open()
            if self._in.data:
                taken = bytes(self._in.data[:max_bytes])
                del self._in.data[:max_bytes]
                self._in.change()
                return taken
            if self._in.reset:
                raise anyio.BrokenResourceError
            if self._in.finished:
                raise anyio.EndOfStream
            await self._in.wait_change()

    async def send(self, item: bytes) -> None:
        """Send all of it, waiting while the other side's window is full; raises as `receive`."""
        await checkpoint()
        rest = memoryview(item)
        while rest:
            self._check_open()
            if self._out.reset or self._out.abandoned:
                raise anyio.BrokenResourceError
            room = self._out.window - len(self._out.data)
            if room <= 0:
                await self._out.wait_change()
                continue
            self._out.data += rest[:room]
            rest = rest[room:]
            self._out.change()

    def send_nowait(self, item: bytes) -> int:
        """Send what fits into the other side's window now, and return its size; raises as `receive`."""
        self._check_open()
        if self._out.reset or self._out.abandoned:
            raise anyio.BrokenResourceError
        fits = item[: max(0, self._out.window - len(self._out.data))]
        if fits:
            self._out.data += fits
            self._out.change()
        return len(fits)

    async def send_eof(self) -> None:
        """End this direction; the other side reads the bytes on their way, then the end."""
        await checkpoint()
        self._out.finished = True
        self._out.change()

    async def aclose(self) -> None:
        """Close: the other side reads the bytes on their way, then the end."""
        self.close_now()
        await checkpoint()

    def close_now(self, *, reset: bool = False, keep: int = 0) -> None:
        """Close at once. A reset drops the bytes that the other side has not read, except the first `keep`."""
        if self._closed:
            return
        self._closed = True
        if reset:
            del self._out.data[keep:]
            self._out.reset = self._in.reset = True
        self._out.finished = True
        self._in.abandoned = True
        self._in.change()
        self._out.change()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


def memory_stream_pair(window: int = CHUNK) -> tuple[MemoryStream, MemoryStream]:
    """Return the two ends of a connection in memory; `window` bytes fit each way before `send` waits."""
    one, other = _Direction(window), _Direction(window)
    return MemoryStream(one, other), MemoryStream(other, one)
