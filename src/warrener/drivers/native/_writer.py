"""The one task that sends."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import ByteStream

from warrener.drivers.native._stream import STREAM_ENDS
from warrener.wire import Session

__all__ = ["HIGH_WATER", "LOW_WATER", "Writer"]

#: Pending bytes at which the owner should hold back, and at which it may go on.
HIGH_WATER: Final = 1024 * 1024
LOW_WATER: Final = HIGH_WATER // 2


class Writer:
    """Sends the session's bytes: all pending ones at once, and rests while there are none."""

    def __init__(
        self,
        stream: ByteStream,
        session: Session,
        stall_timeout: float,
        *,
        on_pull: Callable[[], None],
        on_writable: Callable[[], None],
        on_stalled: Callable[[], None],
        on_lost: Callable[[Exception], Awaitable[None]],
    ) -> None:
        self._stream = stream
        self._session = session
        self._stall_timeout = stall_timeout
        self._on_pull = on_pull
        self._on_writable = on_writable
        self._on_stalled = on_stalled
        self._on_lost = on_lost
        #: Whether the owner has messages to publish, and waits to be asked for them.
        self.pull_requested = False
        #: Whether `HIGH_WATER` bytes or more were pending, and not yet `LOW_WATER` or fewer since.
        self.full = False
        #: The bytes of all sends that have returned.
        self.bytes_out = 0
        #: When the last send began, or a heartbeat was due.
        self.sent_at = anyio.current_time()
        #: Around the task. Its deadline is that of the present send. A broker that has blocked us does not read, so no
        #: send is overdue meanwhile.
        self._patience = anyio.CancelScope()
        self._sending = False
        #: The bytes of the present send.
        self._size = 0
        self._blocked = False
        #: What the task waits for while nothing is pending; None while it works.
        self.rest: anyio.Event | None = None
        #: Set when the task comes to rest, where another task waits for that.
        self._resting: anyio.Event | None = None

    @property
    def bytes_left(self) -> int:
        """About how many bytes are pending or in the present send."""
        return self._session.pending + self._size

    def wake(self) -> None:
        """Have pending bytes sent."""
        if self.rest is not None:
            self.rest.set()
            self.rest = None

    def block(self, *, blocked: bool) -> None:
        """The broker has stopped reading on purpose, or reads again."""
        self._blocked = blocked
        self._patience.deadline = self._stalled_at()

    def stop(self) -> None:
        """Send nothing any more, nor the rest of the present send."""
        self._patience.cancel()

    async def flush(self) -> None:
        """Wait until nothing is pending and nothing is being sent."""
        while not self._session.idle or self.rest is None:
            self._resting = anyio.Event()
            self.wake()
            await self._resting.wait()

    async def run(self) -> None:
        """Send until stopped, stalled or lost."""
        with self._patience as patience:
            await self._send_on()
        if patience.cancelled_caught:
            self._on_stalled()

    async def _send_on(self) -> None:
        session, send, patience = self._session, self._stream.send, self._patience
        while True:
            if self.pull_requested:
                self.pull_requested = False
                self._on_pull()
            data = session.data_to_send()
            if not data:
                self.rest = anyio.Event()
                if self._resting is not None:
                    self._resting.set()
                await self.rest.wait()
                continue
            if self.full and session.backlog <= LOW_WATER:
                self.full = False
                self._on_writable()
            self.sent_at = anyio.current_time()
            self._sending = True
            self._size = len(data)
            patience.deadline = self._stalled_at()
            try:
                await send(data)
            except STREAM_ENDS as error:
                patience.deadline = math.inf
                await self._on_lost(error)
                return
            self.bytes_out += len(data)
            self._size = 0
            self._sending = False
            patience.deadline = math.inf

    def _stalled_at(self) -> float:
        """Return the instant at which the present send counts as stalled, if the broker takes no more bytes until then."""
        if self._blocked or not self._sending:
            return math.inf
        return anyio.current_time() + self._stall_timeout
