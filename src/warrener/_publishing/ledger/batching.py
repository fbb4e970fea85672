"""`Batching`: which messages are accepted and written together, and how they leave as flights."""

from __future__ import annotations

from itertools import islice, repeat
from typing import cast

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import TOGETHER, Batches, Flight, RunLike, Ticket
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.refusals import Refusals
from warrener._publishing.ledger.settlement import Settlement
from warrener._publishing.ledger.waiting import Waiting
from warrener.records import Envelope

__all__ = ["Batching"]

#: Maximum number of messages of a run in one flight.
MOST_OF_RUN = 1024
#: A message with a larger body is in no batch: its bytes cost far more than the rest of its publish.
LARGEST = 1024 * 1024
#: Maximum number of flights that are searched for one message. If there are more, all are expanded: many publishers may leave
#: together, and a search for each of them would take time with the square of their number.
FEW = 64


class Batching:
    """The way of messages on a healthy link: `join`, then `next_flight` and `flown`. See `warrener._publishing.ledger.flights`."""

    def __init__(self, in_flight: InFlight, waiting: Waiting, refusals: Refusals, settlement: Settlement) -> None:
        self._settlement = settlement
        self._in_flight = in_flight
        self._waiting = waiting
        self._refusals = refusals
        #: At most the number and the bytes of new messages that wait and are in no batch.
        self._elsewhere = 0
        self._elsewhere_size = 0
        self.batches: Batches = waiting.batches
        #: The envelopes whose messages `join` takes now. The sender adds them, after `can_join`. The set is
        #: cleared when one of the conditions of `can_join` may have changed.
        self.ready: set[Envelope] = waiting.ready

    def can_join(self, envelope: Envelope) -> bool:
        """Whether messages with this envelope can be accepted into batches from now on, until `ready` is cleared.

        This is the usual state of a healthy link: the broker takes publishes, none of this destination is overdue, no refusal
        of it is remembered, its exchange is covered, and no other message has to be written first.
        """
        in_flight, waiting, refusals = self._in_flight, self._waiting, self._refusals
        introductions, delayed = waiting.introductions, waiting.delayed
        # Until `ready` is cleared, no message is added to introductions or to delayed messages.
        self._elsewhere = introductions.unsent + len(delayed)
        self._elsewhere_size = introductions.unsent_size + delayed.size
        return (
            in_flight.main is not None
            and in_flight.publishing
            and not in_flight.paused
            and (envelope.exchange, envelope.routing_key) not in in_flight.overdue
            and not refusals.concern(envelope)
            and waiting.clear
            and envelope.exchange in waiting.introductions.covered
        )

    def add(self, envelope: Envelope, body: bytes, ticket: Ticket, timeout: float, now: float) -> int:
        """Accept one message into the batch that is open; return the number of its id, or 0 if it must `join`.

        This accepts all messages of a batch but the first one. `join` checked the capacity and asked for a write when the
        batch began, so few comparisons are left. A call costs 0.4 us, a call of `join` 1.2 us.
        """
        batch = self.batches.open
        if (
            batch is None
            or envelope not in self.ready
            or batch.timeout != timeout
            or now - batch.accepted_at > TOGETHER
        ):
            return 0
        bodies, size = batch.bodies, batch.size + len(body)
        count = len(bodies)
        if count >= batch.most or size > batch.most_size or len(body) > LARGEST:
            return 0
        batch.envelopes.append(envelope)
        bodies.append(body)
        batch.tickets.append(ticket)
        batch.size = size
        return batch.first_number + count

    def join(self, envelope: Envelope, body: bytes, ticket: Ticket, timeout: float, now: float) -> int:
        """Accept one message into the present batch or a new one; return the number of its id, or 0: there is no capacity."""
        number = self.add(envelope, body, ticket, timeout, now)
        if number:
            return number
        size, batches, limits = len(body), self.batches, self._waiting.limits
        if size > self._refusals.max_size:
            return 0
        count, held = batches.count + self._elsewhere, batches.size + self._elsewhere_size
        # These counts can be too high, so `Waiting.full` decides. It costs 0.4 us, and this first check 0.1 us.
        if (count >= limits.max_buffered or held + size > limits.max_buffered_bytes) and self._waiting.full(size):
            return 0
        batch = batches.begin(timeout, now, limits.max_buffered - count, limits.max_buffered_bytes - held)
        batch.envelopes.append(envelope)
        batch.bodies.append(body)
        batch.tickets.append(ticket)
        batch.size = size
        return batch.first_number

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

    def next_of_run(self, run: RunLike, now: float) -> Flight | None:
        """Accept messages of a run, as many as the window has room for, and return them as a flight; None: no room.

        `flown` must follow.
        """
        in_flight, waiting = self._in_flight, self._waiting
        if not in_flight.publishing or in_flight.paused or in_flight.main is None:
            return None
        bodies = run.bodies[run.at : run.at + min(run.unaccepted, MOST_OF_RUN)]
        size, window = sum(map(len, bodies)), waiting.window
        envelopes = repeat(run.envelope) if run.envelopes is None else islice(run.envelopes, run.at, None)
        count = window.room(bodies, 0, size) or window.room_in_reserve(envelopes, bodies, now)
        if not count:
            return None
        if count < len(bodies):
            bodies = bodies[:count]
            size = sum(map(len, bodies))
        flight = Flight(self.batches.prefix, self.batches.numbers(count), 0.0, run.deadline, now)
        part = slice(run.at, run.at + count)
        flight.envelopes = [run.envelope] * count if run.envelopes is None else run.envelopes[part]
        flight.ids = None if run.ids is None else run.ids[part]
        flight.bodies = bodies
        flight.size = size
        flight.run, flight.start = run, run.next_place
        run.at += count
        run.left += count
        self._settlement.counters.accepted += count
        self._settlement.deadlines.add(flight)
        return flight

    def others_pass(self, run: RunLike) -> bool:
        """Whether other runs may go on although this one had no room: it waits because of its own destination."""
        return self._waiting.window.stops(run.envelope if run.envelopes is None else run.envelopes[run.at])

    def expand_run(self, run: RunLike) -> None:
        """Make deliveries of the messages of a run that are in flight."""
        for epoch in self._in_flight.epochs.values():
            for flight in [each for each in epoch.flights if each.run is run]:
                if flight.waiting:  # False: all its messages have left, and the flight with them
                    epoch.expand(flight)

    @property
    def largest(self) -> float:
        """The size of the largest body that can be accepted."""
        return min(self._waiting.limits.max_buffered_bytes, self._refusals.max_size)

    @property
    def places(self) -> int:
        """At least the number of messages that can be written now."""
        return self._waiting.window.free

    @property
    def others_wait(self) -> bool:
        """Whether messages wait that are in no batch."""
        waiting = self._waiting
        return not waiting.clear or len(waiting.introductions) > 0 or len(waiting.delayed) > 0

    def expand(self) -> None:
        """Let each message of a batch wait by itself."""
        self._waiting.expand_batches()

    def delivery_of(self, ticket: Ticket) -> Delivery:
        """Return the message of this ticket, which has no outcome, as a delivery."""
        if ticket.delivery is None:
            # A ticket may stand for an older message among those that were taken out.
            if any(ticket in batch.tickets[batch.at :] for batch in self.batches.flights):
                self.expand()
            if ticket.delivery is None:
                self._expand_flight_of(ticket)
        return cast("Delivery", ticket.delivery)

    def _expand_flight_of(self, ticket: Ticket) -> None:
        for epoch in self._in_flight.epochs.values():
            if len(epoch.flights) > FEW:
                epoch.expand()
            for flight in tuple(epoch.flights):
                if ticket in flight.tickets[flight.at :]:
                    epoch.expand(flight)
                    if ticket.delivery is not None:
                        return
