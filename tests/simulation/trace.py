"""What happened in a run: the events in order, as a story for people and as a hash for machines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from attrs import define, field, frozen

from tests.simulation.schedule import Call, Item
from warrener.drivers.base import Lane
from warrener.errors import Fault, Nacked, PublishError
from warrener.records import Receipt

__all__ = ["DIALED", "Attempt", "Event", "LinkRecord", "Publish", "Trace", "Verdict", "verdict"]

#: The number of the link that a task dials: several links may be dialed at once.
DIALED: ContextVar[int] = ContextVar("DIALED")
#: How a publish ended: "confirmed", "rejected", "nacked", "unknown".
Verdict = str


def verdict(result: Receipt | PublishError) -> Verdict:
    """Return how certain the outcome is, from the public classes alone."""
    if isinstance(result, Receipt):
        return "confirmed"
    if isinstance(result, Nacked):
        return "nacked"
    return "unknown" if result.may_have_been_delivered else "rejected"


@frozen
class Event:
    """One line of the story."""

    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.at:10.4f}  {self.what}"


@define(eq=False)
class Attempt:
    """One time that a message was handed to a link."""

    number: int
    link: int
    lane: Lane
    channel: int
    tag: int
    at: float
    #: "ack", "nack" or None, and when; whether the broker returned it.
    answer: str | None = None
    answered_at: float | None = None
    returned: bool = False
    #: Whether its last byte may have reached the broker, once that is settled: it did where the broker answered, and
    #: otherwise it is the driver's word at the end of the epoch.
    reached: bool | None = None


@define(eq=False)
class Publish:
    """One message of the workload, from the call to its outcome."""

    item: Item
    call: Call
    body: bytes = field(repr=False)
    called_at: float
    #: The place of the call among all calls.
    order: int
    result: Receipt | PublishError | None = None
    ended_at: float | None = None
    cancelled: bool = False
    #: The words that `outcomes()` said about it.
    late: list[Receipt | PublishError] = field(factory=list[Receipt | PublishError])
    attempts: list[Attempt] = field(factory=list[Attempt])
    message_id: str | None = None

    @property
    def deadline(self) -> float:
        """When it has to have its outcome."""
        return self.called_at + self.call.timeout

    @property
    def final(self) -> Receipt | PublishError | None:
        """What its caller was told, or, where the caller had left, what `outcomes()` said first."""
        return self.result if self.result is not None else (self.late[0] if self.late else None)


@define(eq=False)
class LinkRecord:
    """One link, from the dial to the end of the driver's block."""

    number: int
    at: float
    #: Which endpoint it was dialed to.
    port: int = 0
    #: Of a producer with several links: which of them it is, from 1; 0 where there is one. Each numbers its own from 1.
    member: int = 0
    own_number: int = 0
    #: When the handshake and the declarations were done.
    opened_at: float | None = None
    declared_at: float | None = None
    #: When it was told to end.
    aborted_at: float | None = None
    ended_at: float | None = None
    fault: Fault | None = None
    #: Whether the broker has blocked it, and when it did no longer.
    blocked: bool = False
    unblocked_at: float = 0.0
    #: Whether any ack came on it.
    acked: bool = False
    #: The batches that it was given, and the messages in those of several messages.
    flights: int = 0
    together: int = 0
    #: What was outstanding when it ended.
    outstanding: int = 0
    #: For a link that was replaced because of a missing confirm: since when its oldest publish had waited, and when.
    overdue: tuple[float | None, float] | None = None


class Trace:
    """The record of a run. Plain functions; the clock is the run's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.publishes: dict[int, Publish] = {}
        self.attempts: dict[tuple[int, int, int], Attempt] = {}
        self.links: dict[int, LinkRecord] = {}
        #: When the broker closed a channel, by link and channel, and with which code.
        self.channel_ends: dict[tuple[int, int], tuple[float, int | None]] = {}
        #: What was seen on the way, by name; `coverage` turns these into rows.
        self.seen: set[str] = set()

    def link_of(self, member: int, own_number: int) -> LinkRecord | None:
        """Return the link that a member of the producer gave this number."""
        return next(
            (each for each in self.links.values() if (each.member, each.own_number) == (member, own_number)), None
        )

    def note(self, what: str) -> None:
        """Add a line."""
        self.events.append(Event(self.clock(), what))

    def see(self, name: str) -> None:
        """Remember that something rare happened."""
        self.seen.add(name)

    def hash(self, *more: Any) -> str:
        """Return one hash of all events and of what else the caller thinks telling."""
        digest = hashlib.blake2b(digest_size=16)
        for event in self.events:
            digest.update(repr((event.at, event.what)).encode())
        for thing in more:
            digest.update(repr(thing).encode())
        return digest.hexdigest()

    def story(self) -> str:
        """Return the events as lines."""
        return "\n".join(str(event) for event in self.events)
