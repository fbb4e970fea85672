"""`Waiting`: the messages that wait to be written, how many may wait, and which one is next."""

from __future__ import annotations

from itertools import islice

from warrener._publishing.ledger.aside import Aside
from warrener._publishing.ledger.delayed import Delayed
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Batches, Flight
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.introductions import Introductions, Key
from warrener._publishing.ledger.outcomes import refused
from warrener._publishing.ledger.queues import WaitingQueue
from warrener._publishing.ledger.refusals import Refusals
from warrener._publishing.ledger.settlement import Settlement
from warrener._publishing.ledger.window import COUNT_LASTS, PART, Limits, Window
from warrener.errors import DeadlineExceeded
from warrener.records import Envelope, Lane

__all__ = ["Waiting"]

#: Seconds for which no message passes a message that gets no place because of its destination.
PATIENCE = 0.25


class Waiting:
    """The queues in front of the link.

    *batches*: never had a tag, and go to the main channel together. *unsent*: never had a tag; batches and unsent messages
    never wait at the same time. *resend*: had a tag. *suspects*: had one on a channel that the broker closed; each goes alone.
    *introductions*: to exchanges that are not covered on this link. *delayed*: were nacked, and wait for an instant.
    *aside*: never had a tag; their destination may take no more of the window (`window`), and younger messages pass them.
    """

    def __init__(
        self, settlement: Settlement, in_flight: InFlight, refusals: Refusals, limits: Limits, id_prefix: str
    ) -> None:
        self.limits = limits
        self.batches = Batches(settlement.deadlines, id_prefix)
        #: The envelopes whose messages can join a batch now.
        self.ready: set[Envelope] = set()
        self.unsent = WaitingQueue()
        self.resend = WaitingQueue()
        self.suspects = WaitingQueue()
        self.introductions = Introductions()
        self.delayed = Delayed(limits.max_buffered, limits.max_buffered_bytes)
        self.aside = Aside()
        self.window = Window(limits, in_flight, self.introductions, self.resend, self.suspects)
        #: The first message that waits for a place because of its destination; for a message of a batch, its number.
        #: Others pass it after `_first_looks` further looks of the timer; a look before `_first_until` is not counted.
        self._first: Delivery | int | None = None
        self._first_until = 0.0
        self._first_looks = 0
        #: The number of the first message of a batch that got no place, the places that were taken then, and how long that counts.
        self._refused = 0
        self._refused_taken: int = 0
        self._refused_until = 0.0
        #: The messages of batches below this number have the destination of the first one.
        self._seen = 0
        #: Whether the next message on the suspects' channel is a suspect, if one waits. Suspects and introductions take turns.
        self.suspect_first = True
        #: Destinations of which a suspect was not answered: further suspects of theirs go behind all others.
        self._slow: set[tuple[str, str]] = set()
        #: Messages that `next` found to be past their deadline, or refused; the next `Ledger.expire` reports them.
        self.ended: list[Delivery] = []
        self._settlement = settlement
        self._in_flight = in_flight
        self._refusals = refusals
        self._closed = False

    # --- capacity ---------------------------------------------------------------------------------------------------

    def full(self, size: int) -> bool:
        """Whether there is no capacity now for a body of `size` bytes. Always true once closed."""
        unsent, introductions, delayed, limits = self.unsent, self.introductions, self.delayed, self.limits
        batches, aside = self.batches, self.aside
        held_size = batches.size + unsent.size + introductions.unsent_size + delayed.size + aside.size
        if held_size + size > limits.max_buffered_bytes:
            return True
        held = batches.count + len(unsent.entries) - unsent.dead + introductions.unsent + len(delayed) + aside.count
        return held >= limits.max_buffered or self._closed

    def crowds(self, destination: tuple[str, str], size: int) -> bool:
        """Whether messages of this destination have been passed, and one more would be above nine tenths of the buffer.

        `size` is the number of bytes of that new message.
        """
        aside, limits = self.aside, self.limits
        if not aside.passed or limits.max_buffered < PART:
            return False
        held, held_size = aside.held(destination)
        return (
            held + 1 > limits.max_buffered - limits.max_buffered // PART
            or held_size + size > limits.max_buffered_bytes - limits.max_buffered_bytes // PART
        ) and held > 0

    def close(self) -> None:
        """Accept nothing more."""
        self._closed = True

    # --- batches ----------------------------------------------------------------------------------------------------

    @property
    def clear(self) -> bool:
        """Whether no message waits that has to be written before a new one."""
        return not (
            self.unsent.entries
            or self.resend.entries
            or self.suspects.entries
            or self.introductions.opened
            or self.aside.count
        )

    def expand_batches(self) -> None:
        """Let each message of a batch wait by itself."""
        self.ready.clear()
        if self.batches.flights:
            self._settlement.counters.accepted += self.batches.new()
            self.batches.expand(self.unsent)

    def next_flight(self, now: float) -> Flight | None:
        """Take out the messages of a batch that can be written now; None if there are none."""
        batches = self.batches
        if not batches.flights:
            return None
        batch = batches.flights[0]
        if batch.deadline <= now or not self.clear:
            self.expand_batches()
            return None
        self._settlement.counters.accepted += batches.new()
        count = self.window.room(batch.bodies, batch.at, batch.size)
        count = count or self._room_in_reserve(batch, now)
        return batches.take(count) if count else None

    def _room_in_reserve(self, batch: Flight, now: float) -> int:
        """Return how many messages of the first batch get a place of the reserve.

        If none does, and messages to other destinations may pass this batch, all batches are expanded.
        """
        at = batch.at
        number = batch.first_number + at
        # The link asks with each new message. If no place came free since, the answer is the same, at least for a moment.
        if number == self._refused and self.window.taken == self._refused_taken and now < self._refused_until:
            return 0
        count = self.window.room_in_reserve(islice(batch.envelopes, at, None), islice(batch.bodies, at, None), now)
        if count:
            return count
        envelope = batch.envelopes[at]
        if not self.window.stops(envelope):
            return 0
        if not self._has_waited(number, now):
            self._refused, self._refused_taken = number, self.window.taken
            self._refused_until = min(self._first_until, now + COUNT_LASTS)
        elif self._others_wait(number, _destination(envelope)):
            self.expand_batches()
            self._first = self.unsent.head()
        return 0

    def _others_wait(self, number: int, destination: tuple[str, str]) -> bool:
        """Whether messages to another destination stand in batches behind this one. Each message is looked at once."""
        seen = max(self._seen, number)
        for batch in reversed(self.batches.flights):
            self._seen = max(self._seen, batch.first_number + len(batch))
            new = {*batch.envelopes[max(seen - batch.first_number, 0) :]}
            if any(_destination(each) != destination for each in new):
                return True
            if batch.first_number <= seen:
                break
        return False

    def _has_waited(self, first: Delivery | int, now: float) -> bool:
        """Whether this message has waited long enough at the head, so that others may pass it."""
        if first != self._first:
            self._first, self._first_until, self._first_looks = first, now + PATIENCE / 2, 2
        # Two looks of the timer: if the program was busy for that time, it reads the answers that have arrived in between.
        looked_at = self.window.looked_at
        if self._first_looks and looked_at >= self._first_until:
            self._first_until, self._first_looks = looked_at + PATIENCE / 2, self._first_looks - 1
        if self._first_looks:
            self.window.look_at = min(self.window.look_at, self._first_until)
        return not self._first_looks

    # --- which message is next --------------------------------------------------------------------------------------

    def key(self, delivery: Delivery) -> Key | None:
        """Return the key under which the message has to be introduced; None if it may go to the main channel."""
        envelope = delivery.envelope
        if envelope.exchange not in self.introductions.covered:
            return envelope.exchange
        return self._refusals.doubt(delivery.envelope) if self._refusals.active else None

    def next(self, now: float) -> Delivery | None:
        """Return the message to write next on an open channel; its `lane` says on which."""
        in_flight = self._in_flight
        if self.delayed.entries:
            self._take_due(now)
        if in_flight.suspect is not None:
            alone = self.suspects.entries and (self.suspect_first or not self.introductions.waiting)
            delivery = self._next_alone(now) if alone else self._next_introduction(now)
            if delivery is None and self.suspects.entries and not alone:
                delivery = self._next_alone(now)  # it was the turn of an introduction whose messages have all left
            if delivery is not None:
                return delivery
        if in_flight.main is None:
            return None
        delivery = self._routed(self.resend, now)
        if delivery is not None:
            return delivery
        if self.aside.count and (delivery := self._first_aside(now)) is not None:
            return delivery if self.window.has_place(delivery.size) else None
        while (queue := self.introductions.ready()) is not None:
            delivery = self._unexpired(queue, now)
            if delivery is not None:
                delivery.lane = Lane.MAIN
                if delivery.attempts or self._enters(delivery, now):
                    self.aside.passed = self.aside.count > 0
                    return delivery
                if not self._set_aside(queue, delivery, now):
                    return None
        while (delivery := self._routed(self.unsent, now)) is not None:
            if self._enters(delivery, now):
                self.aside.passed = self.aside.count > 0
                return delivery
            if not self._set_aside(self.unsent, delivery, now):
                return None
        if in_flight.suspect is not None and not self.suspects.entries:
            return self._next_introduction(now)
        return None

    def _enters(self, delivery: Delivery, now: float) -> bool:
        return not self.aside.has(_destination(delivery.envelope)) and self.window.enters(delivery, now)

    def _set_aside(self, queue: WaitingQueue, delivery: Delivery, now: float) -> bool:
        """Let younger messages pass the head of the queue, which gets no place. False: it has to wait there."""
        destination = _destination(delivery.envelope)
        # Messages to other destinations have waited once; they need not wait again for each further destination that is set aside.
        passes = self.window.stops(delivery.envelope) and (self.aside.count or self._has_waited(delivery, now))
        if not (passes or self.aside.has(destination)):
            return False
        queue.take_head()
        self.aside.add(destination, delivery)
        return True

    def _first_aside(self, now: float) -> Delivery | None:
        """Return the first message that was set aside and gets a place now, or waits for bytes and may not be passed again."""
        if self.window.full:
            return None
        for destination, queue in list(self.aside.queues.items()):
            while (delivery := self._unexpired(queue, now)) is not None:
                if not self.window.enters(delivery, now) and self.window.stops(delivery.envelope):
                    break
                key = self.key(delivery)
                if key is None:
                    delivery.lane = Lane.MAIN
                    return delivery
                queue.take_head()
                self.introductions.add(key, delivery)
            else:
                self.aside.queues.pop(destination, None)
        return None

    def _take_due(self, now: float) -> None:
        """Let the delayed messages whose instant has come be written next, as far as the window has places."""
        taken: list[Delivery] = []
        while (delivery := self.delayed.due(now)) is not None and self.window.has_place(delivery.size, beside=taken):
            self.delayed.remove(delivery)
            taken.append(delivery)
        self.put_back(taken)

    def _routed(self, queue: WaitingQueue, now: float) -> Delivery | None:
        """Return the first message that may go to the main channel; those before it wait for their introduction."""
        while queue.entries and (delivery := self._unexpired(queue, now)) is not None:
            key = self.key(delivery)
            if key is None:
                return delivery
            queue.take_head()
            self.introductions.add(key, delivery)
        return None

    def _next_alone(self, now: float) -> Delivery | None:
        """Return a suspect, if every message on the suspects' channel has been answered or is overdue there."""
        epoch = self._in_flight.suspect
        if epoch is not None and all(each.passed for each in epoch.outstanding.values()):
            return self._unexpired(self.suspects, now)
        return None

    def _next_introduction(self, now: float) -> Delivery | None:
        if not self.introductions.waiting:
            return None
        epoch = self._in_flight.suspect
        if epoch is not None and any(each.alone and not each.passed for each in epoch.outstanding.values()):
            return None
        while (queue := self.introductions.due()) is not None:
            delivery = self._unexpired(queue, now)
            if delivery is not None and not (self._refusals.new and self.refuse_if_new(delivery, self.ended)):
                if not delivery.attempts and not self.window.has_place(delivery.size):
                    return None
                delivery.lane = Lane.SUSPECT
                return delivery
        return None

    @property
    def wants_suspect_channel(self) -> bool:
        """Whether messages wait for a channel of their own."""
        return bool(self.suspects.entries) or self.introductions.waiting

    # --- coming back and leaving ------------------------------------------------------------------------------------

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Let messages whose attempt ended wait again, in front of younger ones. They come in the order of acceptance."""
        suspects: list[Delivery] = []
        resend: list[Delivery] = []
        introduced: dict[Key, list[Delivery]] = {}
        for delivery in deliveries:
            if delivery.alone:
                delivery.lane = Lane.SUSPECT
                suspects.append(delivery)
                continue
            delivery.lane = Lane.MAIN
            key = self.key(delivery)
            if key is None:
                resend.append(delivery)
            else:
                introduced.setdefault(key, []).append(delivery)
        self.suspects.put_back([each for each in suspects if _destination(each.envelope) not in self._slow])
        for each in suspects:
            if each.queue is None:
                self.suspects.append(each)
        self.resend.put_back(resend)
        for key, group in reversed(introduced.items()):
            self.introductions.put_back(key, group)

    def unanswered(self, suspect: Delivery) -> None:
        """The broker has not answered a suspect in time: other suspects of its destination go behind all others."""
        self._slow.add(_destination(suspect.envelope))
        if len(self.suspects):
            self.put_back(self.suspects.take_all())
        else:
            self._slow.clear()

    def new_link(self) -> None:
        """A new link begins: exchanges have to be introduced again, and messages that come back wait for that."""
        self.introductions.new_link()
        self.put_back(self.resend.take_all())
        self.unsent.put_back(self.aside.take_all())

    def live(self) -> list[Delivery]:
        """Return all messages that wait, those that come back first."""
        self.expand_batches()
        back = [*self.suspects.live(), *self.resend.live(), *self.introductions.live()]
        return [*back, *self.aside.live(), *self.delayed.live(), *self.unsent.live()]

    def __len__(self) -> int:
        """Number of messages that wait."""
        back = len(self.resend) + len(self.suspects) + len(self.introductions) + len(self.delayed)
        return self.batches.count + len(self.unsent) + self.aside.count + back

    @property
    def size(self) -> int:
        """Bytes of their bodies."""
        introductions = self.introductions
        return (
            self.batches.size
            + self.unsent.size
            + self.aside.size
            + self.resend.size
            + self.suspects.size
            + self.delayed.size
            + introductions.unsent_size
            + introductions.tagged_size
        )

    def expire(self, delivery: Delivery, settled: list[Delivery]) -> None:
        """End a message that waits and is past its deadline."""
        assert delivery.queue is not None
        delayed = delivery.queue is self.delayed
        delivery.queue.remove(delivery)
        if delayed:
            reason = "its deadline passed during the delay before the next attempt"
        elif not self._in_flight.publishing:
            reason = "its deadline passed while there was no connection"
        elif self._in_flight.paused:
            reason = "its deadline passed while the broker blocked publishers"
        else:
            reason = "its deadline passed before it was written"
        settlement = self._settlement
        settlement.end_unwritten(delivery, DeadlineExceeded, reason, settlement.last_fault, settled)

    def refuse_if_new(self, delivery: Delivery, settled: list[Delivery]) -> bool:
        """End a message that waits, if a new refusal is about it."""
        fault = self._refusals.newly(delivery)
        if fault is None or delivery.queue is None:
            return False
        delivery.queue.remove(delivery)
        self._settlement.answer(delivery, refused(delivery, fault, from_memory=True), settled)
        return True

    def _unexpired(self, queue: WaitingQueue, now: float) -> Delivery | None:
        while (delivery := queue.head()) is not None and delivery.deadline <= now:
            self.expire(delivery, self.ended)
        return delivery


def _destination(envelope: Envelope) -> tuple[str, str]:
    return envelope.exchange, envelope.routing_key
