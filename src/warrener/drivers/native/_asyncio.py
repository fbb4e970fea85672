"""Sockets on asyncio and uvloop: a protocol on the loop's own transport."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import anyio
import sniffio

from warrener.drivers._dial import set_options
from warrener.drivers.native._transport import PIECE, Take

__all__ = ["AsyncioTransport", "connect_tcp", "connect_unix"]


class AsyncioTransport(asyncio.BufferedProtocol):
    """See `Transport`. The loop calls the methods without a docstring of ours: see `asyncio.BufferedProtocol`."""

    prompt = drain_can_resume = True

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = memoryview(bytearray(PIECE))
        #: Bytes that arrived while no `read_on` was waiting for them.
        self._kept = b""
        self._take: Take | None = None
        #: The error that `read_on` raises, and the one that `drain` raises once the connection has ended.
        self._failure: BaseException | None = None
        self._lost: BaseException | None = None
        #: What `read_on`, `drain` and `aclose` wait for.
        self._read: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: anyio finds its backend by the running task. In the loop's callbacks no task runs, so this context names it.
        self._context = contextvars.copy_context()
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")

    # --- the link's calls ---------------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor."""
        raw = self._transport.get_extra_info("socket")
        return -1 if self._lost is not None or raw is None else int(raw.fileno())

    @property
    def left(self) -> int:
        """How many bytes the loop holds for the kernel; always 1 after the connection has ended."""
        return 1 if self._lost is not None else int(self._transport.get_write_buffer_size())

    def write(self, data: bytes) -> None:
        """Send what the kernel takes now; the loop keeps the rest."""
        if self._lost is None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the loop holds nothing."""
        while self.left:
            if self._lost is not None:
                raise self._lost
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def read_on(self, take: Take) -> None:
        """Have the loop call `take` itself."""
        kept, self._kept = self._kept, b""
        if kept and not take(kept):
            return
        if self._failure is None:
            self._take = take
            self._read = asyncio.get_running_loop().create_future()
            self._transport.resume_reading()
            try:
                await self._read
            finally:
                self._take = None
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drop the bytes that are left, and the connection with them."""
        self._transport.abort()

    async def aclose(self) -> None:
        """Close the socket, and wait until the loop has done so."""
        self._transport.abort()
        await asyncio.shield(self._closed)

    # --- the loop's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        set_options(self._transport.get_extra_info("socket"))
        # Whatever the kernel does not take at once pauses the writer: nothing more is handed over until it is taken.
        self._transport.set_write_buffer_limits(0)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer[:nbytes]
        if self._take is None:
            self._kept += data
            self._transport.pause_reading()
            return
        try:
            wants_more = self._context.run(self._take, data)
        except BaseException as error:  # noqa: BLE001 - `read_on` raises it; the loop would only log it
            self._end_reading(error)
            return
        if not wants_more:
            self._take = None
            _wake(self._read)
        elif nbytes == PIECE:
            # There may be more. uvloop would read 32 pieces before anything else has its turn.
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if self._take is not None and self._lost is None:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        self._end_reading(anyio.EndOfStream())
        return True  # the link closes

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None:
        _wake(self._drained)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or anyio.ClosedResourceError()
        self._end_reading(self._lost)
        _wake(self._drained)
        _wake(self._closed)

    def _end_reading(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._take = None
        _wake(self._read)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


async def connect_tcp(address: str, port: int) -> AsyncioTransport:
    """Connect to a literal address."""
    _, transport = await asyncio.get_running_loop().create_connection(AsyncioTransport, address, port)
    return transport


async def connect_unix(path: str) -> AsyncioTransport:
    """Connect to a Unix socket."""
    _, transport = await asyncio.get_running_loop().create_unix_connection(AsyncioTransport, path)
    return transport
