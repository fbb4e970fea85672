"""Sockets on Trio: non-blocking sends and receives, and Trio's own waits where the kernel has no more to give or to take."""

from __future__ import annotations

import socket
from typing import Final

import anyio
import trio

from warrener.drivers._dial import set_options
from warrener.drivers.native._transport import PIECE, Take

__all__ = ["TrioTransport", "connect_tcp", "connect_unix"]


_NOTHING: Final = memoryview(b"")


class TrioTransport:
    """See `Transport`."""

    prompt = drain_can_resume = True

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._unsent = _NOTHING
        self._error: OSError | MemoryError | None = None

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    @property
    def left(self) -> int:
        """How many bytes the kernel has not taken."""
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        """Send what the kernel takes now."""
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + data)
        else:
            self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except (OSError, MemoryError) as error:
            self._error = error
            sent = 0
        self._unsent = memoryview(data)[sent:] if sent < len(data) else _NOTHING

    async def drain(self) -> None:
        """Send the rest, as the kernel takes it."""
        while self._unsent:
            if self._error is not None:
                raise self._error
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                raise anyio.ClosedResourceError from None
            self._send(self._unsent)

    async def read_on(self, take: Take) -> None:
        """Receive into one buffer, which `take` sees."""
        raw, buffer = self._socket, memoryview(bytearray(PIECE))
        size = PIECE
        while True:
            # A buffer that was filled: there may be more, and the other tasks have their turn first.
            if size == PIECE:
                await trio.lowlevel.checkpoint()
            else:
                try:
                    await trio.lowlevel.wait_readable(raw)
                except trio.ClosedResourceError:
                    raise anyio.ClosedResourceError from None
            try:
                size = raw.recv_into(buffer)
            except BlockingIOError:
                size = -1
                continue
            if not size:
                raise anyio.EndOfStream
            if not take(buffer[:size]):
                return

    def stop(self) -> None:
        """Forget the bytes that are left."""
        self._unsent = _NOTHING

    async def aclose(self) -> None:
        """Close the socket; Trio forgets its descriptor before the system gives the same number to another one."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()


async def connect_tcp(address: str, port: int) -> TrioTransport:
    """Connect to a literal address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_STREAM)
    set_options(raw)
    return await _connect(raw, (address, port))


async def connect_unix(path: str) -> TrioTransport:
    """Connect to a Unix socket."""
    return await _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


async def _connect(raw: socket.socket, address: tuple[str, int] | str) -> TrioTransport:
    try:
        await trio.socket.from_stdlib_socket(raw).connect(address)
    except BaseException:
        raw.close()
        raise
    return TrioTransport(raw)
