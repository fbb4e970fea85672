"""`Epoch`: one open publishing channel of one link, its delivery tags, and which publish a return belongs to."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Flight, Landed
from warrener._publishing.ledger.queues import SLACK
from warrener.records import Envelope, Lane, Returned

__all__ = ["Epoch"]

#: Exchange, routing key, and the message_id or None for any.
_Address: TypeAlias = "tuple[str, str, str | None]"


class Epoch:
    """One open publishing channel of the present link: its tags, and the publishes that wait for an answer.

    Tags count 1, 2, 3 … within an epoch. An answer with `multiple` covers the outstanding tags up to its own. The
    pointer to the lowest outstanding tag makes this, and the search for the oldest publish, O(1) per message.

    A tag is outstanding as a delivery or in a flight, never in both. The first message of the first flight is outstanding.
    """

    __slots__ = (
        "_deadlines", "channel", "checked", "flights", "flown", "holes", "indexed", "lane", "last", "lowest",
        "open_addresses", "open_ids", "open_tokens", "outstanding", "watched",
    )  # fmt: skip

    def __init__(self, lane: Lane, channel: int, deadlines: Deadlines) -> None:
        self.lane = lane
        self.channel = channel
        self._deadlines = deadlines
        #: In order of tag.
        self.flights: deque[Flight] = deque()
        #: Number of outstanding tags in flights.
        self.flown = 0
        #: Tags in flights that were answered before a lower one.
        self.holes: set[int] = set()
        #: In order of tag.
        self.outstanding: dict[int, Delivery] = {}
        #: The last tag assigned.
        self.last = 0
        #: No tag below this one is outstanding; `oldest` raises it.
        self.lowest = 1
        #: The highest tag that the broker has answered or returned. It takes the publishes of a channel in order and checks
        #: each before the next one, so no publish up to this tag can be the cause of a close.
        self.checked = 0
        #: The highest tag whose message was found to be overdue.
        self.watched = 0
        #: Open attempts by message_id, by token and by address, kept from the first return on. An attempt with an answer
        #: stays in the index until it is met there, or until the next `make_index`.
        self.open_ids: dict[str, deque[Delivery]] | None = None
        self.open_tokens: dict[str, Delivery] = {}
        self.open_addresses: dict[_Address, list[Delivery]] = {}
        self.indexed = 0

    def add(self, delivery: Delivery, tag: int, now: float) -> None:
        """Note that the link has taken the message under this tag."""
        self.last = tag
        self.outstanding[tag] = delivery
        delivery.epoch = self
        delivery.tag = tag
        delivery.published_at = now
        if self.open_ids is not None:
            self.index(delivery)

    def take(self, tag: int, multiple: bool) -> list[Delivery]:
        """Take out the publishes that an ack or a nack of `tag` answers, in order of tag.

        Tag 0 and tags that were never assigned answer nothing.
        """
        take = self.outstanding.pop
        if self.checked < tag <= self.last:
            self.checked = tag
        if not multiple:
            delivery = take(tag, None)
            return [] if delivery is None else [delivery]
        if not 0 < tag <= self.last:
            return []
        if not self.outstanding:
            self.lowest = max(self.lowest, tag + 1)
            return []
        tags = range(self.lowest, tag + 1)
        self.lowest = max(self.lowest, tag + 1)
        return [delivery for each in tags if (delivery := take(each, None)) is not None]

    def __len__(self) -> int:
        """Number of outstanding tags."""
        return len(self.outstanding) + self.flown

    # --- flights ----------------------------------------------------------------------------------------------------

    def fly(self, flight: Flight, tag: int, link: int, now: float) -> None:
        """Note that the link has taken the messages that are left in the batch, from this tag on."""
        count = len(flight) - flight.at
        flight.first_tag = tag - flight.at
        flight.link = link
        flight.published_at = now
        self.last = tag + count - 1
        self.flown += count
        self.flights.append(flight)

    def flying(self, tag: int) -> bool:
        """Whether the tag is outstanding in a flight."""
        flight = self._flight_of(tag)
        return flight is not None and tag >= flight.first_tag + flight.at and tag not in self.holes

    def _flight_of(self, tag: int) -> Flight | None:
        flights = self.flights
        if not flights or tag < flights[0].first_tag:
            return None
        flight = flights[0]
        if tag >= flight.first_tag + len(flight):
            flight = flights[bisect_right(flights, tag, key=_first_outstanding) - 1]
        return flight if tag < flight.first_tag + len(flight) else None

    def land(self, tag: int, multiple: bool) -> list[Landed]:
        """Take out the messages of flights that an ack of `tag` answers."""
        if multiple:
            return self._land_up_to(tag) if tag <= self.last else []
        flight = self._flight_of(tag)
        if flight is None:
            return []
        index = tag - flight.first_tag
        if index == flight.at and flight is self.flights[0]:
            return self._land_up_to(tag)
        if index < flight.at or tag in self.holes:
            return []
        self.holes.add(tag)
        self.flown -= 1
        if len(self.holes) > 2 * len(self) + SLACK:
            self.expand()  # or one slow message keeps the answered ones behind it in memory
        return [(flight, index, index + 1)]

    def _land_up_to(self, tag: int) -> list[Landed]:
        landed: list[Landed] = []
        flights, holes = self.flights, self.holes
        while flights:
            flight = flights[0]
            first, count = flight.first_tag, len(flight)
            stop = min(tag + 1 - first, count)
            if stop <= flight.at:
                break
            if holes:
                landed += self._without_holes(flight, stop)
            else:
                landed.append((flight, flight.at, stop))
                self.flown -= stop - flight.at
                flight.at = stop
            if flight.at < count:
                break
            flights.popleft()
            flight.waiting = False
            self._deadlines.forget()
        if holes:
            self._skip_holes()
        return landed

    def _without_holes(self, flight: Flight, stop: int) -> list[Landed]:
        """Take out the front of a flight, without the messages that were taken out before."""
        landed: list[Landed] = []
        for index in range(flight.at, stop):
            if flight.first_tag + index in self.holes:
                self.holes.discard(flight.first_tag + index)
            elif landed and landed[-1][2] == index:
                landed[-1] = (flight, landed[-1][1], index + 1)
            else:
                landed.append((flight, index, index + 1))
        self.flown -= sum(end - start for _, start, end in landed)
        flight.at = stop
        return landed

    def _skip_holes(self) -> None:
        """Forget holes at the front: an answered message is no longer the first one of its flight."""
        while self.flights:
            flight = self.flights[0]
            while flight.at < len(flight) and (tag := flight.first_tag + flight.at) in self.holes:
                self.holes.discard(tag)
                flight.at += 1
            if flight.at < len(flight):
                return
            self.flights.popleft()
            flight.waiting = False
            self._deadlines.forget()

    def expand(self, only: Flight | None = None) -> None:
        """Make deliveries of the messages of one flight, or of all."""
        if only is None:
            flights, self.flights = list(self.flights), deque()
        else:
            flights = [only]
            self.flights.remove(only)
        made: dict[int, Delivery] = {}
        for flight in flights:
            flight.waiting = False
            for index in range(flight.at, len(flight)):
                tag = flight.first_tag + index
                if tag in self.holes:
                    self.holes.discard(tag)
                    continue
                delivery = made[tag] = flight.delivery(index)
                delivery.attempts = 1
                delivery.epoch = self
                delivery.tag = tag
                delivery.published_at = flight.published_at
                self._deadlines.add(delivery)
        self._deadlines.forget(len(flights))
        if not made:
            return
        self.flown -= len(made)
        lowest = next(iter(made))
        if not self.outstanding or next(reversed(self.outstanding)) < lowest:
            self.outstanding |= made
        else:
            # Deliveries and flights may alternate.
            self.outstanding = dict(sorted((self.outstanding | made).items()))
        self.lowest = min(self.lowest, lowest)
        self.watched = min(self.watched, lowest - 1)
        if self.open_ids is not None:
            for delivery in made.values():
                self.index(delivery)
        if self.flights:
            self._skip_holes()

    def held(self) -> Iterator[tuple[Envelope, int, int]]:
        """Return the outstanding publishes, by envelope: their number, and the bytes of their bodies."""
        for delivery in self.outstanding.values():
            yield delivery.envelope, 1, delivery.size
        for flight in self.flights:
            at, envelopes, holes = flight.at, flight.envelopes, self.holes
            if not holes and envelopes.count(envelopes[at]) == len(envelopes):
                yield envelopes[at], len(envelopes) - at, flight.size
                continue
            for index in range(at, len(flight)):
                if flight.first_tag + index not in holes:
                    yield envelopes[index], 1, len(flight.bodies[index])

    # --- the oldest publish -----------------------------------------------------------------------------------------

    def oldest_at(self) -> float | None:
        """Return when the oldest outstanding publish was written."""
        delivery = self.oldest()
        flight = self.flights[0].published_at if self.flights else None
        if delivery is None:
            return flight
        return delivery.published_at if flight is None else min(delivery.published_at, flight)

    def unwatched_at(self) -> float | None:
        """Return when the oldest outstanding publish was written that was not found to be overdue."""
        delivery = self.unwatched()
        flight = self.flights[0].published_at if self.flights else None
        if delivery is None:
            return flight
        return delivery.published_at if flight is None else min(delivery.published_at, flight)

    def oldest(self) -> Delivery | None:
        """Return the delivery with the lowest outstanding tag."""
        outstanding = self.outstanding
        if not outstanding:
            self.lowest = self.last + 1
            return None
        while self.lowest not in outstanding:
            self.lowest += 1
        return outstanding[self.lowest]

    def unwatched(self) -> Delivery | None:
        """Return the oldest outstanding delivery that was not found to be overdue."""
        outstanding = self.outstanding
        if not outstanding:
            return None
        tag = max(self.watched + 1, self.lowest)
        while tag <= self.last:
            delivery = outstanding.get(tag)
            if delivery is not None and not delivery.overdue:
                self.watched = tag - 1
                return delivery
            tag += 1
        self.watched = self.last
        return None

    # --- returns ----------------------------------------------------------------------------------------------------

    def index(self, delivery: Delivery) -> None:
        """Make an outstanding publish findable by its message_id and its token."""
        self.indexed += 1
        if self.open_ids is None or self.indexed > 2 * len(self.outstanding) + SLACK:
            self.make_index()
            return
        self._enter(self.open_ids, delivery)

    def make_index(self) -> dict[str, deque[Delivery]]:
        """Index the publishes that are outstanding now, and no others."""
        ids: dict[str, deque[Delivery]] = {}
        self.open_ids = ids
        self.open_tokens = {}
        self.open_addresses = {}
        for delivery in self.outstanding.values():
            self._enter(ids, delivery)
        self.indexed = len(self.outstanding)
        return ids

    def _enter(self, ids: dict[str, deque[Delivery]], delivery: Delivery) -> None:
        ids.setdefault(delivery.message_id, deque()).append(delivery)
        if delivery.token is not None:
            self.open_tokens[delivery.token] = delivery
        if delivery.envelope.mandatory and not delivery.ambiguous:
            exchange, routing_key = delivery.envelope.exchange, delivery.envelope.routing_key
            for message_id in (None, delivery.message_id):
                self.open_addresses.setdefault((exchange, routing_key, message_id), []).append(delivery)

    def match(self, returned: Returned) -> Delivery | None:
        """Return the one open attempt that the return is certainly about, or None.

        A token of ours decides. Without one, exactly one open attempt must carry the message_id, and exchange, routing key
        and body must agree.
        """
        ids = self.make_index() if self.open_ids is None else self.open_ids
        if returned.token is not None:
            owner = self.open_tokens.get(returned.token)
            if owner is not None and owner.epoch is self:
                return owner
        if returned.message_id is None:
            return None
        carriers = ids.get(returned.message_id)
        if carriers is None:
            return None
        # At most two are looked at, and those with an answer leave the index: a broker can return the same id without end.
        open_ones: list[Delivery] = []
        while carriers and len(open_ones) < 2:
            each = carriers.popleft()
            # A message that was written again is here once, as its later attempt.
            if each.epoch is self and each not in open_ones and not _superseded(each):
                open_ones.append(each)
        carriers.extendleft(reversed(open_ones))
        return open_ones[0] if len(open_ones) == 1 and _agrees(open_ones[0], returned) else None

    def candidates(self, returned: Returned) -> list[Delivery]:
        """Remove the attempts that an unmatched basic.return could be about from the index; return these attempts.

        A broker changes neither properties nor address of a message. Each attempt is taken once: it is in doubt from then on.
        """
        found = self.open_addresses.pop((returned.exchange, returned.routing_key, returned.message_id), [])
        return [each for each in found if each.epoch is self and each.returned is None]


def _first_outstanding(flight: Flight) -> int:
    """Return the tag of the first message of a flight that was not taken out; its index is `at`."""
    return flight.first_tag + flight.at


def _superseded(delivery: Delivery) -> bool:
    """Whether this is an earlier attempt of a message that was written again in the same epoch."""
    return delivery.earlier_of is not None and delivery.earlier_of.epoch is delivery.epoch


def _agrees(delivery: Delivery, returned: Returned) -> bool:
    envelope = delivery.envelope
    return (
        envelope.mandatory
        and envelope.exchange == returned.exchange
        and envelope.routing_key == returned.routing_key
        and delivery.size == returned.body_size
        and (not returned.body_hash or returned.body_hash == hashlib.blake2b(delivery.body, digest_size=16).digest())
    )
