"""The one task that receives."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio

from warrener._backend import Backend
from warrener.drivers.native._transport import ENDS, Transport
from warrener.wire import Event, Session

__all__ = ["Reader"]


class Reader:
    """Passes on the events that the session reads from the bytes, and keeps the deadline of an unfinished frame."""

    def __init__(
        self,
        transport: Transport,
        session: Session,
        frame_timeout: float,
        backend: Backend,
        *,
        on_event: Callable[[Event], None],
        on_read: Callable[[], bool],
        on_stalled: Callable[[], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._transport = transport
        self._session = session
        self._frame_timeout = frame_timeout
        self._clock = backend.clock
        self._on_event = on_event
        self._on_read = on_read
        self._on_stalled = on_stalled
        self._on_lost = on_lost
        #: When the last bytes arrived.
        self.heard_at = backend.clock()
        self.ended = anyio.Event()
        #: Around the wait for bytes; its deadline is that of the unfinished frame.
        self._patience = anyio.CancelScope()
        self._unfinished = False

    async def run(self) -> None:
        """Receive until the connection ends, a frame takes too long, or `on_read` answers False."""
        try:
            await self._read_on()
        except ENDS as error:
            self._on_lost(error)
        finally:
            self.ended.set()

    async def _read_on(self) -> None:
        deadline = math.inf
        while self._clock() < deadline:
            with anyio.CancelScope(deadline=deadline) as self._patience:
                await self._transport.read_on(self._take)
                # Nothing more can come.
                return
            # After a late wake-up, the rest of the frame may have come in the same pass as the end of its time.
            deadline = self._patience.deadline
        self._on_stalled()

    def _take(self, data: bytes | memoryview) -> bool:
        session = self._session
        self.heard_at = now = self._clock()
        completions = session.completions
        for event in session.receive(data):
            self._on_event(event)
        # Only a completed frame moves the deadline: a frame that comes byte by byte has to be whole in time.
        unfinished = session.residue > 0
        if unfinished and not (self._unfinished and session.completions == completions):
            self._patience.deadline = now + self._frame_timeout
        elif self._unfinished and not unfinished:
            self._patience.deadline = math.inf
        self._unfinished = unfinished
        return self._on_read()
