"""The ledger: decides what becomes of each accepted publish. Pure: no I/O, no clock, no randomness, no await.

The sender feeds it facts (a confirm, a return, a closed channel, a lost link, the time). The method for each fact
returns the messages that got their outcome by it. `Ledger.next` names the message to write next. Time enters as `now`,
in monotonic seconds.

**Places.** A message waits in a queue (`waiting`), is in flight (`in_flight`), or has its outcome (`settlement`)::

    accept ──► unsent ──────────published──► in flight ──ack, nack──────────────────► outcome
                 └► introductions ──┘          │  │  ▲ └─nack──► delayed ──► resend
                       ▲   ▲                   │  │  │
                       │   └─────────resend ◄──┘  └──┴── suspects ◄── channel closed, no cause named
                       └── new link ───┘

*unsent* messages have never had a tag, and *delayed* ones (`resending`) wait after a nack; `max_buffered` and
`max_buffered_bytes` bound both together. The others keep their place in the in-flight window: in flight + resend +
suspects ≤ `max_in_flight`. So messages that come back cannot make the memory grow. *resend* goes before *unsent*, both in
the order of acceptance. An unsent message whose destination may take no more of the window (`window`) is set *aside* after
a moment, and those to other destinations pass it. Suspects go one at a time on a channel of their own, and so do the first
messages to each exchange (`introductions`), while the others pass them.

**Tags** belong to an epoch: one link and one channel of it. They count 1, 2, 3 … in it. A fact about a channel that is
not open changes nothing but a counter.

**The end of an epoch.** The driver says up to which tag messages were *written*: the call that holds their last byte had
started. Then, tag by tag:

* above that tag: the attempt did not happen. The message waits in front of the younger ones;
* returned by the broker: `Unroutable`, whatever follows the return;
* all others: UNKNOWN. Their policy sends them again, or ends them as `Unconfirmed`.

**A channel that the broker closed.** The close names a reply code and no tag, so every publish that was *begun* is under
suspicion. The close is *explained* if its text names an exchange, a topic or a size (`refusals.named`), or if only one
publish was begun. Then the publishes that it is about are refused (`PublishRefused`), and so are messages to the same
target that wait; the rest are sent again. If two or more publishes of the target were begun, one that came before the
guilty one may have been stored: then `may_have_been_delivered` is True. Otherwise all publishes that were begun become
suspects, and each is sent alone.

**Deadlines and cancellation** end the caller's wait; the tag stays. A message in flight without a caller keeps its
place until the broker answers or the epoch ends. It is never sent again. Its final outcome goes to `Settlement.late`:
one `Outcome` for each message that was cancelled after it got a tag, or that was `Unconfirmed` at its deadline while in
flight.

Invariants: an outcome is set once. CONFIRMED only by an ack of the tag with no return that is, or may be, about it.
REJECTED only if each attempt is certain. accepted = confirmed + rejected + nacked + unknown + pending after every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from warrener._publishing.ledger.answers import Answers
from warrener._publishing.ledger.batching import Batching
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.ends import Ends, Rules
from warrener._publishing.ledger.flights import Flight
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.introductions import next_pass, passes_at
from warrener._publishing.ledger.outcomes import Verdict, earlier, not_written, refused, unanswered
from warrener._publishing.ledger.refusals import Refusals
from warrener._publishing.ledger.resending import Resending
from warrener._publishing.ledger.settlement import Counters, Settlement
from warrener._publishing.ledger.shares import Shares
from warrener._publishing.ledger.waiting import Waiting
from warrener._publishing.ledger.window import Limits
from warrener._retry_rules import RetryRules
from warrener.errors import Fault, GaveUp, InvalidMessage, NotSent, ProducerClosed, PublishError
from warrener.records import Lane

__all__ = ["Ledger"]

_AT_LEAST_ONCE = RetryRules()


class Ledger:
    """The account of all accepted publishes; the head of this module explains it.

    Args:
        max_buffered: maximum number of messages that were accepted and never had a tag.
        max_buffered_bytes: maximum bytes of their bodies.
        max_in_flight: maximum number of messages that had a tag and have no outcome.
        max_in_flight_bytes: maximum bytes of their bodies; one message above it goes alone.
        confirm_timeout: seconds after which a message is overdue, and a link that answers nothing is `silent`.
        suspect_attempts: number of attempts that a suspect of a channel close gets alone.
        refusal_memory: seconds for which a refusal of an exchange or a topic is remembered.
        max_destinations: maximum number of refusals that are remembered.
        standard_exchanges: exchanges whose returns are certain, beside the default exchange and `amq.*`.
        retry: the policy of messages that have none of their own.
        id_prefix: the first 20 characters of the ids of messages in flights.
    """

    def __init__(
        self,
        *,
        max_buffered: int,
        max_buffered_bytes: int,
        max_in_flight: int,
        confirm_timeout: float,
        max_in_flight_bytes: int = 64 * 1024 * 1024,
        suspect_attempts: int = 3,
        refusal_memory: float = 5.0,
        max_destinations: int = 1000,
        standard_exchanges: Iterable[str] = (),
        retry: RetryRules = _AT_LEAST_ONCE,
        id_prefix: str = "0" * 20,
    ) -> None:
        #: The size of the largest body that can ever be accepted.
        self.largest = max_buffered_bytes
        self.settlement = Settlement()
        self.rules = Rules(retry, suspect_attempts, frozenset(standard_exchanges))
        self._in_flight = InFlight(confirm_timeout, self.settlement.deadlines)
        self._refusals = Refusals(refusal_memory, max_destinations)
        self._waiting = Waiting(
            self.settlement,
            self._in_flight,
            self._refusals,
            Limits(max_buffered, max_buffered_bytes, max_in_flight, max_in_flight_bytes),
            id_prefix,
        )
        #: Its `look_at` is the instant at which to look again for a place.
        self.window = self._waiting.window
        #: Whether a destination that may take no more of the window already holds nine tenths of the buffer.
        self.crowds = self._waiting.crowds
        #: Messages that are accepted and written together.
        self.batching = Batching(self._in_flight, self._waiting, self._refusals, self.settlement)
        #: The nacked messages that wait for their next attempt.
        self.delayed = self._waiting.delayed
        self._shares = Shares(self._in_flight, self._waiting)
        self._resending = Resending(
            self._in_flight, self._waiting, self._shares, self.rules, self.settlement, confirm_timeout
        )
        parts = self._in_flight, self._waiting, self._refusals, self.rules, self.settlement
        #: Takes what the broker says about publishes.
        self.answers = Answers(*parts, self._resending)
        #: Takes the ends of channels and links.
        self.ends = Ends(*parts)

    @property
    def link(self) -> int:
        """The number of the newest link; 0 before the first."""
        return self._in_flight.link

    # --- new messages -----------------------------------------------------------------------------------------------

    def full(self, size: int) -> bool:
        """Whether there is no capacity now for a body of `size` bytes. Always true once closed."""
        return self._waiting.full(size)

    def refusal(self, delivery: Delivery, now: float) -> PublishError | None:
        """Return the error from a remembered refusal for a message that is not accepted yet; None if there is none."""
        refusals = self._refusals
        refusals.expire(now)
        if not refusals.active and delivery.size <= refusals.max_size:
            return None
        fault = refusals.of(delivery, now)
        return None if fault is None else refused(delivery, fault, from_memory=True)

    def remembered(self, delivery: Delivery, now: float) -> PublishError | None:
        """Return the error from a remembered refusal for a message that waits to be accepted.

        Unlike `refusal`, this does not make the message a probe.
        """
        fault = self._refusals.answers(delivery, now)
        return None if fault is None else refused(delivery, fault, from_memory=True)

    def declared(self, exchange: str, *, standard: bool | None) -> None:
        """This producer has declared the exchange: refusals of it are forgotten.

        `standard` says whether its type is one of AMQP itself, so that its returns are certain; None: its type is not known.
        """
        self._refusals.declared(exchange)
        known = self.rules.standard_exchanges
        if standard is None:
            return
        self.rules.standard_exchanges = known | {exchange} if standard else known - {exchange}

    def accept(self, delivery: Delivery) -> None:
        """Accept the message. The caller has asked `full` at this instant."""
        self._waiting.expand_batches()
        self.settlement.accept(delivery)
        if delivery.retry is not None:
            self._resending.accepted(delivery)
        self._waiting.unsent.append(delivery)

    # --- the link ---------------------------------------------------------------------------------------------------

    def begin_link(self, link: int) -> None:
        """Start a new link: its channels are numbered from 1, and nothing is written yet. The last link has been lost."""
        if self.in_flight:
            raise RuntimeError(f"link {link} begins, but link {self.link} was not lost: {self.in_flight} in flight")
        self._waiting.expand_batches()
        self._in_flight.clear()
        self._in_flight.link = link
        self._refusals.clear()
        self._waiting.new_link()

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
        """The broker blocks publishers: write nothing, stop the confirm clocks. Publishes in flight stay in flight."""
        self._waiting.ready.clear()
        self._in_flight.pause()

    def resume(self, now: float) -> None:
        """The broker takes publishes again: go on in order. The confirm clocks start from 0."""
        self._in_flight.resume(now)

    def progressed(self, now: float) -> None:
        """Bytes of ours have left that had not left before: the confirm clocks start from 0."""
        self._in_flight.restart_clocks(now)

    def channel(self, lane: Lane) -> int | None:
        """Return the channel that is open for the lane."""
        epoch = self._in_flight.main if lane is Lane.MAIN else self._in_flight.suspect
        return None if epoch is None else epoch.channel

    def tags(self) -> list[tuple[int, int]]:
        """Return each open channel with its last tag."""
        return [(epoch.channel, epoch.last) for epoch in self._in_flight.epochs.values()]

    def next(self, now: float) -> Delivery | None:
        """Return the message to write next, or None; `Delivery.lane` says on which channel.

        None: no link, publishers blocked, window full, channel not open, or no message waits. The message stays in its
        queue until `published` or `refuse`. A message past its deadline is never returned; it ends here, and the next
        `expire` reports it.
        """
        in_flight = self._in_flight
        return self._waiting.next(now) if in_flight.publishing and not in_flight.paused else None

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
            raise RuntimeError(f"{delivery!r} is not the message that must be written next on channel {channel}")
        queue.take_head()
        delivery.attempts += 1
        if delivery.attempts > 1:
            self.counters.resent += 1
        if delivery.alone:
            delivery.suspected += 1
            self._waiting.suspect_first = False
        elif epoch.lane is Lane.SUSPECT and (key := self._waiting.key(delivery)) is not None:
            self._waiting.introductions.begin(key, delivery)
            self._waiting.suspect_first = True
        self._in_flight.size += delivery.size
        epoch.add(delivery, tag, now)

    def refuse(self, delivery: Delivery, reason: str) -> list[Delivery]:
        """End a message that cannot be put into frames on this link. It takes no tag."""
        settled: list[Delivery] = []
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
            # The fault of an earlier link is not the reason, so the error does not quote it.
            self.settlement.end_unwritten(delivery, InvalidMessage, reason, None, settled)
        return settled

    # --- time, callers, the end -------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Delivery]:
        """End the messages whose deadline has passed.

        Without a tag: `DeadlineExceeded`. In flight: `Unconfirmed` (`Unroutable` if the broker has returned it), and the
        tag stays taken until the broker answers.
        """
        settlement, waiting = self.settlement, self._waiting
        settled, waiting.ended = waiting.ended, []
        # The messages of a flight whose deadline has passed come in the next round, each as a delivery.
        while passed := settlement.deadlines.passed(now):
            for entry in passed:
                if isinstance(entry, Flight):
                    self._expand(entry)
                elif isinstance(entry, Delivery) and entry.waiting:
                    self._expire(entry, settled)
        self.ends.sweep(now, settled)
        return settled

    def _expand(self, flight: Flight) -> None:
        if not flight.waiting:
            return
        if not flight.first_tag:
            self._waiting.expand_batches()
        elif self._in_flight.main is not None:
            self._in_flight.main.expand(flight)

    def _expire(self, delivery: Delivery, settled: list[Delivery]) -> None:
        settlement = self.settlement
        if delivery.queue is not None:
            self._waiting.expire(delivery, settled)
            return
        fault = settlement.last_fault if delivery.unanswered else None
        self._end_in_flight(delivery, "its deadline passed", fault, settled)
        settlement.tombstones += 1

    def _end_in_flight(self, delivery: Delivery, why: str, fault: Fault | None, settled: list[Delivery]) -> None:
        """End a message that waits for the broker's answer."""
        if delivery.returned is not None:
            result = self.rules.unroutable(delivery, delivery.returned)
        else:
            result = unanswered(delivery, why, fault)
        self.settlement.answer(delivery, result, settled)

    def cancel(self, delivery: Delivery) -> bool:
        """The caller has left. True: no attempt of the message counts and none will be made. Idempotent.

        False: the message has its outcome already, or it has a tag. In the second case it is `abandoned`: tracked to its
        outcome, which goes to `late`, and never sent again. A message that waits to be sent again ends here, as `Unconfirmed`
        or `Nacked`.
        """
        settlement = self.settlement
        if delivery.queue is None:
            if delivery.outcome is None and delivery.epoch is not None and not delivery.abandoned:
                settlement.abandon(delivery)
            return delivery.outcome is None and not delivery.abandoned
        delivery.queue.remove(delivery)
        if earlier(delivery) is Verdict.REJECTED:
            settlement.stop_waiting(delivery)
            self.counters.rejected += 1
            self.counters.cancelled += 1
            return True
        settlement.abandon(delivery)
        reason = "cancelled while it waited to be sent again"
        settlement.answer(delivery, not_written(delivery, NotSent, reason, settlement.last_fault), [])
        return False

    def give_up(
        self,
        fault: Fault,
        now: float,
        kind: type[NotSent] = GaveUp,
        reason: str = "the attempts to reconnect are used up",
    ) -> list[Delivery]:
        """End every message: as `kind` if it was never written, as `Unconfirmed` if it may have been written."""
        return self._end_all(kind, reason, fault, now)

    def close(self, now: float, fault: Fault | None = None) -> list[Delivery]:
        """End every message, and accept no more.

        A message ends as `ProducerClosed` if it was never written, as `Unconfirmed` if it may have been written. If a
        link can still say how much was written, call `link_lost` first: it finds the messages that were not written.
        """
        self._waiting.expand_batches()
        self._waiting.close()
        return self._end_all(ProducerClosed, "the producer was closed", fault or self.settlement.last_fault, now)

    def _end_all(self, kind: type[NotSent], reason: str, fault: Fault | None, now: float) -> list[Delivery]:
        settled = self.expire(now)
        for delivery in list(self._in_flight.deliveries()):
            delivery.epoch = None
            self._end_in_flight(delivery, reason, fault, settled)
        self._in_flight.clear()
        for delivery in self._waiting.live():
            assert delivery.queue is not None
            delivery.queue.remove(delivery)
            self.settlement.end_unwritten(delivery, kind, reason, fault, settled)
        return settled

    def look(self, now: float, written: Callable[[int], int]) -> None:
        """Find the messages that are overdue now, and the introductions that the broker has accepted by saying nothing.

        `written(channel)` returns the highest tag that was written there.
        """
        in_flight = self._in_flight
        self.window.looked(now)
        found = in_flight.find_overdue(now)
        if found:
            self._waiting.ready.clear()
            self.counters.overdue += len(found)
        self._resending.look(found, now)
        epoch = in_flight.suspect
        if epoch is None or in_flight.paused:
            return
        last = written(epoch.channel)
        for delivery in epoch.outstanding.values():
            if passes_at(delivery, in_flight.clock_floor) > now or delivery.tag > last:
                break
            if not delivery.passed:
                delivery.passed = True
                if delivery.alone:
                    self._waiting.unanswered(delivery)
                else:
                    self._waiting.introductions.answered(delivery)
                    self._refusals.passed(delivery)

    def next_wakeup(self, now: float = -math.inf) -> float:
        """Return the instant at which to call `expire` and `look` and to ask `silent` next, or `math.inf`.

        With `now`, an instant for `look` or `silent` counts only if it is later. A silent link causes no further call.
        """
        if self._waiting.ended:
            return -math.inf
        instants = [self.settlement.deadlines.earliest()]
        watched = (
            self._in_flight.silent_at(),
            self._in_flight.overdue_at(),
            self.delayed.due_at(),
            self._resending.look_at(),
            self.window.look_at,
        )
        instants += [at for at in watched if at > now]
        if not self._in_flight.paused:
            at = next_pass(self._in_flight.suspect, self._in_flight.clock_floor)
            instants += [at] if at > now else []
        instants.append(self.ends.sweep_at)
        return min(instants)

    def silent(self, now: float) -> bool:
        """Whether publishes wait on the link and the broker has answered none for `confirm_timeout`.

        Time while the broker blocks publishers does not count, nor does time in which bytes of ours leave.
        """
        return now >= self._in_flight.silent_at()

    # --- counts -----------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """Counts since the start."""
        counters = self.settlement.counters
        counters.accepted += self._waiting.batches.new()
        return counters

    @property
    def in_flight(self) -> int:
        """Number of tags that the broker has not answered, those without a caller included."""
        return len(self._in_flight)

    @property
    def buffered(self) -> int:
        """Number of messages that wait to be written, for the first time or again."""
        return len(self._waiting)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the bodies of those messages."""
        return self._waiting.size

    @property
    def pending(self) -> int:
        """Number of accepted messages without an outcome."""
        return self.buffered + self.in_flight - self.settlement.tombstones

    @property
    def wants_suspect_channel(self) -> bool:
        """Whether suspects or introductions wait on a live link that has no channel for them."""
        in_flight = self._in_flight
        return in_flight.publishing and in_flight.suspect is None and self._waiting.wants_suspect_channel

    @property
    def overdue(self) -> Mapping[tuple[str, str], int]:
        """Number of overdue messages in flight, by exchange and routing key."""
        return self._in_flight.overdue

    def share_used(self, destination: tuple[str, str], size: int, now: float) -> bool:
        """Whether an unhealthy destination already holds its share of the window or of the buffer."""
        return self._shares.used(destination, size, now)
