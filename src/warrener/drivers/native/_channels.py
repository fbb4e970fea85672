"""The publishing channels of a link: one for each lane, opened anew where the broker closes the main one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from warrener.drivers import _faults
from warrener.drivers.base import Lane, LinkListener
from warrener.errors import Fault, FaultKind
from warrener.wire import Session, SessionPhase, Unsendable, events
from warrener.wire.channel import Publisher

__all__ = ["Channels"]

_MAIN: Final = Lane.MAIN


class Channels:
    """Which channel belongs to which lane, and how far each has come."""

    def __init__(
        self,
        session: Session,
        listener: LinkListener,
        open_timeout: float,
        *,
        fail: Callable[[Fault], None],
        wake_writer: Callable[[], None],
    ) -> None:
        self._session = session
        self._listener = listener
        self._open_timeout = open_timeout
        self._fail = fail
        self._wake_writer = wake_writer
        #: The newest channel of each lane.
        self.main: Publisher | None = None
        self.suspect: Publisher | None = None
        #: Set when the first main channel is open.
        self.ready = anyio.Event()
        self._lanes: dict[int, Lane] = {}
        #: Set when the channel is open, or closed again; kept while it is being opened.
        self._opening: dict[int, anyio.Event] = {}
        #: Whether publishing is blocked: the newest report of it, which waits for the first channel. No other reports wait.
        self._early_report: Callable[[], None] | None = None
        #: The task group of the tasks that limit the time in which a channel opens.
        self.tasks: TaskGroup | None = None

    def has(self, lane: Lane) -> bool:
        """Whether the lane has a channel, or one is being opened."""
        return lane in self._lanes.values()

    def open(self, lane: Lane) -> None:
        """Open a channel for the lane."""
        if self._session.phase is not SessionPhase.OPEN:
            return  # The connection was closed in the same read as the channel; that event comes next.
        try:
            channel = self._session.open_publisher()
        except Unsendable as error:
            self._fail(_faults.unusable(str(error)))
            return
        self._lanes[channel] = lane
        self._opening[channel] = anyio.Event()
        if self.ready.is_set():
            assert self.tasks is not None
            self.tasks.start_soon(self._limit_opening, channel)
        self._wake_writer()

    async def _limit_opening(self, channel: int) -> None:
        """End the link when a channel takes longer to open than a whole handshake may."""
        with anyio.move_on_after(self._open_timeout) as patience:
            await self._opening[channel].wait()
        if patience.cancelled_caught:
            text = f"the broker did not open a channel within {self._open_timeout:g} s (connect_timeout)"
            self._fail(Fault(FaultKind.STALLED, text))

    def report(self, call: Callable[[], None]) -> None:
        """Report blocked or unblocked: now, or once the first channel is open, and then the newest report only.

        A dial that fails before that has reported nothing.
        """
        if self.ready.is_set():
            call()
        else:
            self._early_report = call

    def on_opened(self, channel: int) -> None:
        """The channel is in confirm mode."""
        lane = self._lanes[channel]
        publisher = self._session.publisher(channel)
        if lane is _MAIN:
            self.main = publisher
        else:
            self.suspect = publisher
        self._opening.pop(channel).set()
        self._listener.channel_opened(lane, channel)
        if not self.ready.is_set():
            self.ready.set()
            if self._early_report is not None:
                self._early_report()

    def on_closed(self, closed: events.ChannelClosed) -> None:
        """The broker closed the channel."""
        fault = _faults.channel_closed_by_broker(closed.reply_code, closed.reply_text)
        if not self.ready.is_set():
            self._fail(fault)
            return
        lane = self._lanes.pop(closed.channel)
        never_opened = self._opening.pop(closed.channel, None)
        if never_opened is not None:
            # A broker that refuses to open a channel would refuse the next one too.
            never_opened.set()
            self._fail(fault)
            return
        self._listener.channel_closed(lane, closed.channel, fault, closed.written)
        if lane is _MAIN:
            self.open(_MAIN)
