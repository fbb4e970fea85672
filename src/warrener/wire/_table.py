"""Which channel has which number: AMQP's numbers on the wire, and the numbers of publishers in the order of opening."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from warrener.wire._control import ControlChannel
from warrener.wire.channel import ChannelState, Outgoing, Publisher
from warrener.wire.codec import Unsendable

__all__ = ["ChannelTable"]

#: How many closed publishers stay known, for their `written`: a broker that closes channels for ever costs no memory.
_CLOSED_KEPT: Final = 8


@define(eq=False)
class ChannelTable:
    """The channels of a session."""

    #: The open channels by AMQP's number, and the publishers among them.
    channels: dict[int, Publisher | ControlChannel] = field(factory=dict[int, "Publisher | ControlChannel"])
    publishers: dict[int, Publisher] = field(factory=dict[int, Publisher])
    #: The open publishers and the last few closed ones by their own number; the one closed last comes last.
    known: dict[int, Publisher] = field(factory=dict[int, Publisher])
    _last_wire_number: int = 0
    _last_number: int = 0

    def free_number(self, channel_max: int) -> int:
        """Return AMQP's number for a new channel; a number comes back as late as possible. Raises `Unsendable`."""
        for step in range(channel_max):
            number = (self._last_wire_number + step) % channel_max + 1
            if number not in self.channels:
                self._last_wire_number = number
                return number
        raise Unsendable(f"all {channel_max} channels of the connection are taken")

    def add_publisher(self, channel_max: int, frame_max: int, outgoing: Outgoing) -> Publisher:
        """Make the next publisher; forget all but the last few closed ones."""
        wire_number = self.free_number(channel_max)
        self._last_number += 1
        publisher = Publisher(wire_number, self._last_number, frame_max, outgoing)
        self.channels[wire_number] = self.publishers[wire_number] = publisher
        closed = [number for number, each in self.known.items() if each.state is ChannelState.CLOSED]
        for number in closed[:-_CLOSED_KEPT]:
            del self.known[number]
        self.known[publisher.number] = publisher
        return publisher

    def remove(self, wire_number: int) -> None:
        """The channel is closed."""
        del self.channels[wire_number]
        publisher = self.publishers.pop(wire_number, None)
        if publisher is not None:
            self.known[publisher.number] = self.known.pop(publisher.number)

    def clear(self) -> None:
        """The session is over. Publishers stay known."""
        self.channels.clear()
        self.publishers.clear()
