"""`Window`: how many messages may be in flight, and which destination may take one more place.

A queue that never confirms looks like any other one until its messages are overdue. So no destination may take the whole
window. The first nine tenths of the places are open to all. The last tenth is the *reserve*: a message gets a place of it
if its destination holds nothing, or if, after that, it holds at most as many places as are still free. So a destination that
does not answer holds at most nine tenths of the window, a second one at most half of the rest, and so on; one that was
answered can go on. The same holds for the bytes of the bodies.

In the open part nothing is counted by destination. In the reserve the counts are made from the messages in flight, and kept
for `COUNT_LASTS` seconds if messages have left since. Old counts are too high, never too low by more than 1/64 of the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import define, frozen

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.introductions import Introductions
from warrener._publishing.ledger.queues import WaitingQueue
from warrener.records import Envelope

__all__ = ["COUNT_LASTS", "PART", "Limits", "Window"]

#: The reserve is this part of the window: one tenth. A window of fewer than ten places has none, nor has one of few bytes.
PART = 10
FEW_BYTES = 64 * 1024
#: Seconds for which counts are used although messages have left since.
COUNT_LASTS = 0.1


@frozen
class Limits:
    """How many messages, and how many bytes of bodies, may wait and may be in flight."""

    max_buffered: int
    max_buffered_bytes: int
    max_in_flight: int
    max_in_flight_bytes: int


@define
class _Held:
    """The places, and the bytes, that one destination holds."""

    places: int = 0
    size: int = 0


class Window:
    """The places of the messages in flight, and of those that had a tag and wait to be written again."""

    def __init__(
        self,
        limits: Limits,
        in_flight: InFlight,
        introductions: Introductions,
        resend: WaitingQueue,
        suspects: WaitingQueue,
    ) -> None:
        self._limits = limits
        self._in_flight = in_flight
        self._introductions = introductions
        self._resend = resend
        self._suspects = suspects
        #: Places, and bytes, that are open to all destinations.
        self._open = limits.max_in_flight - limits.max_in_flight // PART
        size = limits.max_in_flight_bytes
        self._open_size = size if size < FEW_BYTES else size - size // PART
        #: Places that were taken at the last call of `room`.
        self.taken = 0
        #: When to ask again for a message that was refused a place of the reserve; `math.inf` if only an answer helps.
        self.look_at = math.inf
        #: When `looked` was called for the last time.
        self.looked_at = -math.inf
        #: Number of places that each destination had at `_counted_at`, and of those that it has taken from the reserve since then.
        self._held_by: dict[tuple[str, str], _Held] = {}
        self._counted_at = -math.inf
        #: The sum of all places of `_held_by`, those included that were taken since.
        self._counted = 0
        #: The main channel and the number of tags at that instant, and the places that were taken since.
        self._epoch: Epoch | None = None
        self._tags = 0
        self._entered = 0
        #: The last message that `enters` let in; it may be asked about again before it is written.
        self._last: Delivery | None = None

    # --- all destinations -------------------------------------------------------------------------------------------

    def _held(self) -> int:
        """Return the number of places that are taken."""
        return len(self._in_flight) + len(self._resend) + len(self._suspects) + self._introductions.tagged

    def _held_size(self) -> int:
        return self._in_flight.size + self._resend.size + self._suspects.size + self._introductions.tagged_size

    @property
    def free(self) -> int:
        """At least the number of messages that can get a place."""
        return self._limits.max_in_flight - len(self._in_flight)

    @property
    def full(self) -> bool:
        """Whether no message can get a place."""
        return self._held() >= self._limits.max_in_flight

    def stops(self, envelope: Envelope) -> bool:
        """Whether a message that got no place waits because of its own destination, so that others may pass it.

        A large message may wait for bytes although its destination holds no place. No message passes it then, because
        smaller messages would pass it again and again.
        """
        mine = self._held_by.get((envelope.exchange, envelope.routing_key))
        return not self.full and mine is not None and mine.places > 0

    def looked(self, now: float) -> None:
        """Note that the ledger looks now for messages that can get a place."""
        self.looked_at = now
        if self.look_at <= now:
            self.look_at = math.inf

    def has_place(self, size: int, *, beside: Sequence[Delivery] = ()) -> bool:
        """Whether there is a place for one more message, of any destination, after each in `beside` got one."""
        held, limits = self._held() + len(beside), self._limits
        if held >= limits.max_in_flight:
            return False
        held_size = self._held_size() + sum(each.size for each in beside)
        # A message with more bytes than the limit is written when no other message is in flight.
        return held == 0 or held_size + size <= limits.max_in_flight_bytes

    def room(self, bodies: list[bytes], at: int, size: int) -> int:
        """Return for how many of the messages from this index on, of `size` bytes together, there are open places."""
        introductions, in_flight = self._introductions, self._in_flight
        self.taken = held = len(in_flight) + introductions.tagged
        count = min(len(bodies) - at, self._open - held)
        if count <= 0:
            return 0
        left = self._open_size - in_flight.size - introductions.tagged_size
        return count if size <= left else _fitting(bodies, at, count, left)

    # --- the reserve ------------------------------------------------------------------------------------------------

    def enters(self, delivery: Delivery, now: float) -> bool:
        """Whether the message, which has no place yet, gets one now."""
        held, held_size = self._held(), self._held_size()
        if held < self._open and held_size + delivery.size <= self._open_size:
            return True
        if held >= self._limits.max_in_flight:
            return False
        if self._outdated(now):
            self._count(now)
        if self._last is delivery and self._entered:
            self._take(delivery.envelope, delivery.size, -1)
        if not self._admits(delivery.envelope, delivery.size, held, held_size, now):
            return False
        self._last = delivery
        self._take(delivery.envelope, delivery.size, 1)
        return True

    def room_in_reserve(self, envelopes: Iterable[Envelope], bodies: Iterable[bytes], now: float) -> int:
        """Return how many of these messages, the first ones, get a place now."""
        held, held_size = self._held(), self._held_size()
        if held >= self._limits.max_in_flight:
            return 0
        if self._outdated(now):
            self._count(now)
        self._last = None
        number = 0
        for envelope, body in zip(envelopes, bodies, strict=False):
            size = len(body)
            if not self._admits(envelope, size, held + number, held_size, now, may_count=not number):
                break
            held_size += size
            self._take(envelope, size, 1)
            number += 1
        return number

    def _admits(
        self, envelope: Envelope, size: int, held: int, held_size: int, now: float, *, may_count: bool = True
    ) -> bool:
        free, free_size = self._limits.max_in_flight - held, self._limits.max_in_flight_bytes - held_size
        if free <= 0 or (held and size > free_size):
            return False
        while True:
            mine = self._held_by.get((envelope.exchange, envelope.routing_key))
            if mine is None or not mine.places:
                return True
            within = held < self._open or mine.places + 1 < free
            if within and (held_size + size <= self._open_size or mine.size + size <= free_size - size):
                return True
            left = self._counted - held
            # The time of a count grows with the window: count again only when enough messages have left since
            # the last count.
            if not may_count or left <= max(held // 64, min(held // 4, mine.places // 2)):
                break
            self._count(now)
        if left > 0 or (may_count and self._unknown()):
            self.look_at = min(self.look_at, self._counted_at + COUNT_LASTS)
        return False

    def _take(self, envelope: Envelope, size: int, by: int) -> None:
        mine = self._held_by.setdefault((envelope.exchange, envelope.routing_key), _Held())
        mine.places += by
        mine.size += by * size
        self._entered += by
        self._counted += by

    def _outdated(self, now: float) -> bool:
        """Whether the counts are too old, or do not know of messages that were written since."""
        in_flight = self._in_flight
        if in_flight.main is not self._epoch:
            return True
        unknown = self._unknown()
        if unknown > self._limits.max_in_flight // 64:
            return True
        changed = unknown or self._counted != self._held()
        return bool(changed) and not self._counted_at <= now < self._counted_at + COUNT_LASTS

    def _unknown(self) -> int:
        """Return the number of messages that were written since the last count without a question to the reserve."""
        return abs(sum(epoch.last for epoch in self._in_flight.epochs.values()) - self._tags - self._entered)

    def _count(self, now: float) -> None:
        """Count the places and the bytes of each destination."""
        by_envelope: dict[Envelope, _Held] = {}
        in_flight = self._in_flight
        for epoch in in_flight.epochs.values():
            for envelope, places, size in epoch.held():
                held = by_envelope.get(envelope)
                if held is None:
                    held = by_envelope[envelope] = _Held()
                held.places += places
                held.size += size
        back = [*self._resend.live(), *self._suspects.live()]
        for delivery in back + [each for each in self._introductions.live() if each.attempts]:
            held = by_envelope.setdefault(delivery.envelope, _Held())
            held.places += 1
            held.size += delivery.size
        self._held_by = {}
        for envelope, held in by_envelope.items():
            total = self._held_by.setdefault((envelope.exchange, envelope.routing_key), _Held())
            total.places += held.places
            total.size += held.size
        self._counted = sum(held.places for held in by_envelope.values())
        self._counted_at = now
        self._epoch = in_flight.main
        self._tags = sum(epoch.last for epoch in in_flight.epochs.values())
        self._entered = 0
        self._last = None


def _fitting(bodies: list[bytes], at: int, count: int, size: int) -> int:
    """Return how many of `count` messages from this index on fit into `size` bytes together."""
    for number in range(count):
        size -= len(bodies[at + number])
        if size < 0:
            return number
    return count
