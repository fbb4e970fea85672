"""The ledger: decides what becomes of each accepted publish. Pure: no I/O, no clock, no randomness, no await.

The sender feeds it facts (a confirm, a return, a closed channel, a lost link, the time). Each fact answers with the
messages that got their outcome by it. `Ledger.next` names the message to write next. Time enters as `now`, in monotonic
seconds.

**Places.** A message waits in one of three queues, is in flight, or has its outcome::

    accept ──► unsent ──published──► in flight ──ack, nack──────────────────► outcome
                                      │  │  ▲
            link lost: resend ◄───────┘  └──┴── suspects ◄── channel closed by the broker

*unsent* messages have never had a tag; `max_buffered` and `max_buffered_bytes` bound them. *resend* and *suspects* have
had one, and keep their place in the in-flight window: in flight + resend + suspects ≤ `max_in_flight`. So messages that
come back cannot make the memory grow. *resend* goes before *unsent*, both in the order of acceptance. Suspects go one at
a time on a channel of their own, while the others pass them.

**Tags** belong to an epoch: one link and one channel of it. They count 1, 2, 3 … in it. A fact about a channel that is
not open changes nothing but a counter.

**The end of an epoch.** The driver says up to which tag messages were *written*: the call that holds their last byte had
started. Then, tag by tag:

* above that tag: the attempt did not happen. The message waits in front of the younger ones;
* returned by the broker: `Unroutable`, whatever follows the return;
* all others: UNKNOWN. `at_least_once` sends them again, `at_most_once` ends them as `Unconfirmed`.

**A channel that the broker closed.** The close names a reply code and no tag. RabbitMQ checks a publish before it routes
it. So if only one outstanding publish can have been seen, and the code is one that a publish causes, that publish is
refused and this attempt is in no queue: `PublishRefused`. Otherwise all outstanding publishes become suspects. If a
suspect is then refused alone, its first attempt may still have been stored. `PublishRefused` then says
`may_have_been_delivered=True`, and the message counts as unknown.

**Deadlines and cancellation** take the caller away, not the tag. A message in flight without a caller keeps its place
until the broker answers or the epoch ends. It is never sent again. Its final outcome goes to `Settlement.late`: one
`Outcome` for each message that was cancelled after it got a tag, or that was `Unconfirmed` at its deadline while in flight.

Invariants: an outcome is set once. CONFIRMED only by an ack of the tag with no return that is, or may be, about it.
REJECTED only if each attempt is certain. accepted = confirmed + rejected + nacked + unknown + pending after every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import may_be
from warrener._publishing.ledger.epoch_end import ResendRules, end_epoch
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.outcomes import acked, nacked, refused, unroutable
from warrener._publishing.ledger.queues import WaitingQueue
from warrener._publishing.ledger.settlement import Settlement
from warrener.errors import DeadlineExceeded, Fault, GaveUp, InvalidMessage, NotSent, ProducerClosed, Unconfirmed
from warrener.records import Lane, Receipt, Returned

__all__ = ["Ledger"]

#: Reply codes of a channel.close that one publish causes by itself: content-too-large, access-refused, not-found,
#: precondition-failed (AMQP 0-9-1, 1.2; RabbitMQ uses the last three). Any other code may have another cause.
REFUSALS = frozenset({311, 403, 404, 406})


class Ledger:
    """The account of all accepted publishes; the head of this module explains it.

    Args:
        max_buffered: maximum number of messages that were accepted and never had a tag.
        max_buffered_bytes: maximum bytes of their bodies.
        max_in_flight: maximum number of messages that had a tag and have no outcome.
        at_least_once: whether a message is sent again after an attempt that may have arrived. Otherwise it ends `Unconfirmed`.
        confirm_timeout: seconds after which the oldest publish in flight is `overdue`.
        suspect_attempts: number of attempts that a suspect of a channel close gets alone.
        attempts: number of times that a message is written; None: its deadline alone limits them.
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
        attempts: int | None = None,
    ) -> None:
        #: The number of the newest link; 0 before the first.
        self.link = 0
        self.settlement = Settlement()
        self.counters = self.settlement.counters
        self._max_buffered = max_buffered
        self._max_buffered_bytes = max_buffered_bytes
        self._max_in_flight = max_in_flight
        self._rules = ResendRules(at_least_once, suspect_attempts, attempts)
        self._unsent = WaitingQueue()
        self._resend = WaitingQueue()
        self._suspects = WaitingQueue()
        self._in_flight = InFlight(confirm_timeout)
        #: Messages that `next` found to be past their deadline; the next `expire` reports them.
        self._expired: list[Delivery] = []

    # --- capacity ---------------------------------------------------------------------------------------------------

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes can ever be accepted."""
        return size <= self._max_buffered_bytes

    def full(self, size: int) -> bool:
        """Whether there is no capacity now for a body of `size` bytes. Always true once closed."""
        unsent = self._unsent
        if unsent.size + size > self._max_buffered_bytes:
            return True
        return len(unsent.entries) - unsent.dead >= self._max_buffered

    def accept(self, delivery: Delivery) -> None:
        """Take the message over. The caller has asked `full` at this instant."""
        self.settlement.accept(delivery)
        self._unsent.append(delivery)

    def fast_path(self, size: int) -> int | None:
        """Return the main channel if a body of `size` bytes, accepted now, would be written there next; else None.

        This is the usual state of a healthy link: publishers are let in, nothing waits, the window has a free place.
        Then the message needs no queue: `accept_published` does the work of `accept` and `published`.
        """
        in_flight = self._in_flight
        epoch = in_flight.main
        if epoch is None or in_flight.suspect is not None or not in_flight.publishing or in_flight.paused:
            return None
        if self._unsent.entries or self._resend.entries or self._suspects.entries:
            return None
        if size > self._max_buffered_bytes or len(epoch.outstanding) >= self._max_in_flight:
            return None
        return epoch.channel

    def accept_published(self, delivery: Delivery, channel: int, tag: int, now: float) -> None:
        """Take over a message that the link has taken, under this tag, on the channel that `fast_path` named.

        Raises RuntimeError as `published` does.
        """
        epoch = self._in_flight.main
        if epoch is None or channel != epoch.channel or tag != epoch.last + 1:
            raise RuntimeError(f"tag {tag} on channel {channel} is not the next of the main channel")
        self.counters.accepted += 1
        self.settlement.deadlines.add(delivery)
        # The work of `Epoch.add`, without the call.
        epoch.last = tag
        epoch.outstanding[tag] = delivery
        delivery.epoch = epoch
        delivery.tag = tag
        delivery.published_at = now
        delivery.attempts = 1
        if epoch.open_ids is not None:
            epoch.index(delivery)

    # --- the link ---------------------------------------------------------------------------------------------------

    def begin_link(self, link: int) -> None:
        """Start a new link: its channels are numbered from 1, and nothing is written yet. The last link has been lost."""
        if self.in_flight:
            raise RuntimeError(f"link {link} begins, but link {self.link} was not lost: {self.in_flight} in flight")
        self.link = link
        self._in_flight.clear()

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """Publish on this channel from now on; its tags start at 1."""
        self._in_flight.open(lane, channel)

    def link_up(self, link: int) -> None:
        """The topology of this link is in place: messages may be written. An old number changes nothing."""
        if link > self.link:
            self.begin_link(link)
        if link == self.link:
            self._in_flight.publishing = True

    def pause(self) -> None:
        """The broker blocks publishers: write nothing, stop the confirm clock. Publishes in flight stay in flight."""
        self._in_flight.pause()

    def resume(self, now: float) -> None:
        """The broker takes publishes again: go on in order. The confirm clock starts from 0."""
        self._in_flight.resume(now)

    def channel(self, lane: Lane) -> int | None:
        """Return the channel that is open for the lane."""
        epoch = self._in_flight.main if lane is Lane.MAIN else self._in_flight.suspect
        return None if epoch is None else epoch.channel

    def next(self, now: float) -> Delivery | None:
        """Return the message to write next, or None.

        None: no link, publishers blocked, window full, channel not open, or no message waits. The message stays in its
        queue until `published` or `refuse`. A message past its deadline is never returned; it ends here, and the next
        `expire` reports it.
        """
        in_flight = self._in_flight
        if not in_flight.publishing or in_flight.paused:
            return None
        suspects = self._suspects
        if suspects.entries and (epoch := in_flight.suspect) is not None and not epoch.outstanding:
            delivery = self._unexpired(suspects, now)
            if delivery is not None:
                return delivery
        epoch = in_flight.main
        if epoch is None:
            return None
        if self._resend.entries:
            delivery = self._unexpired(self._resend, now)
            if delivery is not None:
                return delivery
        entries = self._unsent.entries
        if not entries:
            return None
        held = len(epoch.outstanding) + len(suspects)
        if in_flight.suspect is not None:
            held += len(in_flight.suspect.outstanding)
        if held >= self._max_in_flight:
            return None
        delivery = entries[0]
        if delivery.queue is self._unsent and delivery.deadline > now:
            return delivery
        return self._unexpired(self._unsent, now)

    def published(self, delivery: Delivery, channel: int, tag: int, now: float) -> None:
        """Note that the link has taken the message, the one that `next` named, under this tag.

        Raises RuntimeError if the driver broke its rules: the tag is not the next of an open channel, or this message was
        not to be written. From then on nobody could say which publish a confirm is about.
        """
        epoch = self._in_flight.epochs.get(channel)
        queue = delivery.queue
        if epoch is None or tag != epoch.last + 1:
            raise RuntimeError(f"tag {tag} on channel {channel} is not the next of an open channel")
        if queue is None or queue.entries[0] is not delivery or delivery.lane is not epoch.lane:
            raise RuntimeError(f"{delivery!r} was not to be written on channel {channel} now")
        queue.take_head()
        delivery.attempts += 1
        if delivery.attempts > 1:
            self.counters.resent += 1
        if epoch.lane is Lane.SUSPECT:
            delivery.suspected += 1
        epoch.add(delivery, tag, now)

    def refuse(self, delivery: Delivery, reason: str) -> list[Delivery]:
        """End a message that cannot be put into frames on this link. It takes no tag."""
        settled: list[Delivery] = []
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
            # The fault of an earlier link has nothing to do with it.
            self.settlement.end_unwritten(delivery, InvalidMessage, reason, None, settled)
        return settled

    # --- the broker's answers ---------------------------------------------------------------------------------------

    def confirmed(self, channel: int, tag: int, multiple: bool) -> list[Delivery]:
        """basic.ack of `tag`, or of every outstanding tag up to it."""
        settled: list[Delivery] = []
        link, confirmed = self.link, 0
        for delivery in self._answered(channel, tag, multiple):
            delivery.epoch = None
            if delivery.waiting and delivery.returned is None and not delivery.ambiguous:
                # The usual case: the work of `Settlement.answer`, without its questions.
                delivery.outcome = Receipt(delivery.message_id, delivery.attempts, delivery.unanswered > 0, link)
                delivery.waiting = False
                confirmed += 1
                settled.append(delivery)
            else:
                self.settlement.answer(delivery, acked(delivery, link), settled)
        self.counters.confirmed += confirmed
        self.settlement.deadlines.forget(confirmed)
        return settled

    def nacked(self, channel: int, tag: int, multiple: bool) -> list[Delivery]:
        """basic.nack of `tag`, or of every outstanding tag up to it. A nacked message is never sent again."""
        settled: list[Delivery] = []
        for delivery in self._answered(channel, tag, multiple):
            delivery.epoch = None
            self.settlement.answer(delivery, nacked(delivery), settled)
        return settled

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return. It settles nothing by itself; the confirm that follows does, or the end of the epoch.

        A return that fits no single attempt makes no message `Unroutable`. Attempts that it may be about are in doubt: an
        ack of theirs ends as `Unconfirmed`.
        """
        epoch = self._in_flight.epochs.get(channel)
        if epoch is None:
            self.counters.stale += 1
            return
        self.counters.returned += 1
        delivery = epoch.match(returned)
        if delivery is None:
            self.counters.anomalies += 1
            for candidate in epoch.outstanding.values():
                if may_be(candidate, returned):
                    candidate.ambiguous = True
        elif delivery.returned is None:
            delivery.returned = returned
        else:
            self.counters.anomalies += 1

    def channel_closed(self, channel: int, fault: Fault, written: int) -> list[Delivery]:
        """The broker closed the channel; the messages up to tag `written` may have reached it."""
        epoch = self._in_flight.close(channel)
        if epoch is None:
            self.counters.stale += 1
            return []
        settled: list[Delivery] = []
        seen = [each for tag, each in epoch.outstanding.items() if tag <= written and each.returned is None]
        if len(seen) == 1 and fault.reply_code in REFUSALS:
            guilty = seen[0]
            del epoch.outstanding[guilty.tag]
            guilty.epoch = None
            self.settlement.answer(guilty, refused(guilty, fault), settled)
        not_written, unanswered = end_epoch(epoch, written, fault, self._rules, self.settlement, settled)
        for delivery in unanswered:
            delivery.lane = Lane.SUSPECT
        self._put_back(not_written)
        self._put_back(unanswered)
        return settled

    def link_lost(self, fault: Fault, written: Callable[[int], int]) -> list[Delivery]:
        """The link ended. `written(channel)` returns the highest tag whose message may have reached the network."""
        settled: list[Delivery] = []
        for epoch in self._in_flight.epochs.values():
            not_written, unanswered = end_epoch(
                epoch, written(epoch.channel), fault, self._rules, self.settlement, settled
            )
            # Both come from one lane, in order of tag; the tags that were not written are the higher ones.
            self._put_back(unanswered + not_written)
        self._in_flight.clear()
        return settled

    # --- time, callers, the end -------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Delivery]:
        """End the messages whose deadline has passed.

        Without a tag: `DeadlineExceeded`. In flight: `Unconfirmed` (`Unroutable` if the broker has returned it), and the
        tag stays taken until the broker answers.
        """
        settled, self._expired = self._expired, []
        for delivery in self.settlement.deadlines.passed(now):
            self._expire(delivery, settled)
        return settled

    def cancel(self, delivery: Delivery) -> bool:
        """The caller has left. True: no attempt of the message counts and none will be made. Idempotent.

        False: the message has its outcome already, or it has a tag. In the second case it is `abandoned`: tracked to its
        outcome, which goes to `late`, and never sent again. A message that waits to be sent again after an attempt that may
        have arrived ends here as `Unconfirmed`.
        """
        settlement = self.settlement
        if delivery.queue is None:
            if delivery.outcome is None and delivery.epoch is not None and not delivery.abandoned:
                settlement.abandon(delivery)
            return delivery.outcome is None and not delivery.abandoned
        delivery.queue.remove(delivery)
        if not delivery.unanswered:
            settlement.stop_waiting(delivery)
            self.counters.rejected += 1
            self.counters.cancelled += 1
            return True
        settlement.abandon(delivery)
        reason = "cancelled while it waited to be sent again"
        settlement.answer(delivery, Unconfirmed(delivery.message_id, reason, last_fault=settlement.last_fault), [])
        return False

    def give_up(
        self,
        fault: Fault,
        now: float,
        kind: type[NotSent] = GaveUp,
        reason: str = "the attempts to reconnect are used up",
    ) -> list[Delivery]:
        """No further link: messages that were never written end as `kind`, those that may have been as `Unconfirmed`."""
        return self._end_all(kind, reason, fault, now)

    def close(self, now: float, fault: Fault | None = None) -> list[Delivery]:
        """End every message, and accept no more.

        Messages that were never written end as `ProducerClosed`, those that may have been as `Unconfirmed`. If a link can
        still say how much was written, call `link_lost` first: it tells the two apart.
        """
        self._max_buffered = 0
        return self._end_all(ProducerClosed, "the producer was closed", fault or self.settlement.last_fault, now)

    def next_wakeup(self, now: float = -math.inf) -> float:
        """Return the instant at which to call `expire` and ask `overdue` next, or `math.inf`.

        With `now`, an `overdue` that is true already is not announced again.
        """
        if self._expired:
            return -math.inf
        deadline = self.settlement.deadlines.earliest()
        overdue = self._in_flight.overdue_at()
        return overdue if now < overdue < deadline else deadline

    def overdue(self, now: float) -> bool:
        """Whether the oldest publish in flight has waited `confirm_timeout`; time while blocked does not count."""
        return now >= self._in_flight.overdue_at()

    # --- counts -----------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Number of tags that the broker has not answered, those without a caller included."""
        return len(self._in_flight)

    @property
    def buffered(self) -> int:
        """Number of messages that wait to be written, for the first time or again."""
        return len(self._unsent) + len(self._resend) + len(self._suspects)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the bodies of those messages."""
        return self._unsent.size + self._resend.size + self._suspects.size

    @property
    def pending(self) -> int:
        """Number of accepted messages without an outcome."""
        return self.buffered + self.in_flight - self.settlement.tombstones

    @property
    def wants_suspect_channel(self) -> bool:
        """Whether suspects wait on a live link that has no channel for them."""
        return self._in_flight.publishing and self._in_flight.suspect is None and len(self._suspects) > 0

    # --- within -----------------------------------------------------------------------------------------------------

    def _answered(self, channel: int, tag: int, multiple: bool) -> list[Delivery]:
        """Take out the publishes that the broker answers, and count facts that mean no publish of ours."""
        epoch = self._in_flight.epochs.get(channel)
        if epoch is None:
            self.counters.stale += 1
            return []
        if tag not in epoch.outstanding:
            self.counters.anomalies += 1
        return epoch.take(tag, multiple)

    def _unexpired(self, queue: WaitingQueue, now: float) -> Delivery | None:
        while (delivery := queue.head()) is not None and delivery.deadline <= now:
            self._expire(delivery, self._expired)
        return delivery

    def _put_back(self, group: list[Delivery]) -> None:
        if group:
            (self._resend if group[0].lane is Lane.MAIN else self._suspects).put_back(group)

    def _expire(self, delivery: Delivery, settled: list[Delivery]) -> None:
        settlement = self.settlement
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
            if not self._in_flight.publishing:
                reason = "its deadline passed while there was no connection"
            elif self._in_flight.paused:
                reason = "its deadline passed while the broker blocked publishers"
            else:
                reason = "its deadline passed before it was written"
            settlement.end_unwritten(delivery, DeadlineExceeded, reason, settlement.last_fault, settled)
            return
        if delivery.returned is not None:
            result = unroutable(delivery, delivery.returned)
        else:
            reason = "its deadline passed before the broker's confirm"
            fault = settlement.last_fault if delivery.unanswered else None
            result = Unconfirmed(delivery.message_id, reason, last_fault=fault)
        settlement.answer(delivery, result, settled)
        settlement.tombstones += 1

    def _end_all(self, kind: type[NotSent], reason: str, fault: Fault | None, now: float) -> list[Delivery]:
        settlement = self.settlement
        settled = self.expire(now)
        for epoch in self._in_flight.epochs.values():
            for delivery in epoch.outstanding.values():
                delivery.epoch = None
                if delivery.returned is not None:
                    result = unroutable(delivery, delivery.returned)
                else:
                    why = f"{reason} before the broker's confirm"
                    result = Unconfirmed(delivery.message_id, why, last_fault=fault)
                settlement.answer(delivery, result, settled)
        self._in_flight.clear()
        for queue in (self._suspects, self._resend, self._unsent):
            for delivery in queue.live():
                queue.remove(delivery)
                settlement.end_unwritten(delivery, kind, reason, fault, settled)
        return settled
