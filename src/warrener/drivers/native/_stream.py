"""A connection that is a stream of anyio: in memory, for tests and simulations, and where there is nothing better."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import anyio.lowlevel
from anyio.abc import ByteStream

from warrener.drivers._progress import descriptor_of
from warrener.drivers.native._transport import ENDS, PIECE, Take

__all__ = ["StreamTransport"]


class StreamTransport:
    """See `Transport`. A stream of anyio cannot send without waiting, so `drain` does it.

    A stream may have one method more: `send_nowait` sends what can be sent without waiting, and returns its size.
    """

    drain_can_resume = False

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._send_nowait: Callable[[bytes], int] | None = getattr(stream, "send_nowait", None)
        self._unsent = b""
        self.prompt = self._send_nowait is not None

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor, where there is a socket."""
        return descriptor_of(self._stream)

    @property
    def left(self) -> int:
        """How many bytes are written and not sent; all of them while a send is under way."""
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        """Send what can be sent now, and keep the rest for `drain`."""
        sent = 0
        if self._send_nowait is not None and not self._unsent:
            with suppress(*ENDS):  # `drain` raises it
                sent = self._send_nowait(data)
        self._unsent += data[sent:]

    async def drain(self) -> None:
        """Send all bytes. A cancelled send cannot go on: nobody knows how far it came."""
        while data := self._unsent:
            await self._stream.send(data)
            self._unsent = self._unsent[len(data) :]

    async def read_on(self, take: Take) -> None:
        """Receive until `take` has enough."""
        while take(await self._stream.receive(PIECE)):
            await anyio.lowlevel.checkpoint()

    def stop(self) -> None:
        """Forget the bytes; the writer's cancellation ends the present send."""
        self._unsent = b""

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
