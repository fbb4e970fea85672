"""Flights: messages that are accepted, written and confirmed together, with one entry for all of them.

On a healthy link this is the form of every message. A *batch* gathers messages until the link asks for them. Then it is
written, in one piece or in several, and each piece is a *flight*: messages under consecutive tags. A confirm takes whole
flights, or their front, or one message out of the middle. All messages of a flight have the deadline and the instant of the
first one, at most `TOGETHER` seconds too early for the last one.

Trouble *expands* a flight: each message becomes a `Delivery`, and everything goes on as for a message that was accepted alone.
A nack, a return, the end of a channel or a link, a deadline, a message that is overdue, and a caller who leaves are trouble.

Invariants: ids count in the order of acceptance and tags in the order of writing, so the place of a message in its flight
gives both; ids that callers chose stand in a list. Nothing is ever removed from a flight: a message that has to leave expands it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.queues import WaitingQueue
from warrener._ticket import Ticket
from warrener.records import LINK_SHIFT, Envelope

__all__ = ["TOGETHER", "Batches", "Flight", "Landed", "RunLike", "Ticket"]

#: Messages that were accepted within this number of seconds can be in one batch.
TOGETHER: Final = 0.001
#: The numbers of ids begin here, behind those of ids that are made one by one.
_FIRST_NUMBER: Final = 1 << 47


class RunLike(Protocol):
    """The messages of one call, which wait together."""

    envelope: Any
    #: Bodies, and the index of the next one to accept.
    bodies: list[bytes]
    at: int
    #: The message_id of each body, and its envelope, if the messages have their own; see `Flight.ids`.
    ids: list[str] | None
    envelopes: list[Envelope] | None
    deadline: float
    #: Number of accepted messages without an outcome.
    left: int

    @property
    def unaccepted(self) -> int:
        """Number of bodies that are not accepted yet."""
        ...

    @property
    def next_place(self) -> int:
        """The place in the run of the next message to accept."""
        ...

    def confirmed(self, flight: Flight, start: int, stop: int) -> Any:
        """Messages of a flight are confirmed; return the ticket of the task to wake, or None."""
        ...

    def expanded(self, place: int, delivery: Delivery) -> None:
        """The message at this place has become a delivery."""
        ...


class Flight:
    """Messages with one deadline, in a batch or under consecutive tags."""

    __slots__ = (
        "accepted_at", "at", "bodies", "deadline", "envelopes", "first_number", "first_tag", "ids", "link", "most",
        "most_size", "prefix", "published_at", "run", "size", "start", "tickets", "timeout", "waiting",
    )  # fmt: skip

    def __init__(self, prefix: str, first_number: int, timeout: float, deadline: float, accepted_at: float) -> None:
        self.prefix = prefix
        self.first_number = first_number
        self.timeout = timeout
        self.deadline = deadline
        self.accepted_at = accepted_at
        self.envelopes: list[Envelope] = []
        self.bodies: list[bytes] = []
        #: One for each message; empty for a part of a run.
        self.tickets: list[Ticket] = []
        #: The run that the messages belong to, and the place of the first of them in it.
        self.run: RunLike | None = None
        self.start = 0
        #: The message_ids, if callers chose them. Another message in flight may have the same one. So each message has a token,
        #: which counts as the ids of other flights do, and a return is matched by it.
        self.ids: list[str] | None = None
        #: The index of the first message that was not taken out: written from a batch, or answered.
        self.at = 0
        #: Bytes of the bodies from there on.
        self.size = 0
        #: Of a batch that takes more messages: how many it may hold, and how many bytes of bodies.
        self.most = 0
        self.most_size = 0
        #: The tag of index 0; 0: not written.
        self.first_tag = 0
        self.link = 0
        self.published_at = 0.0
        #: Whether the deadline counts.
        self.waiting = True

    def __len__(self) -> int:
        """Number of messages, those included that were taken out."""
        return len(self.bodies)

    def code(self, index: int) -> int:
        """Return the number of the link and the number of the id, for the receipt of the message at this index."""
        return (self.link << LINK_SHIFT) + self.first_number + index

    def text(self, index: int) -> str:
        """Return the message_id at this index."""
        return self._numbered(index) if self.ids is None else self.ids[index]

    def _numbered(self, index: int) -> str:
        return f"{self.prefix}{self.first_number + index:012x}"

    def front(self, count: int) -> Flight:
        """Take the next messages out of a batch, as a flight of their own."""
        flight = Flight(self.prefix, self.first_number + self.at, self.timeout, self.deadline, self.accepted_at)
        part = slice(self.at, self.at + count)
        flight.envelopes, flight.bodies, flight.tickets = self.envelopes[part], self.bodies[part], self.tickets[part]
        flight.run, flight.start = self.run, self.start + self.at
        flight.size = sum(map(len, flight.bodies))
        self.bodies[part] = [b""] * count
        self.at += count
        self.size -= flight.size
        return flight

    def take(self, start: int, stop: int) -> int:
        """Count the messages of these indexes as answered; drop their bodies and return the number of bytes."""
        if start == 0 and stop == len(self.bodies):
            size, self.size = self.size, 0
            return size
        size = sum(map(len, self.bodies[start:stop]))
        self.bodies[start:stop] = [b""] * (stop - start)
        self.size -= size
        return size

    def delivery(self, index: int) -> Delivery:
        """Return the message at this index as a delivery of its own."""
        token = None if self.ids is None else self._numbered(index)
        delivery = Delivery(self.envelopes[index], self.bodies[index], self.text(index), self.deadline, token)
        if self.run is not None:
            delivery.waiter = self.run
            self.run.expanded(self.start + index, delivery)
        else:
            ticket = self.tickets[index]
            ticket.delivery = delivery
            delivery.waiter = ticket
        return delivery


#: Messages of a flight that were confirmed: the flight, and the indexes of the first one and behind the last one.
Landed = tuple[Flight, int, int]


class Batches:
    """The batches that wait to be written, in the order of acceptance. While there are any, no other new message waits."""

    __slots__ = ("_count", "_deadlines", "_gone", "_next_number", "_noted", "_size", "flights", "open", "prefix")

    def __init__(self, deadlines: Deadlines, prefix: str) -> None:
        self.flights: deque[Flight] = deque()
        #: The last of them, while messages may join it; its messages are not in the counts here yet.
        self.open: Flight | None = None
        self._count = 0
        self._size = 0
        self.prefix = prefix
        self._deadlines = deadlines
        self._next_number = _FIRST_NUMBER
        #: Number of messages that have left, and of those that were counted as accepted.
        self._gone = 0
        self._noted = 0

    @property
    def count(self) -> int:
        """Number of messages."""
        return self._count if self.open is None else self._count + len(self.open.bodies)

    @property
    def size(self) -> int:
        """Bytes of their bodies."""
        return self._size if self.open is None else self._size + self.open.size

    def begin(self, timeout: float, now: float, most: int, most_size: int) -> Flight:
        """Begin a batch of at most `most` messages with `most_size` bytes, and return it."""
        self.close()
        batch = Flight(self.prefix, self._next_number, timeout, now + timeout, now)
        batch.most, batch.most_size = most, most_size
        self._deadlines.add(batch)
        self.flights.append(batch)
        self.open = batch
        return batch

    def close(self) -> None:
        """Let no more messages join the last batch."""
        batch, self.open = self.open, None
        if batch is not None:
            count = len(batch.bodies)
            self._count += count
            self._size += batch.size
            self._next_number += count

    def numbers(self, count: int) -> int:
        """Return the first of `count` new numbers of ids.

        The ids of one batch are consecutive, so the last batch takes no more messages after this call.
        """
        self.close()
        number = self._next_number
        self._next_number = number + count
        return number

    def new(self) -> int:
        """Return how many messages came since the last call."""
        total = self.count + self._gone
        new, self._noted = total - self._noted, total
        return new

    def take(self, count: int) -> Flight:
        """Take out the first `count` messages, which stand in the first batch."""
        self.close()
        batch = self.flights[0]
        if count < len(batch) - batch.at:
            flight = batch.front(count)
            self._deadlines.add(flight)
        else:
            flight = self.flights.popleft()
        self._left(count, flight.size)
        return flight

    def expand(self, queue: WaitingQueue) -> None:
        """Put all messages into the queue, as deliveries."""
        self.close()
        flights, self.flights = self.flights, deque()
        for flight in flights:
            flight.waiting = False
            for index in range(flight.at, len(flight)):
                delivery = flight.delivery(index)
                self._deadlines.add(delivery)
                queue.append(delivery)
            self._left(len(flight) - flight.at, flight.size)
        self._deadlines.forget(len(flights))

    def _left(self, count: int, size: int) -> None:
        self._count -= count
        self._size -= size
        self._gone += count
