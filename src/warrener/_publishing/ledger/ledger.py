"""The delivery ledger: what became of every accepted publish. Pure: no I/O, no clock, no rng, no await.

The ledger owns each `Delivery` from `Ledger.accept` until its outcome. Its owner feeds it facts (a confirm, a return, a
closed channel, a lost link, the time) and each fact answers with the deliveries that got their outcome by it; the owner
writes what `Ledger.next` says. Time enters as `now`, monotonic seconds. F, R and I numbers refer to docs/guarantees.md.

**Where a delivery is.** In one queue, in flight, or settled::

    accept ──► fresh ──sent──► in flight ──ack, nack──────────────────────► settled
                                │  │  ▲
              epoch ended, again◄──┘  └──suspects◄── channel closed by the broker, nobody to pin it on

*fresh* was never handed over and is bounded by `max_buffered` and `max_buffered_bytes`. *again* and *suspects* were, and
keep their place in the in-flight window: in flight + again + suspects ≤ `max_in_flight`, so nothing that comes back can
grow the memory (R8). *again* goes out before *fresh*, both in the order of acceptance (R7, I35); suspects go out one at
a time on a channel of their own while the others pass them by.

**Tags** belong to an epoch (link, channel) and count 1, 2, 3 … in it (I6). An epoch is a dict from tag to delivery and a
pointer to the lowest tag that is outstanding, so that `multiple`, which covers the outstanding tags up to its own (F4),
and the oldest publish cost O(1) per message however many are in flight. When the epoch ends it is dropped; facts about a channel that
is not open change nothing but a counter (I14).

**What an attempt can end as** is a `Verdict`; the outcome of a delivery is the `fold` of its attempts (R5): CONFIRMED,
else UNKNOWN, else NACKED, else REJECTED. Every verdict but UNKNOWN settles the delivery at once, so earlier attempts can
only be UNKNOWN and one count, `Delivery.unanswered`, holds all of them. At the end of an epoch the driver's *written*
(the highest tag whose last byte may have left) decides, tag by tag:

* above `written`: it was not sent. The attempt is unmade, the delivery waits in front of the younger ones;
* returned by the broker: `Unroutable`, whatever follows the return (I12);
* otherwise UNKNOWN (F5, F6): `at_least_once` sends it again, `at_most_once` ends it as `Unconfirmed`.

**A channel closed by the broker** names a reply code, not a tag (F5). RabbitMQ checks a publish before it routes it, so
where exactly one outstanding publish can have been seen, and the code is one that a publish causes, that publish is
guilty and in no queue by this attempt: `PublishRefused`. Otherwise all that were outstanding become suspects. A suspect
was UNKNOWN in the crowd; when it is refused alone afterwards, its first attempt may still have been stored (the exchange
may have existed then). `PublishRefused` then says `may_have_been_delivered=True`, and the counters hold it as UNKNOWN.

**Deadlines and cancellation** take the caller away, not the tag. A delivery in flight whose caller has left keeps its
slot until the broker answers or the epoch ends; it is never sent again, and what became of it goes to `Ledger.late`:
exactly one `Outcome` for each delivery that was cancelled after it was handed over, or was `Unconfirmed` at its deadline
while in flight.

**The confirm clock** (R9) measures the oldest outstanding publish of the link. It stands still while the broker blocks
us, and starts anew when it no longer does.

What must stay true: an outcome is set once; CONFIRMED only by an ack of the tag with no return that is or could be its
own (R2); REJECTED only where every attempt is certain (R3); accepted = confirmed + rejected + nacked + unknown + pending
after every call (R24).
"""

from __future__ import annotations

import enum
import hashlib
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define

from warrener.errors import (
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishError,
    PublishRefused,
    Unconfirmed,
    Unroutable,
    printable,
)
from warrener.records import Envelope, Lane, Outcome, Receipt, Returned

__all__ = ["Counters", "Delivery", "Ledger", "Verdict", "fold", "verdict_of"]

#: Reply codes of a channel.close that one publish causes by itself: content-too-large, access-refused, not-found,
#: precondition-failed (AMQP 0-9-1, 1.2; RabbitMQ uses the last three). Anything else may have come from elsewhere.
REFUSALS = frozenset({311, 403, 404, 406})

#: A structure that deletes lazily may hold this many dead entries beyond the number of its live ones.
_SLACK = 64


class Verdict(enum.IntEnum):
    """How certain an attempt, or a whole delivery, has ended; ordered by what wins in `fold`."""

    REJECTED = 0
    """Certain: in no queue."""
    NACKED = 1
    """Refused by the broker, storage not excluded (F2)."""
    UNKNOWN = 2
    """It may or may not be in a queue."""
    CONFIRMED = 3
    """The broker's ack."""


def fold(verdicts: Iterable[Verdict]) -> Verdict:
    """Return what a delivery ended as, given how its attempts did (R5); REJECTED where there was none.

    Commutative, associative, idempotent and monotone (I16): it is the maximum in C > U > N > R.
    """
    return max(verdicts, default=Verdict.REJECTED)


def verdict_of(result: Receipt | PublishError) -> Verdict:
    """Return the verdict that an outcome states."""
    if isinstance(result, Receipt):
        return Verdict.CONFIRMED
    if isinstance(result, Nacked):
        return Verdict.NACKED
    return Verdict.UNKNOWN if result.may_have_been_delivered else Verdict.REJECTED


class Delivery:
    """One accepted publish; once accepted, the ledger owns it and everybody else only reads it."""

    __slots__ = (
        "abandoned", "ambiguous", "attempts", "body", "deadline", "envelope", "epoch", "lane", "message_id", "outcome",
        "permit", "queue", "returned", "sent_at", "size", "suspected", "tag", "token", "unanswered", "waiter", "waiting",
    )  # fmt: skip

    def __init__(
        self, envelope: Envelope, body: bytes, message_id: str, deadline: float, token: str | None = None
    ) -> None:
        self.envelope = envelope
        self.body = body
        self.message_id = message_id
        #: Monotonic seconds; `math.inf` for none.
        self.deadline = deadline
        self.token = token
        self.size = len(body)
        #: Opaque: who waits for the outcome. The ledger sets it to None when that caller has left (`Ledger.cancel`).
        self.waiter: Any = None
        #: Opaque: the breaker's permit, where it was accepted as a probe.
        self.permit: Any = None
        #: Set once, by the ledger.
        self.outcome: Receipt | PublishError | None = None
        #: Whether the caller left after something had been handed over and before the outcome.
        self.abandoned = False
        #: Publishes on the wire; one that was certainly not sent is not counted.
        self.attempts = 0
        #: Of the ended attempts, how many may have reached the broker: all UNKNOWN, for anything else settles.
        self.unanswered = 0
        #: Attempts made alone, as a suspect of a channel close.
        self.suspected = 0
        #: Which channel the next attempt takes.
        self.lane = Lane.MAIN
        #: Whether a caller still waits: no outcome, not cancelled. Its deadline counts only as long.
        self.waiting = True
        #: Where it is: in a queue, in an epoch, or in neither (settled, or cancelled before it was handed over).
        self.queue: _Queue | None = None
        self.epoch: _Epoch | None = None
        #: Of the present attempt: delivery tag, instant of hand-over, the broker's return, a return that may be its own.
        self.tag = 0
        self.sent_at = 0.0
        self.returned: Returned | None = None
        self.ambiguous = False

    def __repr__(self) -> str:
        return f"<Delivery {printable(self.message_id)} attempts={self.attempts} outcome={self.outcome!r}>"


@define
class Counters:
    """Plain counts since the start. `accepted` = confirmed + rejected + nacked + unknown + what is pending (R24)."""

    accepted: int = 0
    confirmed: int = 0
    #: Certain to be in no queue: not sent (cancelled in time included), returned, or refused alone.
    rejected: int = 0
    nacked: int = 0
    unknown: int = 0
    #: Cancelled before anything was handed over; part of `rejected`.
    cancelled: int = 0
    #: Attempts beyond the first.
    resent: int = 0
    returned: int = 0
    #: Answers that came after the deadline; they change none of the counts above.
    late: int = 0
    #: Facts that a correct broker does not state: a tag settled twice or never assigned, a return of nothing.
    anomalies: int = 0
    #: Facts about a channel that is no longer open.
    stale: int = 0


class _Queue:
    """Deliveries waiting to be written, first in first out; one in the middle leaves in O(1), its entry stays behind.

    Dead entries are dropped when they reach the head, or when they outnumber the live ones.
    """

    __slots__ = ("dead", "entries", "size")

    def __init__(self) -> None:
        self.entries: deque[Delivery] = deque()
        #: The bodies of the live ones.
        self.size = 0
        self.dead = 0

    def __len__(self) -> int:
        return len(self.entries) - self.dead

    def live(self) -> list[Delivery]:
        return [delivery for delivery in self.entries if delivery.queue is self]

    def append(self, delivery: Delivery) -> None:
        delivery.queue = self
        self.size += delivery.size
        self.entries.append(delivery)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Put them, in order, in front of all others."""
        for delivery in deliveries:
            delivery.queue = self
            self.size += delivery.size
        self.entries.extendleft(reversed(deliveries))

    def head(self) -> Delivery | None:
        entries = self.entries
        while entries:
            delivery = entries[0]
            if delivery.queue is self:
                return delivery
            entries.popleft()
            self.dead -= 1
        return None

    def remove(self, delivery: Delivery) -> None:
        delivery.queue = None
        self.size -= delivery.size
        if self.entries[0] is delivery:
            self.entries.popleft()
            return
        self.dead += 1
        if self.dead > len(self) + _SLACK:
            self.entries = deque(self.live())
            self.dead = 0


class _Deadlines:
    """Every waiting delivery with a finite deadline, in order of deadline; never more than twice the waiting, and 64.

    Publishes with one timeout come in order of deadline: a deque, O(1). One that ends before the last of the deque goes
    to a heap. Entries die in place (`Delivery.waiting` turns False) and leave when they come to the front, or all
    together when they outnumber the live ones.
    """

    __slots__ = ("_heap", "_live", "_run", "_serial")

    def __init__(self) -> None:
        self._run: deque[Delivery] = deque()
        self._heap: list[tuple[float, int, Delivery]] = []
        self._serial = 0
        #: How many deliveries wait, those without a deadline included.
        self._live = 0

    def __len__(self) -> int:
        """Entries held, dead ones included."""
        return len(self._run) + len(self._heap)

    def add(self, delivery: Delivery) -> None:
        self._live += 1
        deadline = delivery.deadline
        run = self._run
        if not run or deadline >= run[-1].deadline:
            if deadline != math.inf:
                run.append(delivery)
        else:
            self._serial += 1
            heapq.heappush(self._heap, (deadline, self._serial, delivery))

    def forget(self, count: int = 1) -> None:
        """Say that `count` deliveries no longer wait."""
        self._live -= count
        run = self._run
        while run and not run[0].waiting:
            run.popleft()
        if self._heap:
            self._drop_dead_top()
        if len(run) + len(self._heap) > 2 * self._live + _SLACK:
            self._run = deque([delivery for delivery in run if delivery.waiting])
            self._heap = [entry for entry in self._heap if entry[2].waiting]
            heapq.heapify(self._heap)

    def earliest(self) -> float:
        """Return the earliest deadline of anything that waits, or `math.inf`."""
        instant = self._run[0].deadline if self._run else math.inf
        return min(instant, self._heap[0][0]) if self._heap else instant

    def passed(self, now: float) -> list[Delivery]:
        """Return the deliveries whose deadline is not after `now`, earliest first."""
        run, heap = self._run, self._heap
        passed: list[Delivery] = []
        while self.earliest() <= now:
            if run and not (heap and heap[0][0] < run[0].deadline):
                delivery = run.popleft()
            else:
                delivery = heapq.heappop(heap)[2]
            if delivery.waiting:
                passed.append(delivery)
        return passed

    def _drop_dead_top(self) -> None:
        while self._heap and not self._heap[0][2].waiting:
            heapq.heappop(self._heap)


class _Epoch:
    """One open publishing channel of the present link: its tags, and who waits for them."""

    __slots__ = ("channel", "indexed", "lane", "last", "lowest", "open_ids", "open_tokens", "outstanding")

    def __init__(self, lane: Lane, channel: int) -> None:
        self.lane = lane
        self.channel = channel
        #: In order of tag.
        self.outstanding: dict[int, Delivery] = {}
        #: The last tag assigned.
        self.last = 0
        #: No tag below is outstanding; `oldest` raises it.
        self.lowest = 1
        #: Open attempts by message_id and by token, kept from the first return on; settled ones stay for a while.
        self.open_ids: dict[str, list[Delivery]] | None = None
        self.open_tokens: dict[str, Delivery] = {}
        self.indexed = 0

    def oldest(self) -> Delivery | None:
        """Return the outstanding delivery with the lowest tag."""
        outstanding = self.outstanding
        if not outstanding:
            self.lowest = self.last + 1
            return None
        while self.lowest not in outstanding:
            self.lowest += 1
        return outstanding[self.lowest]

    def index(self, delivery: Delivery) -> None:
        """Make the delivery, already outstanding, findable by its message_id and its token."""
        self.indexed += 1
        if self.open_ids is None or self.indexed > 2 * len(self.outstanding) + _SLACK:
            self.make_index()
            return
        self.open_ids.setdefault(delivery.message_id, []).append(delivery)
        if delivery.token is not None:
            self.open_tokens[delivery.token] = delivery

    def make_index(self) -> dict[str, list[Delivery]]:
        """Index what is outstanding now, and only that."""
        ids: dict[str, list[Delivery]] = {}
        for delivery in self.outstanding.values():
            ids.setdefault(delivery.message_id, []).append(delivery)
        self.open_ids = ids
        self.open_tokens = {each.token: each for each in self.outstanding.values() if each.token is not None}
        self.indexed = len(self.outstanding)
        return ids

    def match(self, returned: Returned) -> Delivery | None:
        """Return the one open attempt that the return is certainly about, or None (F3).

        The token decides where it is one of ours. Otherwise the message_id has to be carried by a single open attempt,
        and exchange, routing key and body have to agree.
        """
        ids = self.make_index() if self.open_ids is None else self.open_ids
        if returned.token is not None:
            owner = self.open_tokens.get(returned.token)
            if owner is not None and owner.epoch is self:
                return owner
        if returned.message_id is None:
            return None
        carriers = [each for each in ids.get(returned.message_id, ()) if each.epoch is self]
        if len(carriers) != 1 or not _agrees(carriers[0], returned):
            return None
        return carriers[0]


def _may_be(delivery: Delivery, returned: Returned) -> bool:
    """Whether an unmatched return could be this attempt's: a broker may change neither properties nor address."""
    envelope = delivery.envelope
    return (
        envelope.mandatory
        and delivery.returned is None
        and envelope.exchange == returned.exchange
        and envelope.routing_key == returned.routing_key
        and returned.message_id in (None, delivery.message_id)
    )


def _agrees(delivery: Delivery, returned: Returned) -> bool:
    envelope = delivery.envelope
    return (
        envelope.mandatory
        and envelope.exchange == returned.exchange
        and envelope.routing_key == returned.routing_key
        and delivery.size == returned.body_size
        and (not returned.body_hash or returned.body_hash == hashlib.blake2b(delivery.body, digest_size=16).digest())
    )


class Ledger:
    """Accepted, buffered, in flight, settled: see the head of this module.

    Args:
        max_buffered: messages accepted and never handed over, at most.
        max_buffered_bytes: the bytes of their bodies, at most.
        max_in_flight: messages handed over and not settled, at most.
        at_least_once: whether what may or may not have arrived is sent again; otherwise it ends as `Unconfirmed`.
        confirm_timeout: seconds after which a link whose oldest publish still waits is `overdue`.
        suspect_attempts: how often a suspect of a channel close is sent alone.
    """

    def __init__(
        self,
        *,
        max_buffered: int,
        max_buffered_bytes: int,
        max_in_flight: int,
        at_least_once: bool,
        confirm_timeout: float,
        suspect_attempts: int = 3,
    ) -> None:
        self.counters = Counters()
        #: The newest link; 0 before the first.
        self.link = 0
        #: Set by the owner; every `NotSent` quotes it.
        self.last_fault: Fault | None = None
        #: Outcomes whose callers have left; the owner takes them out.
        self.late: deque[Outcome] = deque()
        self._max_buffered = max_buffered
        self._max_buffered_bytes = max_buffered_bytes
        self._max_in_flight = max_in_flight
        self._at_least_once = at_least_once
        self._confirm_timeout = confirm_timeout
        self._suspect_attempts = suspect_attempts
        self._fresh = _Queue()
        self._again = _Queue()
        self._suspects = _Queue()
        self._deadlines = _Deadlines()
        self._epochs: dict[int, _Epoch] = {}
        self._main: _Epoch | None = None
        self._suspect: _Epoch | None = None
        self._publishing = False
        self._paused = False
        #: No confirm clock of this link started before.
        self._clock_floor = -math.inf
        #: In flight with an outcome already: their deadline passed.
        self._tombstones = 0
        #: Resolved inside `next`, to be reported by `expire`.
        self._lapsed: list[Delivery] = []

    # --- admission ------------------------------------------------------------------------------------------------

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes can ever be admitted."""
        return size <= self._max_buffered_bytes

    def full(self, size: int) -> bool:
        """Whether the buffer has no room now for a body of `size` bytes; always, once closed."""
        fresh = self._fresh
        if fresh.size + size > self._max_buffered_bytes:
            return True
        return len(fresh.entries) - fresh.dead >= self._max_buffered

    def accept(self, delivery: Delivery, now: float) -> None:
        """Take the delivery over. The caller has asked `full` at this instant."""
        self.counters.accepted += 1
        self._fresh.append(delivery)
        self._deadlines.add(delivery)

    def straight(self, size: int) -> int | None:
        """Return the main channel, where a body of `size` bytes accepted now would be the next written there; else None.

        That is the usual state of a healthy link: sender open, nobody waits, room in the window. The delivery then need
        not go through a queue: `accept_sent` is `accept` and `sent` in one.
        """
        epoch = self._main
        if epoch is None or self._suspect is not None or not self._publishing or self._paused:
            return None
        if self._fresh.entries or self._again.entries or self._suspects.entries:
            return None
        if size > self._max_buffered_bytes or len(epoch.outstanding) >= self._max_in_flight:
            return None
        return epoch.channel

    def accept_sent(self, delivery: Delivery, channel: int, tag: int, now: float) -> None:
        """Take over a delivery that was handed to the writer of `straight`'s channel under this tag.

        Raises RuntimeError as `sent` does.
        """
        epoch = self._main
        if epoch is None or channel != epoch.channel or tag != epoch.last + 1:
            raise RuntimeError(f"tag {tag} on channel {channel} is not the next of the main channel")
        self.counters.accepted += 1
        self._deadlines.add(delivery)
        epoch.last = tag
        epoch.outstanding[tag] = delivery
        delivery.epoch = epoch
        delivery.tag = tag
        delivery.sent_at = now
        delivery.attempts = 1
        if epoch.open_ids is not None:
            epoch.index(delivery)

    # --- link and sender --------------------------------------------------------------------------------------------

    def begin_link(self, link: int) -> None:
        """Start a new link: channels are numbered from 1 again, the sender is shut. The last link must have been lost."""
        if self.in_flight:
            raise RuntimeError(f"link {link} begins, but link {self.link} was not lost: {self.in_flight} in flight")
        self.link = link
        self._drop_epochs()

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """Publish on this channel from now on; its tags start at 1."""
        epoch = self._epochs[channel] = _Epoch(lane, channel)
        if lane is Lane.MAIN:
            self._main = epoch
        else:
            self._suspect = epoch

    def link_up(self, link: int) -> None:
        """Open the sender: the topology of this link is in place. An old number changes nothing."""
        if link > self.link:
            self.begin_link(link)
        if link == self.link:
            self._publishing = True

    def pause(self, now: float) -> None:
        """Blocked by the broker: write nothing, stop the confirm clock. What is in flight stays pending (I33)."""
        self._paused = True

    def resume(self, now: float) -> None:
        """No longer blocked: go on in order; the confirm clock starts anew (R9)."""
        if self._paused:
            self._paused = False
            self._clock_floor = now

    def next(self, now: float) -> Delivery | None:
        """Return what to write next, or None: sender shut, blocked, window full, lane not open, or nothing to write.

        Asking changes nothing that shows: the delivery stays where it is until `sent` or `refuse`. One whose deadline
        has passed is never returned; it is resolved here and reported by the next `expire`.
        """
        if not self._publishing or self._paused:
            return None
        suspects = self._suspects
        if suspects.entries and (epoch := self._suspect) is not None and not epoch.outstanding:
            delivery = self._unexpired(suspects, now)
            if delivery is not None:
                return delivery
        epoch = self._main
        if epoch is None:
            return None
        if self._again.entries:
            delivery = self._unexpired(self._again, now)
            if delivery is not None:
                return delivery
        entries = self._fresh.entries
        if not entries:
            return None
        held = len(epoch.outstanding)
        if self._suspect is not None or suspects.entries:
            held += self._held_by_suspects()
        if held >= self._max_in_flight:
            return None
        delivery = entries[0]
        if delivery.queue is self._fresh and delivery.deadline > now:
            return delivery
        return self._unexpired(self._fresh, now)

    def lane_of(self, delivery: Delivery) -> Lane:
        """Return the lane that the delivery's next attempt takes."""
        return delivery.lane

    def channel(self, lane: Lane) -> int | None:
        """Return the channel that is open for the lane."""
        epoch = self._main if lane is Lane.MAIN else self._suspect
        return None if epoch is None else epoch.channel

    def sent(self, delivery: Delivery, channel: int, tag: int, now: float) -> None:
        """Record that the delivery, the one that `next` named, was handed to the link's writer under this tag.

        Raises RuntimeError where the seam is broken: the tag is not the next of an open channel, or the delivery was not
        to be written. From then on nobody could say which publish a confirm means.
        """
        epoch = self._epochs.get(channel)
        queue = delivery.queue
        if epoch is None or tag != epoch.last + 1:
            raise RuntimeError(f"tag {tag} on channel {channel} is not the next of an open channel")
        if queue is None or queue.entries[0] is not delivery or delivery.lane is not epoch.lane:
            raise RuntimeError(f"{delivery!r} was not to be written on channel {channel} now")
        queue.entries.popleft()
        queue.size -= delivery.size
        delivery.queue = None
        epoch.last = tag
        epoch.outstanding[tag] = delivery
        delivery.epoch = epoch
        delivery.tag = tag
        delivery.sent_at = now
        delivery.attempts += 1
        if delivery.attempts > 1:
            self.counters.resent += 1
        if epoch.lane is Lane.SUSPECT:
            delivery.suspected += 1
        if epoch.open_ids is not None:
            epoch.index(delivery)

    def refuse(self, delivery: Delivery, reason: str) -> list[Delivery]:
        """End a delivery that cannot be put into frames on this link; it takes no tag."""
        resolved: list[Delivery] = []
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
            self._end_unwritten(delivery, InvalidMessage, reason, self.last_fault, resolved)
        return resolved

    # --- what the broker says -------------------------------------------------------------------------------------

    def confirmed(self, channel: int, tag: int, multiple: bool, now: float) -> list[Delivery]:
        """basic.ack of `tag`, or of every outstanding tag up to it."""
        epoch = self._epochs.get(channel)
        if epoch is None:
            self.counters.stale += 1
            return []
        resolved: list[Delivery] = []
        link, plain = self.link, 0
        for delivery in self._take(epoch, tag, multiple):
            delivery.epoch = None
            if delivery.waiting and delivery.returned is None and not delivery.ambiguous:
                # The hot path: what `_answer` does, without the questions.
                delivery.outcome = Receipt(delivery.message_id, delivery.attempts, delivery.unanswered > 0, link)
                delivery.waiting = False
                plain += 1
                resolved.append(delivery)
            else:
                self._acked_late_or_returned(delivery, resolved)
        self.counters.confirmed += plain
        self._deadlines.forget(plain)
        return resolved

    def nacked(self, channel: int, tag: int, multiple: bool, now: float) -> list[Delivery]:
        """basic.nack of `tag`, or of every outstanding tag up to it: raised at once, never sent again (F2)."""
        epoch = self._epochs.get(channel)
        if epoch is None:
            self.counters.stale += 1
            return []
        resolved: list[Delivery] = []
        for delivery in self._take(epoch, tag, multiple):
            self._refused_by_nack(delivery, resolved)
        return resolved

    def returned(self, channel: int, returned: Returned, now: float) -> list[Delivery]:
        """basic.return: resolves nothing by itself (I12); the confirm that follows will, or the end of the epoch.

        A return that cannot be pinned on one attempt makes nobody `Unroutable`; those whose it could be are no longer
        certain, and an ack of theirs ends as `Unconfirmed`.
        """
        epoch = self._epochs.get(channel)
        if epoch is None:
            self.counters.stale += 1
            return []
        self.counters.returned += 1
        delivery = epoch.match(returned)
        if delivery is None:
            self.counters.anomalies += 1
            for candidate in epoch.outstanding.values():
                if _may_be(candidate, returned):
                    candidate.ambiguous = True
        elif delivery.returned is None:
            delivery.returned = returned
        else:
            self.counters.anomalies += 1
        return []

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int, now: float) -> list[Delivery]:
        """The broker closed the channel; tags up to `written` may have reached it."""
        epoch = self._epochs.pop(channel, None)
        if epoch is None:
            self.counters.stale += 1
            return []
        if epoch is self._main:
            self._main = None
        elif epoch is self._suspect:
            self._suspect = None
        resolved: list[Delivery] = []
        seen = [each for tag, each in epoch.outstanding.items() if tag <= written and each.returned is None]
        if len(seen) == 1 and fault.reply_code in REFUSALS:
            guilty = seen[0]
            del epoch.outstanding[guilty.tag]
            guilty.epoch = None
            self._answer(guilty, _refused(guilty, fault), resolved)
        unsent, unknown = self._end_epoch(epoch, written, fault, resolved)
        for delivery in unknown:
            delivery.lane = Lane.SUSPECT
        self._put_back(unsent, unknown)
        return resolved

    def link_lost(self, fault: Fault, written: Callable[[int], int], now: float) -> list[Delivery]:
        """The link ended, however it did. `written(channel)`: the highest tag that may have reached the network."""
        resolved: list[Delivery] = []
        for epoch in self._epochs.values():
            unsent, unknown = self._end_epoch(epoch, written(epoch.channel), fault, resolved)
            # Both came from one lane, in order of tag; what was not sent lies behind what may have been.
            self._put_back(unknown + unsent, [])
        self._drop_epochs()
        return resolved

    # --- time, callers, the end -----------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Delivery]:
        """Resolve what waited until its deadline.

        Not written: `DeadlineExceeded`. Written: `Unconfirmed` (`Unroutable`, where the broker has returned it), and
        the tag stays taken until it is answered.
        """
        resolved, self._lapsed = self._lapsed, []
        for delivery in self._deadlines.passed(now):
            self._lapse(delivery, resolved)
        return resolved

    def cancel(self, delivery: Delivery, now: float) -> bool:
        """Forget the delivery's caller. True: it is gone, nothing was sent and nothing will be. Idempotent.

        False: it already has its outcome, or something was handed over. In that case it is `abandoned`: tracked to its
        outcome, which goes to `late`, and never sent again (R10). One that waits to be sent again after an attempt
        that may have arrived gets its outcome, `Unconfirmed`, right here.
        """
        if delivery.queue is None:
            if delivery.outcome is None and delivery.epoch is not None and not delivery.abandoned:
                self._abandon(delivery)
            return delivery.outcome is None and not delivery.abandoned
        delivery.queue.remove(delivery)
        self._stop_waiting(delivery)
        if not delivery.unanswered:
            self.counters.rejected += 1
            self.counters.cancelled += 1
            return True
        delivery.abandoned = True
        delivery.waiter = None
        reason = "cancelled while it waited to be sent again"
        self._answer(delivery, Unconfirmed(delivery.message_id, reason, last_fault=self.last_fault), [])
        return False

    def give_up(self, fault: Fault, now: float) -> list[Delivery]:
        """No further link: what was never sent ends as `GaveUp`, what may have been as `Unconfirmed`, at once."""
        return self._end_all(GaveUp, "the attempts to reconnect are used up", fault, now)

    def close(self, now: float, fault: Fault | None = None) -> list[Delivery]:
        """Resolve everything, and admit nothing more.

        What was never sent ends as `ProducerClosed`, what may have been as `Unconfirmed`. Where the link still says
        how much of it left (`written`), call `link_lost` first: it tells the two apart.
        """
        self._max_buffered = 0
        return self._end_all(ProducerClosed, "the producer was closed", fault or self.last_fault, now)

    def next_wakeup(self, now: float = -math.inf) -> float:
        """Return when to call `expire` and ask `overdue` next, or `math.inf`.

        With `now`, an `overdue` that has come true already is not announced again.
        """
        if self._lapsed:
            return -math.inf
        deadline = self._deadlines.earliest()
        overdue = self._overdue_at()
        return overdue if now < overdue < deadline else deadline

    def overdue(self, now: float) -> bool:
        """Whether the oldest publish in flight has waited `confirm_timeout` for its confirm, blocked time not counted."""
        return now >= self._overdue_at()

    #: For health: the same question, asked by `status()`.
    unconfirmed_too_long = overdue

    # --- counts ---------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Tags that the broker has not answered, those of callers who have left included."""
        return sum(len(epoch.outstanding) for epoch in self._epochs.values())

    @property
    def buffered(self) -> int:
        """Messages that wait to be written, for the first time or again."""
        return len(self._fresh) + len(self._again) + len(self._suspects)

    @property
    def buffered_bytes(self) -> int:
        """The bytes of their bodies."""
        return self._fresh.size + self._again.size + self._suspects.size

    @property
    def pending(self) -> int:
        """Accepted and without an outcome."""
        return self.buffered + self.in_flight - self._tombstones

    @property
    def empty(self) -> bool:
        """Whether nothing accepted is without an outcome."""
        return self.pending == 0

    @property
    def has_suspects(self) -> bool:
        """Whether suspects of a channel close wait to be written."""
        return bool(self._suspects.entries)

    @property
    def wants_suspect_channel(self) -> bool:
        """Whether suspects wait on a live link that has no channel for them."""
        return self._publishing and self._suspect is None and len(self._suspects) > 0

    # --- within ---------------------------------------------------------------------------------------------------

    def _drop_epochs(self) -> None:
        self._epochs = {}
        self._main = self._suspect = None
        self._publishing = self._paused = False
        self._clock_floor = -math.inf

    def _unexpired(self, queue: _Queue, now: float) -> Delivery | None:
        while (delivery := queue.head()) is not None and delivery.deadline <= now:
            self._lapse(delivery, self._lapsed)
        return delivery

    def _held_by_suspects(self) -> int:
        return len(self._suspects) + (0 if self._suspect is None else len(self._suspect.outstanding))

    def _overdue_at(self) -> float:
        if self._paused:
            return math.inf
        oldest = [delivery.sent_at for epoch in self._epochs.values() if (delivery := epoch.oldest()) is not None]
        return max(min(oldest), self._clock_floor) + self._confirm_timeout if oldest else math.inf

    def _take(self, epoch: _Epoch, tag: int, multiple: bool) -> Iterable[Delivery]:
        """Take what is outstanding under this tag, or under the tags up to it, in order of tag."""
        outstanding = epoch.outstanding
        # Tag 0 and tags never assigned mean no publish that we know of: whatever they say, they confirm nobody (I9).
        if tag not in outstanding:
            self.counters.anomalies += 1
            if not multiple or not 0 < tag <= epoch.last:
                return ()
        if not multiple:
            return (outstanding.pop(tag),)
        take = outstanding.pop
        tags = range(epoch.lowest, tag + 1)
        epoch.lowest = max(epoch.lowest, tag + 1)
        return [delivery for each in tags if (delivery := take(each, None)) is not None]

    def _acked_late_or_returned(self, delivery: Delivery, resolved: list[Delivery]) -> None:
        if delivery.returned is None and not delivery.ambiguous:
            receipt = Receipt(delivery.message_id, delivery.attempts, delivery.unanswered > 0, self.link)
            self._answer(delivery, receipt, resolved)
        elif delivery.returned is not None:
            self._answer(delivery, self._unroutable(delivery, delivery.returned), resolved)
        else:
            reason = "acked, after a return that may have been its own and may have been another's"
            self._answer(delivery, Unconfirmed(delivery.message_id, reason), resolved)

    def _refused_by_nack(self, delivery: Delivery, resolved: list[Delivery]) -> None:
        delivery.epoch = None
        result: PublishError
        if delivery.returned is not None:
            result = self._unroutable(delivery, delivery.returned)
        elif fold((Verdict.NACKED, _earlier(delivery))) is Verdict.NACKED:
            result = Nacked(delivery.message_id, "the broker refused it (basic.nack)")
        else:
            reason = "the broker refused it (basic.nack), but an earlier attempt was lost without an answer"
            result = Unconfirmed(delivery.message_id, reason)
        self._answer(delivery, result, resolved)

    def _unroutable(self, delivery: Delivery, returned: Returned) -> PublishError:
        why = f"the broker returned it: {printable(returned.reply_text)} [{returned.reply_code}]"
        if fold((Verdict.REJECTED, _earlier(delivery))) is not Verdict.REJECTED:
            return Unconfirmed(delivery.message_id, f"{why}, but an earlier attempt was lost without an answer")
        return Unroutable(
            delivery.message_id,
            why,
            reply_code=returned.reply_code,
            exchange=delivery.envelope.exchange,
            routing_key=delivery.envelope.routing_key,
        )

    def _end_epoch(
        self, epoch: _Epoch, written: int, fault: Fault, resolved: list[Delivery]
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Settle an epoch that has ended; return who waits again, in order of tag: the ones not sent, the ones that may have been."""
        unsent: list[Delivery] = []
        unknown: list[Delivery] = []
        for tag, delivery in epoch.outstanding.items():
            delivery.epoch = None
            if delivery.returned is not None:
                self._answer(delivery, self._unroutable(delivery, delivery.returned), resolved)
                continue
            delivery.ambiguous = False
            over = delivery.abandoned or delivery.outcome is not None
            if tag > written:
                delivery.attempts -= 1
                if epoch.lane is Lane.SUSPECT:
                    delivery.suspected -= 1
                if over:
                    reason = "its caller had left, and the link ended before it was sent"
                    self._end_unwritten(delivery, NotSent, reason, fault, resolved)
                else:
                    unsent.append(delivery)
                continue
            delivery.unanswered += 1
            if over or not self._at_least_once:
                what = "channel was closed" if fault.kind is FaultKind.CHANNEL_CLOSED else "link ended"
                reason = f"the {what} before the broker's confirm"
                self._answer(delivery, Unconfirmed(delivery.message_id, reason, last_fault=fault), resolved)
            elif delivery.suspected >= self._suspect_attempts:
                reason = f"no confirm came in {delivery.attempts} attempts, {delivery.suspected} of them alone"
                self._answer(delivery, Unconfirmed(delivery.message_id, reason, last_fault=fault), resolved)
            else:
                unknown.append(delivery)
        return unsent, unknown

    def _put_back(self, first: list[Delivery], second: list[Delivery]) -> None:
        for group in (first, second):
            if group:
                (self._again if group[0].lane is Lane.MAIN else self._suspects).put_back(group)

    def _lapse(self, delivery: Delivery, resolved: list[Delivery]) -> None:
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
            if not self._publishing:
                reason = "its deadline passed while there was no connection"
            elif self._paused:
                reason = "its deadline passed while the broker blocked publishers"
            else:
                reason = "its deadline passed before it was written"
            self._end_unwritten(delivery, DeadlineExceeded, reason, self.last_fault, resolved)
            return
        if delivery.returned is not None:
            result = self._unroutable(delivery, delivery.returned)
        else:
            reason = "its deadline passed before the broker's confirm"
            fault = self.last_fault if delivery.unanswered else None
            result = Unconfirmed(delivery.message_id, reason, last_fault=fault)
        self._answer(delivery, result, resolved)
        self._tombstones += 1

    def _end_unwritten(
        self,
        delivery: Delivery,
        kind: type[NotSent],
        reason: str,
        fault: Fault | None,
        resolved: list[Delivery],
    ) -> None:
        """End what is not in flight: `kind`, unless an earlier attempt may have arrived."""
        error = kind if fold((Verdict.REJECTED, _earlier(delivery))) is Verdict.REJECTED else Unconfirmed
        self._answer(delivery, error(delivery.message_id, reason, last_fault=fault), resolved)

    def _end_all(self, kind: type[NotSent], reason: str, fault: Fault | None, now: float) -> list[Delivery]:
        resolved = self.expire(now)
        for epoch in self._epochs.values():
            for delivery in epoch.outstanding.values():
                delivery.epoch = None
                if delivery.returned is not None:
                    result = self._unroutable(delivery, delivery.returned)
                else:
                    why = f"{reason} before the broker's confirm"
                    result = Unconfirmed(delivery.message_id, why, last_fault=fault)
                self._answer(delivery, result, resolved)
        self._drop_epochs()
        for queue in (self._suspects, self._again, self._fresh):
            for delivery in queue.live():
                queue.remove(delivery)
                self._end_unwritten(delivery, kind, reason, fault, resolved)
        return resolved

    def _abandon(self, delivery: Delivery) -> None:
        delivery.abandoned = True
        delivery.waiter = None
        self._stop_waiting(delivery)

    def _stop_waiting(self, delivery: Delivery) -> None:
        delivery.waiting = False
        self._deadlines.forget()

    def _answer(self, delivery: Delivery, result: Receipt | PublishError, resolved: list[Delivery]) -> None:
        """Settle the delivery; or, where its caller was told at the deadline, say now what really became of it."""
        if delivery.outcome is not None:
            self._tombstones -= 1
            self.counters.late += 1
            if isinstance(delivery.outcome, Unconfirmed):
                self.late.append(Outcome(delivery.message_id, result))
            return
        delivery.outcome = result
        match verdict_of(result):
            case Verdict.CONFIRMED:
                self.counters.confirmed += 1
            case Verdict.UNKNOWN:
                self.counters.unknown += 1
            case Verdict.NACKED:
                self.counters.nacked += 1
            case Verdict.REJECTED:
                self.counters.rejected += 1
        if delivery.abandoned:
            self.late.append(Outcome(delivery.message_id, result))
        else:
            self._stop_waiting(delivery)
        resolved.append(delivery)


def _earlier(delivery: Delivery) -> Verdict:
    """The fold of the attempts before this one: none, or all UNKNOWN."""
    return Verdict.UNKNOWN if delivery.unanswered else Verdict.REJECTED


def _refused(delivery: Delivery, fault: Fault) -> PublishRefused:
    return PublishRefused(
        delivery.message_id,
        f"the broker closed the channel because of it: {fault}",
        reply_code=fault.reply_code or 0,
        reply_text=fault.text,
        may_have_been_delivered=fold((Verdict.REJECTED, _earlier(delivery))) is not Verdict.REJECTED,
    )
