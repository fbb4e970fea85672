"""What happened in a run: the events in order, as a story for people and as a hash for machines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen

from warrener.errors import PublishError
from warrener.records import Receipt
from warrener.testing.simulation.schedule import Call, Item

__all__ = ["Attempt", "Dial", "Event", "Publish", "Trace", "Verdict", "verdict"]

#: How a publish ended: "confirmed", "rejected", "nacked", "unknown".
Verdict = str


def verdict(result: Receipt | PublishError) -> Verdict:
    """Return how certain the outcome is, from the public classes alone."""
    from warrener.errors import Nacked

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
    channel: int
    tag: int
    at: float
    #: "ack", "nack" or None, and whether the broker returned it.
    answer: str | None = None
    returned: bool = False


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
class Dial:
    """One dial and the connection that it may have led to."""

    link: int
    at: float
    connected_at: float | None = None
    #: When the client closed its end, or the dial failed.
    ended_at: float | None = None


class Trace:
    """The record of a run. Plain functions; the clock is the run's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.publishes: dict[int, Publish] = {}
        self.attempts: dict[tuple[int, int, int], Attempt] = {}
        self.dials: list[Dial] = []
        #: What was seen on the way, by name; `reach` turns these into rows.
        self.seen: set[str] = set()

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
