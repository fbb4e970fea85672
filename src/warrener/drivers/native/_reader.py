"""The one task that receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from warrener.drivers.native._stream import STREAM_ENDS
from warrener.wire import Event, Session

__all__ = ["Reader"]

_RECEIVE: Final = 64 * 1024
#: Bytes that are parsed between two checkpoints, some 800 confirms: no peer can keep the event loop to itself.
_SLICE: Final = 16 * 1024


class Reader:
    """Receives, and passes on the events that the session reads from the bytes."""

    def __init__(
        self,
        stream: ByteStream,
        session: Session,
        frame_timeout: float,
        *,
        on_event: Callable[[Event], None],
        on_read: Callable[[], bool],
        on_stalled: Callable[[], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._stream = stream
        self._session = session
        self._frame_timeout = frame_timeout
        self._on_event = on_event
        self._on_read = on_read
        self._on_stalled = on_stalled
        self._on_lost = on_lost
        #: When the last bytes arrived.
        self.heard_at = anyio.current_time()
        self.ended = anyio.Event()

    async def run(self) -> None:
        """Receive until the stream ends, a frame takes too long, or `on_read` answers False."""
        try:
            await self._receive_on()
        except STREAM_ENDS as error:
            self._on_lost(error)
        finally:
            self.ended.set()

    async def _receive_on(self) -> None:
        session, receive = self._session, self._stream.receive
        deadline = 0.0
        while True:
            unfinished = session.residue > 0
            if unfinished:
                data = b""
                with anyio.CancelScope(deadline=deadline):
                    data = await receive(_RECEIVE)
                if not data:
                    self._on_stalled()
                    return
            else:
                data = await receive(_RECEIVE)
            self.heard_at = anyio.current_time()
            completions = session.completions
            if len(data) <= _SLICE:
                for event in session.receive(data):
                    self._on_event(event)
            else:
                await self._take_in_slices(data)
            # Only a completed frame moves the deadline: a frame that comes byte by byte has to be whole in time.
            if not unfinished or session.completions != completions:
                deadline = self.heard_at + self._frame_timeout
            if not self._on_read():
                # Nothing more can come. To be cancelled in a receive while the end of the stream arrives is more than
                # anyio's Unix sockets on asyncio bear (an InvalidStateError in the event loop).
                return

    async def _take_in_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(data), _SLICE):
            for event in self._session.receive(view[at : at + _SLICE]):
                self._on_event(event)
            await anyio.lowlevel.checkpoint()
