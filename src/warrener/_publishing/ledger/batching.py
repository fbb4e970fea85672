"""`Batching`: which messages are accepted and written together, and how they leave as flights."""

from __future__ import annotations

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Batches, Flight, Ticket
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.refusals import Refusals
from warrener._publishing.ledger.waiting import Waiting
from warrener.records import Envelope

__all__ = ["Batching"]


class Batching:
    """The way of messages on a healthy link: `join`, then `next_flight` and `flown`. See `warrener._publishing.ledger.flights`."""

    def __init__(self, in_flight: InFlight, waiting: Waiting, refusals: Refusals) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._refusals = refusals
        self.batches: Batches = waiting.batches
        #: The envelopes whose messages `join` takes now. The sender adds them, after `can_join`; trouble clears the set.
        self.ready: set[Envelope] = waiting.ready

    def can_join(self, envelope: Envelope) -> bool:
        """Whether messages with this envelope can be accepted into batches from now on, until `ready` is cleared.

        This is the usual state of a healthy link: the broker takes publishes and answers in time, no refusal is remembered,
        the exchange is covered, and no other message has to be written first.
        """
        in_flight, waiting, refusals = self._in_flight, self._waiting, self._refusals
        return (
            in_flight.main is not None
            and in_flight.publishing
            and not in_flight.paused
            and not in_flight.overdue
            and not refusals.active
            and waiting.clear
            and envelope.exchange in waiting.introductions.covered
        )

    def join(self, envelope: Envelope, body: bytes, ticket: Ticket, timeout: float, now: float) -> int:
        """Accept one message into the present batch; return the number of its id, or 0 if there is no capacity."""
        size = len(body)
        if self._waiting.full(size) or size > self._refusals.max_size:
            return 0
        return self.batches.join(envelope, body, ticket, timeout, now)

    def next_flight(self, now: float) -> Flight | None:
        """Return messages to write now, under consecutive tags of the main channel; None if there are none.

        They have left their batch: `flown` must follow.
        """
        in_flight = self._in_flight
        if not in_flight.publishing or in_flight.paused or in_flight.main is None:
            return None
        return self._waiting.next_flight(now)

    def flown(self, flight: Flight, tag: int, now: float) -> None:
        """Note that the link has taken the messages of `next_flight`, the first of them under this tag.

        Raises RuntimeError if the driver broke its rules: the tag is not the next of the main channel.
        """
        in_flight = self._in_flight
        epoch = in_flight.main
        if epoch is None or tag != epoch.last + 1:
            raise RuntimeError(f"tag {tag} is not the next of the main channel")
        in_flight.size += flight.size
        epoch.fly(flight, tag, in_flight.link, now)

    @property
    def others_wait(self) -> bool:
        """Whether messages wait that are in no batch."""
        waiting = self._waiting
        return not waiting.clear or len(waiting.introductions) > 0

    def expand(self) -> None:
        """Let each message of a batch wait by itself."""
        self._waiting.expand_batches()

    def delivery_of(self, ticket: Ticket) -> Delivery:
        """Return the message of this ticket, which has no outcome, as a delivery."""
        if ticket.delivery is None:
            if any(ticket in batch.tickets for batch in self.batches.flights):
                self.expand()
            if ticket.delivery is None:
                self._expand_flight_of(ticket)
        assert ticket.delivery is not None
        return ticket.delivery

    def _expand_flight_of(self, ticket: Ticket) -> None:
        for epoch in self._in_flight.epochs.values():
            for flight in epoch.flights:
                if ticket in flight.tickets:
                    epoch.expand(flight)
                    return
