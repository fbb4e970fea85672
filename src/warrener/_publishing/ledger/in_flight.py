"""`InFlight`: the open channels of the present link, and the publishes on them that wait for the broker's answer."""

from __future__ import annotations

import math

from warrener._publishing.ledger.epoch import Epoch
from warrener.records import Lane

__all__ = ["InFlight"]


class InFlight:
    """The epochs of the present link, and its confirm clock.

    The confirm clock measures the oldest outstanding publish of the link. It stands still while the broker blocks
    publishers, and starts from 0 when the broker takes publishes again.
    """

    def __init__(self, confirm_timeout: float) -> None:
        self.epochs: dict[int, Epoch] = {}
        self.main: Epoch | None = None
        self.suspect: Epoch | None = None
        #: Whether publishes may be written: the topology of the link is in place, and whether the broker blocks them.
        self.publishing = False
        self.paused = False
        #: No confirm clock of this link started before this instant.
        self._clock_floor = -math.inf
        self._confirm_timeout = confirm_timeout

    def __len__(self) -> int:
        """Number of tags that the broker has not answered."""
        return sum(len(epoch.outstanding) for epoch in self.epochs.values())

    def open(self, lane: Lane, channel: int) -> None:
        """Begin an epoch: publishes of this lane go to this channel from now on."""
        epoch = self.epochs[channel] = Epoch(lane, channel)
        if lane is Lane.MAIN:
            self.main = epoch
        else:
            self.suspect = epoch

    def close(self, channel: int) -> Epoch | None:
        """End one epoch and return it with its outstanding publishes; None if the channel is not open."""
        epoch = self.epochs.pop(channel, None)
        if epoch is not None and epoch is self.main:
            self.main = None
        elif epoch is not None and epoch is self.suspect:
            self.suspect = None
        return epoch

    def clear(self) -> None:
        """The link has ended."""
        self.epochs.clear()
        self.main = self.suspect = None
        self.publishing = self.paused = False
        self._clock_floor = -math.inf

    def pause(self) -> None:
        """The broker blocks publishers: the confirm clock stands still."""
        self.paused = True

    def resume(self, now: float) -> None:
        """The broker takes publishes again: the confirm clock starts from 0."""
        if self.paused:
            self.paused = False
            self._clock_floor = now

    def overdue_at(self) -> float:
        """Return the instant at which the oldest outstanding publish has waited `confirm_timeout`, or `math.inf`."""
        if self.paused:
            return math.inf
        oldest = [delivery.published_at for each in self.epochs.values() if (delivery := each.oldest()) is not None]
        return max(min(oldest), self._clock_floor) + self._confirm_timeout if oldest else math.inf
