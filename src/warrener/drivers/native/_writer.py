"""The one task that sends."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import anyio.lowlevel

from warrener._backend import Backend
from warrener.drivers.native._transport import ENDS, Transport
from warrener.wire import Session

__all__ = ["HIGH_WATER", "LOW_WATER", "Writer"]

#: Pending bytes at which the owner should hold back, and at which it may go on.
HIGH_WATER: Final = 1024 * 1024
LOW_WATER: Final = HIGH_WATER // 2

#: How often in `stall_timeout` the writer looks whether bytes leave.
_LOOKS: Final = 8


def _forget_waiter(writer: Writer) -> None:
    writer.waiter = None


class Writer:
    """Sends the session's bytes: all pending ones at once, and rests while there are none.

    The session's bytes are given to the transport parcel by parcel: a parcel when the kernel has all bytes before it.
    So what is *begun* and *written* is never more than one parcel ahead of what is *out*.
    """

    def __init__(
        self,
        transport: Transport,
        session: Session,
        stall_timeout: float,
        backend: Backend,
        *,
        on_pull: Callable[[], None],
        on_writable: Callable[[], None],
        on_stalled: Callable[[], None],
        on_lost: Callable[[Exception], Awaitable[None]],
    ) -> None:
        self._transport = transport
        self._session = session
        self._stall_timeout = stall_timeout
        self._backend = backend
        self._on_pull = on_pull
        self._on_writable = on_writable
        self._on_stalled = on_stalled
        self._on_lost = on_lost
        #: Whether the owner has messages to publish, and waits to be asked for them.
        self.pull_requested = False
        #: True from the moment when `HIGH_WATER` bytes or more are pending until `LOW_WATER` or fewer are.
        self.full = False
        #: The bytes of all writes.
        self._bytes_written = 0
        #: When the last write began, or a heartbeat was due.
        self.sent_at = backend.clock()
        #: The argument of `Backend.wake` that wakes the task, while it rests; None while it works.
        self.waiter: Any = None
        #: Around the wait for the kernel. A broker that has blocked us does not read, so no write is overdue meanwhile.
        self._patience = anyio.CancelScope()
        self._blocked = False
        #: When bytes were last seen to leave, a write last began, or the broker last blocked or unblocked us.
        self._moved_at = self.sent_at
        self._stopped = False
        #: Whether `write_now` is at work.
        self._writing = False
        #: Set when the task comes to rest, where another task waits for that.
        self._resting: anyio.Event | None = None

    @property
    def bytes_out(self) -> int:
        """How many bytes the kernel has taken."""
        return self._bytes_written - self._transport.left

    @property
    def bytes_left(self) -> int:
        """About how many bytes are pending, or written and not taken by the kernel."""
        return self._session.pending + self._transport.left

    @property
    def at_rest(self) -> bool:
        """Whether nothing is pending and the kernel has everything."""
        return self.waiter is not None and not (self.pull_requested or self._transport.left) and self._session.idle

    def wake(self) -> None:
        """Have pending bytes sent."""
        if (ticket := self.waiter) is not None and not self._writing:
            self.waiter = None
            self._backend.wake(ticket)

    def write_now(self) -> None:
        """Write pending bytes in this very step, if the task rests; the task has the rest of them."""
        if self.waiter is None or self._writing:
            return
        self._writing = True  # what the owner publishes meanwhile goes out in this step, too
        try:
            if self._transport.prompt and not self._transport.left and (data := self._next()):
                self._write(data)
        finally:
            self._writing = False
            if self._stopped or not self.at_rest:
                self.wake()

    def _next(self) -> bytes:
        """Return the next bytes; the owner is asked for its messages before."""
        if self.pull_requested:
            self.pull_requested = False
            self._on_pull()
        return self._session.data_to_send()

    def _write(self, data: bytes) -> None:
        self.sent_at = self._backend.clock()
        self._bytes_written += len(data)
        self._transport.write(data)

    def block(self, *, blocked: bool) -> None:
        """The broker has stopped reading on purpose, or reads again."""
        self._blocked = blocked
        self._moved_at = self._backend.clock()
        self._patience.deadline = self._next_look()

    def stop(self) -> None:
        """Send nothing any more, nor the rest of the present write."""
        self._stopped = True
        self._transport.stop()
        self._patience.cancel()
        self.wake()

    async def flush(self) -> None:
        """Wait until nothing is pending and the kernel has everything."""
        while not (self._stopped or self.at_rest):
            self._resting = anyio.Event()
            self.wake()
            await self._resting.wait()

    async def run(self) -> None:
        """Send until stopped, stalled or lost."""
        lost: Exception | None = None
        try:
            await self._send_on()
        except ENDS as error:
            lost = error
        finally:
            self._stopped = True
            self._tell_flush()
        if lost is not None:
            await self._on_lost(lost)

    async def _send_on(self) -> None:
        session, transport = self._session, self._transport
        while not self._stopped:
            if transport.left:
                await self._drain()
            elif data := self._next():
                if self.full and session.backlog <= LOW_WATER:
                    self.full = False
                    self._on_writable()
                self._write(data)
                if not (session.idle or transport.left):
                    await anyio.lowlevel.checkpoint()  # between two parcels: the reader has its turn
            else:
                self._tell_flush()
                await self._backend.park(self, _forget_waiter)

    async def _drain(self) -> None:
        """Wait for the kernel; the link has stalled when no byte leaves for `stall_timeout`."""
        transport = self._transport
        self._moved_at = self._backend.clock()
        while (left := transport.left) and not self._stopped:
            with anyio.CancelScope(deadline=self._next_look()) as self._patience:
                await transport.drain()
            now = self._backend.clock()
            if transport.left < left:
                self._moved_at = now
            elif not self._blocked and now >= self._moved_at + self._stall_timeout:
                self._stopped = True
                self._on_stalled()

    def _tell_flush(self) -> None:
        if self._resting is not None:
            self._resting.set()

    def _next_look(self) -> float:
        """Return the instant at which to see whether bytes have left."""
        if self._blocked:
            return math.inf
        stalled_at = self._moved_at + self._stall_timeout
        if not self._transport.drain_can_resume:
            return stalled_at
        return min(stalled_at, self._backend.clock() + self._stall_timeout / _LOOKS)
