"""Byte streams in memory with a bounded window, for tests on virtual time."""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream


class _Pipe:
    """One direction: at most `window` bytes are on their way; a sender waits for the reader."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.data = bytearray()
        self.ended = False
        self.broken = False
        self._changed = anyio.Event()

    def change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def put(self, data: bytes) -> None:
        """Write all of it; cancelled, a part of it may be written, as with a socket."""
        await anyio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            if self.broken or self.ended:
                raise anyio.BrokenResourceError
            room = self.window - len(self.data)
            if room > 0:
                self.data += rest[:room]
                rest = rest[room:]
                self.change()
            else:
                await self._changed.wait()

    async def take(self, size: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self.data:
            if self.broken:
                raise anyio.BrokenResourceError
            if self.ended:
                raise anyio.EndOfStream
            await self._changed.wait()
        taken = bytes(self.data[:size])
        del self.data[:size]
        self.change()
        return taken


class PipeEnd(ByteStream):
    """One end of a connection in memory."""

    def __init__(self, inward: _Pipe, outward: _Pipe) -> None:
        self.inward = inward
        self.outward = outward
        self.closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.inward.take(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.outward.put(item)

    async def send_eof(self) -> None:
        self.outward.ended = True
        self.outward.change()

    async def aclose(self) -> None:
        self.closed = True
        self.outward.ended = self.inward.ended = True
        self.outward.change()
        self.inward.change()
        await anyio.lowlevel.checkpoint()

    def break_inward(self) -> None:
        """From now on the other end's writes fail, as after a reset."""
        self.inward.broken = True
        self.inward.change()


def pipe(window: int = 1 << 20) -> tuple[PipeEnd, PipeEnd]:
    """Two connected ends."""
    one, two = _Pipe(window), _Pipe(window)
    return PipeEnd(one, two), PipeEnd(two, one)
