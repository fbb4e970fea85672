"""A bench whose messages go in flights wherever the ledger offers it."""

from __future__ import annotations

from typing import Any

from tests.ledger.driving import Bench, returned_of
from warrener._publishing.ledger import Delivery, Ticket
from warrener._publishing.ledger.batching import Batching
from warrener._publishing.ledger.flights import Flight
from warrener.errors import PublishError
from warrener.records import Envelope, Lane, Receipt, Returned

__all__ = ["FIRST", "Numbered", "Together", "id_of", "ready"]

FIRST = 1 << 47
QUEUE = Envelope(routing_key="q")


def id_of(number: int) -> str:
    """Return the id of the message with this number, from 0."""
    return "0" * 20 + f"{FIRST + number:012x}"


def ready(batching: Batching, envelope: Envelope) -> bool:
    """Do what the sender does before the first message of an envelope joins a batch."""
    batching.ready.discard(envelope)
    if batching.can_join(envelope):
        batching.ready.add(envelope)
    return envelope in batching.ready


class Numbered(Bench):
    """A bench without flights, whose ids are those that flights have."""

    def accept(self, **fields: Any) -> Delivery:
        return super().accept(message_id=id_of(self.serial), **fields)

    def outcome(self, number: int) -> Receipt | PublishError | None:
        """Return the outcome of a message."""
        return self.accepted[number].outcome

    def returned(self, number: int) -> Returned:
        """Return what the broker would say that returns this message."""
        return returned_of(self.accepted[number])

    def leave(self, number: int) -> None:
        """The caller of a message leaves."""
        self.ledger.cancel(self.accepted[number])


class Together(Numbered):
    """Publishes in flights wherever the ledger offers it."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        #: Of each message, in the order of acceptance.
        self.tickets: list[Ticket] = []
        #: The sizes of all flights.
        self.flights: list[int] = []

    def accept(self, **fields: Any) -> Delivery:
        ticket = Ticket()
        batching = self.ledger.batching
        if not fields and ready(batching, QUEUE) and batching.join(QUEUE, b"body", ticket, 60.0, self.now):
            self.serial += 1
        else:
            batching.batches.numbers(1)
            delivery = ticket.delivery = super().accept(**fields)
            delivery.waiter = ticket
        self.tickets.append(ticket)
        return ticket  # type: ignore[return-value]

    def write(self, limit: int = 1_000_000) -> list[Delivery]:
        written = super().write(limit)
        left = limit - len(written)
        while left > 0 and (flight := self.ledger.batching.next_flight(self.now)) is not None:
            left -= 1
            self.fly(flight)
        return written + super().write(left)

    def fly(self, flight: Flight) -> int:
        """Put a flight on the wire."""
        channel = self.channels[Lane.MAIN]
        first = self.last_tag[channel] + 1
        at, count = flight.at, len(flight)
        self.last_tag[channel] += count - at
        self.ledger.batching.flown(flight, first, self.now)
        self.flights.append(count - at)
        for index in range(at, count):
            self.wire[self.ledger.link, channel, first + index - at] = flight.text(index)  # type: ignore[assignment]
        return first

    def take_landed(self) -> list[int]:
        """Do what the sender does for confirmed messages of flights; return their numbers."""
        landed, self.ledger.settlement.landed = self.ledger.settlement.landed, []
        numbers: list[int] = []
        for flight, start, stop in landed:
            for index in range(start, stop):
                assert not flight.tickets[index].code, "settled twice"
                flight.tickets[index].code = flight.code(index)
                numbers.append(flight.first_number + index - FIRST)
        return numbers

    def outcome(self, number: int) -> Receipt | PublishError | None:
        self.take_landed()
        ticket = self.tickets[number]
        if ticket.code:
            assert ticket.delivery is None
            assert ticket.code & (FIRST * 2 - 1) == FIRST + number
            return Receipt(id_of(number), 1, False, ticket.code >> 48)
        return None if ticket.delivery is None else ticket.delivery.outcome

    def returned(self, number: int) -> Returned:
        return Returned(312, "NO_ROUTE", "", "q", id_of(number), None, 4, b"")

    def leave(self, number: int) -> None:
        self.take_landed()
        if not self.tickets[number].code:
            self.ledger.cancel(self.ledger.batching.delivery_of(self.tickets[number]))
