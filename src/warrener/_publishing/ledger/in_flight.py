"""`InFlight`: the open channels of the present link, and the publishes on them that wait for the broker's answer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener.records import Lane

__all__ = ["InFlight"]


class InFlight:
    """The epochs of the present link, and its confirm clocks.

    A *message* is overdue when it has waited `confirm_timeout` for its answer. The *link* is silent when messages wait on it
    and the broker has answered none for `confirm_timeout`; then it is replaced. Both clocks stand still while the broker
    blocks publishers, and start from 0 when it takes publishes again, or when bytes of ours have left (`restart_clocks`).
    """

    def __init__(self, confirm_timeout: float, deadlines: Deadlines) -> None:
        #: The number of the newest link; 0 before the first.
        self.link = 0
        self.epochs: dict[int, Epoch] = {}
        self.main: Epoch | None = None
        self.suspect: Epoch | None = None
        #: Whether the topology of the link is declared, so that messages can be published.
        self.publishing = False
        #: Whether the broker blocks publishes.
        self.paused = False
        #: Bytes of the bodies in flight.
        self.size = 0
        #: When the broker last answered a publish of this link.
        self.answered_at = -math.inf
        #: Number of overdue messages in flight, by exchange and routing key.
        self.overdue: dict[tuple[str, str], int] = {}
        #: No confirm clock of this link started before this instant.
        self.clock_floor = -math.inf
        self._confirm_timeout = confirm_timeout
        self._deadlines = deadlines

    def __len__(self) -> int:
        """Number of tags that the broker has not answered."""
        return sum(map(len, self.epochs.values()))

    def deliveries(self) -> Iterator[Delivery]:
        """Return all publishes that wait for an answer, each as a delivery."""
        for epoch in self.epochs.values():
            epoch.expand()
        return (delivery for epoch in self.epochs.values() for delivery in epoch.outstanding.values())

    def open(self, lane: Lane, channel: int) -> None:
        """Begin an epoch: publishes of this lane go to this channel from now on."""
        epoch = self.epochs[channel] = Epoch(lane, channel, self._deadlines)
        if lane is Lane.MAIN:
            self.main = epoch
        else:
            self.suspect = epoch

    def close(self, channel: int) -> Epoch | None:
        """End one epoch and return it with its outstanding publishes; None if the channel is not open."""
        epoch = self.epochs.pop(channel, None)
        if epoch is None:
            return None
        epoch.expand()
        if epoch is self.main:
            self.main = None
        elif epoch is self.suspect:
            self.suspect = None
        self.left(list(epoch.outstanding.values()))
        return epoch

    def left(self, deliveries: list[Delivery]) -> None:
        """These publishes no longer wait for an answer."""
        for delivery in deliveries:
            self.size -= delivery.size
            if delivery.overdue:
                self.no_longer_overdue(delivery)

    def clear(self) -> None:
        """The link has ended."""
        self.epochs.clear()
        self.main = self.suspect = None
        self.publishing = self.paused = False
        self.size = 0
        self.overdue.clear()
        self.answered_at = self.clock_floor = -math.inf

    # --- the confirm clocks -----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """The broker blocks publishers: the confirm clocks stand still."""
        self.paused = True

    def resume(self, now: float) -> None:
        """The broker takes publishes again: the confirm clocks start from 0."""
        if self.paused:
            self.paused = False
            self.clock_floor = now

    def restart_clocks(self, now: float) -> None:
        """Bytes of ours have left: the confirm clocks start from 0."""
        self.clock_floor = now

    def silent_at(self) -> float:
        """Return the instant at which the link is silent, or `math.inf`."""
        if self.paused:
            return math.inf
        oldest = [at for each in self.epochs.values() if (at := each.oldest_at()) is not None]
        if not oldest:
            return math.inf
        return max(min(oldest), self.clock_floor, self.answered_at) + self._confirm_timeout

    def overdue_at(self) -> float:
        """Return the instant at which the next message is overdue, or `math.inf`."""
        if self.paused:
            return math.inf
        watched = [at for epoch in self.epochs.values() if (at := epoch.unwatched_at()) is not None]
        return max(min(watched), self.clock_floor) + self._confirm_timeout if watched else math.inf

    def find_overdue(self, now: float) -> list[Delivery]:
        """Mark the messages that are overdue now, and return them."""
        found: list[Delivery] = []
        if self.paused or self.clock_floor + self._confirm_timeout > now:
            return found
        for epoch in self.epochs.values():
            while epoch.flights and epoch.flights[0].published_at + self._confirm_timeout <= now:
                epoch.expand(epoch.flights[0])
            while (delivery := epoch.unwatched()) is not None and delivery.published_at + self._confirm_timeout <= now:
                epoch.watched = delivery.tag
                delivery.overdue = True
                destination = (delivery.envelope.exchange, delivery.envelope.routing_key)
                self.overdue[destination] = self.overdue.get(destination, 0) + 1
                found.append(delivery)
        return found

    def no_longer_overdue(self, delivery: Delivery) -> None:
        """An overdue message has left."""
        delivery.overdue = False
        destination = (delivery.envelope.exchange, delivery.envelope.routing_key)
        left = self.overdue.get(destination, 0) - 1
        if left > 0:
            self.overdue[destination] = left
        else:
            self.overdue.pop(destination, None)
