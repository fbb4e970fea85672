"""Which channels are open towards the broker, and which answers aiormq waits for.

aiormq keeps methods that it has not asked for: an answer waits for the next request, a delivered body grows without
limit. So the driver passes on only the answers that aiormq has asked for.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from warrener.drivers.aiormq import _frames as frames

__all__ = ["Asked"]

#: The answer to each method that aiormq sends.
_ANSWERS: Final = {
    frames.OPEN: frames.OPEN_OK,
    frames.CONNECTION_CLOSE: frames.CONNECTION_CLOSE_OK,
    frames.CHANNEL_OPEN: frames.CHANNEL_OPEN_OK,
    frames.CHANNEL_CLOSE: frames.CHANNEL_CLOSE_OK,
    frames.CONFIRM_SELECT: frames.CONFIRM_SELECT_OK,
    frames.QOS: frames.QOS_OK,
}


@define(eq=False)
class Asked:
    """The open channels by AMQP's number, each with the answers that are due there; channel 0 is always open."""

    _due: dict[int, deque[int]] = field(factory=lambda: {0: deque[int]()})

    def __contains__(self, channel: object) -> bool:
        """Whether the channel is open, or being opened or closed by us."""
        return channel in self._due

    def sent(self, channel: int, method: int) -> None:
        """Note a method that aiormq sends."""
        if method == frames.CHANNEL_OPEN:
            self._due[channel] = deque[int]()
        if method in _ANSWERS and channel in self._due:
            self._due[channel].append(_ANSWERS[method])

    def answered(self, channel: int, method: int) -> bool:
        """Take the answer that is due next on the channel; False for any other method."""
        due = self._due.get(channel)
        if not due or due[0] != method:
            return False
        due.popleft()
        return True

    def closed_by_broker(self, channel: int) -> None:
        """The broker has closed the channel. A close of ours that has crossed the broker's close is still answered."""
        if frames.CHANNEL_CLOSE_OK in self._due.get(channel, ()):
            self._due[channel] = deque([frames.CHANNEL_CLOSE_OK])
        else:
            self.ended(channel)

    def ended(self, channel: int) -> None:
        """The channel is closed, on both sides."""
        self._due.pop(channel, None)
