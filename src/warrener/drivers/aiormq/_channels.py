"""The publishing channels of a link, and the channels for requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel

from warrener.drivers import _faults
from warrener.drivers._faults import DialPhase
from warrener.drivers.aiormq._transport import Epoch
from warrener.drivers.base import Lane, LinkListener, LinkOptions
from warrener.errors import Fault

__all__ = ["GONE", "Channels"]

#: What aiormq raises when a channel or the connection under it is gone.
GONE = (aiormq.AMQPError, aiormq.ChannelInvalidStateError, OSError, RuntimeError, asyncio.CancelledError)

#: How many closed epochs stay known, for their `written`: a broker that closes channels for ever costs no memory.
_CLOSED_KEPT = 8


class Channels:
    """Opens channels in confirm mode, one for each lane, and knows which epoch each belongs to."""

    def __init__(
        self,
        connection: aiormq.Connection,
        options: LinkOptions,
        listener: LinkListener,
        *,
        channel_max: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        fail: Callable[[Fault], None],
    ) -> None:
        self._connection = connection
        self._options = options
        self._listener = listener
        self._channel_max = channel_max
        self._spawn = spawn
        self._fail = fail
        #: The open epochs and the last few closed ones, by their own number.
        self.epochs: dict[int, Epoch] = {}
        #: The open ones by AMQP's channel number.
        self._open: dict[int, Epoch] = {}
        self._last_number = 0
        self._last_epoch = 0
        self._opening: set[Lane] = set()
        self._opening_numbers: set[int] = set()
        #: Why the broker closed a channel that is no epoch, by AMQP's number; read by the call that used the channel.
        self._refusals: dict[int, tuple[int, str]] = {}

    def epoch(self, channel: int) -> Epoch | None:
        """Return the open epoch of AMQP's channel number."""
        return self._open.get(channel)

    def written(self, number: int) -> int:
        """Return the highest tag of the epoch that was written; from any thread."""
        epoch = self.epochs.get(number)
        return 0 if epoch is None else epoch.written

    def begun(self, number: int) -> int:
        """Return the highest tag of the epoch that was begun; from any thread."""
        epoch = self.epochs.get(number)
        return 0 if epoch is None else epoch.begun

    def publishes(self, channel: int) -> bool:
        """Whether AMQP's channel number is that of a publishing channel, or of one that is being opened."""
        return channel in self._open or channel in self._opening_numbers

    def free_number(self) -> int:
        """Return AMQP's number for a new channel; a number comes back as late as possible."""
        highest = self._channel_max()
        for step in range(highest):
            number = (self._last_number + step) % highest + 1
            if number not in self._connection.channels:
                self._last_number = number
                self._refusals.pop(number, None)
                return number
        raise RuntimeError(f"all {highest} channels of the connection are taken")

    def refused(self, channel: int) -> bool:
        """Whether the broker closed a channel that is no epoch; `refusal` takes the reason."""
        return channel in self._refusals

    def refusal(self, channel: int) -> tuple[int, str] | None:
        """Return reply code and text with which the broker closed a channel that is no epoch."""
        return self._refusals.pop(channel, None)

    async def new_channel(self, number: int) -> AbstractChannel:
        """Open a channel without confirm tracking of aiormq's own."""
        channel: AbstractChannel = await self._connection.channel(number, publisher_confirms=False)
        return channel

    async def open(self, lane: Lane, number: int) -> None:
        """Open a channel for the lane and put it into confirm mode."""
        self._opening_numbers.add(number)
        try:
            channel = await self.new_channel(number)
            await channel.confirm_delivery()
            if self._options.prefetch:
                await channel.basic_qos(prefetch_count=self._options.prefetch)
            if self.refused(number):
                raise aiormq.ChannelInvalidStateError  # the close came right behind the last answer
        finally:
            self._opening_numbers.discard(number)
        self._last_epoch += 1
        epoch = Epoch(self._last_epoch, lane, channel)
        closed = [each.number for each in self.epochs.values() if each.closed]
        for old in closed[:-_CLOSED_KEPT]:
            del self.epochs[old]
        self.epochs[epoch.number] = self._open[number] = epoch
        self._opening.discard(lane)
        self._listener.channel_opened(lane, epoch.number)

    def open_soon(self, lane: Lane) -> None:
        """Open a channel for the lane unless there is one or one is on its way."""
        if lane in self._opening or any(epoch.lane is lane for epoch in self._open.values()):
            return
        self._opening.add(lane)
        self._spawn(self._open_in_time(lane))

    async def _open_in_time(self, lane: Lane) -> None:
        timeout = self._options.connect_timeout
        number = 0
        try:
            async with asyncio.timeout(timeout):
                number = self.free_number()
                await self.open(lane, number)
        except TimeoutError:
            self._fail(_faults.timed_out(DialPhase.PREPARING, timeout))
        except GONE as error:
            self._fail(self.fault_of_opening(error, number))

    def fault_of_opening(self, error: BaseException, number: int) -> Fault:
        """Return why a channel could not be opened: the broker's reason, if it gave one."""
        refusal = self.refusal(number)
        return _faults.fault_of(error, DialPhase.UP) if refusal is None else _faults.channel_closed_by_broker(*refusal)

    def on_close(self, channel: int, code: int, text: str) -> Epoch | None:
        """The broker closed a channel: return its epoch, or keep the reason for the call that used it."""
        epoch = self._open.pop(channel, None)
        if epoch is None:
            self._refusals[channel] = (code, text)
            return None
        epoch.closed = True
        self._listener.channel_closed(
            epoch.lane, epoch.number, _faults.channel_closed_by_broker(code, text), epoch.written
        )
        return epoch
