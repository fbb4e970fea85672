"""The sender: moves messages from the ledger to the link.

The ledger decides, the sender acts. It gives the link the messages that the ledger names. It has `Settling` wake the
publishers whose outcome the ledger has set, and `Timer` look at the times of the messages. It starts, pauses and stops on
the supervisor's orders (`warrener._supervision.orders`). Only the timer and waiting publishers await. So when a publisher
is cancelled, its message either has no tag yet or has one; there is no state in between.

Invariants: each accepted message wakes its publisher exactly once, or its publisher was cancelled. A message of a batch
overtakes no other.
"""

from __future__ import annotations

from collections.abc import Callable

from warrener._backend import Backend
from warrener._ids import ID_LENGTH, IdRange
from warrener._publishing.admission import Admission
from warrener._publishing.broker_log import BlockedLog, ReturnsLog, SuppressedLog
from warrener._publishing.leaving import Leaving
from warrener._publishing.ledger import Delivery, Ledger, Ticket
from warrener._publishing.ledger.batching import LARGEST
from warrener._publishing.ledger.flights import Flight
from warrener._publishing.ledger.introductions import SUSPECT_PASSES_AFTER
from warrener._publishing.listener import LinkFacts
from warrener._publishing.progress import Progress
from warrener._publishing.run_feed import RunFeed
from warrener._publishing.runs import receipt_of
from warrener._publishing.settling import Settling
from warrener._publishing.timer import Timer
from warrener._supervision.supervisor import Supervisor
from warrener.drivers.base import Lane, Link
from warrener.errors import Fault, FaultKind, GaveUp, NotSent, ProducerClosed, PublishError
from warrener.records import Envelope, Outcome, Receipt

__all__ = ["Sender"]

#: While bytes of ours wait to leave, the timer looks at them this number of times in `confirm_timeout`.
LOOKS = 8
#: Maximum number of envelopes that are remembered as ready.
MOST_READY = 1024

_MAIN = Lane.MAIN
#: An id and a token for the check of an envelope: no message of a flight has longer ones.
_LONGEST_ID = "0" * 255
_ANY_TOKEN = "0" * ID_LENGTH
_REFUSED = "the broker refuses this producer"


class Sender:
    """One per producer; lives as long as its `run()`. The head of this module explains it."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        supervisor: Supervisor,
        admission: Admission,
        *,
        name: str,
        confirm_timeout: float,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.ledger = ledger
        self._batching = ledger.batching
        #: The usual way of a message: see `Batching.add`. 0: take `join`.
        self.add = ledger.batching.add
        #: What the ids of messages in flights begin with.
        self.id_prefix = ledger.batching.batches.prefix
        self.feed = RunFeed(backend, ledger.batching, self._takes, self._ask)
        self.backend = backend
        self.supervisor = supervisor
        self.admission = admission
        admission.pump = self.pump
        self.returns_log = ReturnsLog(name)
        self.blocked_log = BlockedLog(name)
        self._suppressed_log = SuppressedLog(name)
        self._confirm_timeout = confirm_timeout
        self.settling = Settling(ledger, backend, supervisor, admission, tell)
        self.leaving = Leaving(ledger, backend, admission, self.settling, pump=self.pump)
        admission.cancelled = self.leaving.cancelled
        self._link: Link | None = None
        #: Whether the driver has ended that link, or is ending it.
        self._ended = True
        #: Whether messages may be written on that link.
        self._started = False
        self._pumping = False
        #: Whether the link will call `pull`.
        self._pull_requested = False
        #: Whether the broker refuses the producer for a reason that time does not end.
        self._refused = False
        self.timer = Timer(backend, self.look)
        self._progress = Progress()

    # --- the supervisor's orders: see `warrener._supervision.orders` --------------------------------------------------

    def expect_link(self, number: int) -> LinkFacts:
        """A dial begins: from now on facts about this link count, and about no other."""
        self.settling.number = number
        self._link = None
        self._pull_requested = False
        self.ledger.begin_link(number)
        return LinkFacts(self, number)

    def link_opened(self, link: Link) -> None:
        """The dialed link is open."""
        self._link = link
        self._ended = False

    def link_ended(self) -> None:
        """The driver has ended the link: give it no more messages."""
        self._started = False
        self._ended = True

    def start_publishing(self, number: int) -> None:
        """Write messages on the link; `pump` follows."""
        if number != self.settling.number or self._link is None:
            return
        self._accept_after_refusal()
        self.ledger.link_up(number)
        self.ledger.resume(self.backend.clock())
        self._started = True
        self.admission.note_flow(stalled=False)
        self.timer.poke()

    def pause_publishing(self, number: int) -> None:
        """Hold messages back; what is in flight stays in flight."""
        if number != self.settling.number or self._link is None:
            return
        self._accept_after_refusal()
        self.ledger.link_up(number)
        self.ledger.pause()
        self._started = False
        self.feed.release()
        self.admission.note_flow(stalled=True)

    def stop_publishing(self, fault: Fault) -> None:
        """The link is lost: end its attempts by the delivery mode."""
        link, self._link, self._started, self.settling.number = self._link, None, False, 0
        self.settling.handing_over = False
        if link is not None and not self._ended:
            # The link is being replaced. Abort it first: then `written` is final, because nothing more can be written.
            link.abort(fault)
        written = _nothing if link is None else link.written
        self.settling.settle(self.ledger.ends.link_lost(fault, written))
        self.settling.settle(self.ledger.ends.impatient(fault))
        self.feed.release()  # behind `link_lost`, after which no envelope is ready
        self.admission.note_flow(stalled=True)

    def fail_pending(self, fault: Fault) -> None:
        """The attempts are used up: end all pending messages, and refuse new ones."""
        self.admission.refuse_with(
            lambda message_id: GaveUp(message_id, "the reconnect attempts are used up", last_fault=fault)
        )
        self.settling.settle(self.ledger.give_up(fault, self.backend.clock()))

    def report_settled(self, number: int) -> None:
        """The link is to be handed over: tell the supervisor when no message is in flight on it."""
        if number == self.settling.number:
            self.settling.handing_over = True
            self.settling.settle([])

    def refuse_publishing(self, fault: Fault) -> None:
        """The broker refuses the producer for a reason that time does not end: end all pending messages, refuse new ones."""
        if self.settling.closing:
            return
        self._refused = True
        self.admission.refuse_with(lambda message_id: NotSent(message_id, _REFUSED, last_fault=fault))
        self.settling.settle(self.ledger.give_up(fault, self.backend.clock(), NotSent, _REFUSED))

    def accept_again(self) -> None:
        """A dial begins after the attempts had been used up: accept new messages, unless the broker refuses the producer."""
        if not self.settling.closing and not self._refused:
            self.admission.refusal = None

    def _accept_after_refusal(self) -> None:
        """A link is up: the broker no longer refuses the producer."""
        if self._refused:
            self._refused = False
            self.accept_again()

    def stop_accepting(self) -> None:
        """The producer closes: refuse new messages, and tell the supervisor when none is pending."""
        if self.settling.closing:
            return
        self.settling.closing = True
        settlement = self.ledger.settlement
        self.admission.refuse_with(
            lambda message_id: ProducerClosed(message_id, "the producer is closing", last_fault=settlement.last_fault)
        )
        self.feed.release()
        self.settling.settle([])

    def note_fault(self, fault: Fault | None) -> None:
        """Remember the newest fault, which errors quote."""
        self.ledger.settlement.last_fault = fault

    def close(self) -> None:
        """End every message that is left."""
        self.stop_accepting()
        if self._link is not None:
            # `run()` ended without a LinkLost. The link can still say what it has written.
            self.stop_publishing(Fault(FaultKind.CLOSED, "the producer was closed"))
        self.settling.settle(self.ledger.close(self.backend.clock()))

    # --- from the ledger to the link --------------------------------------------------------------------------------

    def join(self, envelope: Envelope, body: bytes, ticket: Ticket, timeout: float) -> int:
        """Accept a message into the batch that the link will ask for; return the number of its id.

        0: nothing was done; ask `Admission.refused` and go on from there.
        """
        batching = self._batching
        if envelope not in batching.ready and not self._make_ready(envelope):
            return 0
        if len(body) > LARGEST or timeout <= 0:
            return 0
        now = self.backend.clock()
        number = batching.join(envelope, body, ticket, timeout, now)
        if not number:
            # Some messages wait only until the link asks for them: write them now, which can make capacity.
            self.pump()
            number = batching.join(envelope, body, ticket, timeout, now) if envelope in batching.ready else 0
            if not number:
                return 0
        if now + timeout < self.timer.at:
            self.timer.poke()
        if not self._pull_requested:
            self._request_pull()
        return number

    def _ask(self) -> None:
        """Have the link ask for messages, once."""
        if not self._pull_requested:
            self._request_pull()

    def _takes(self, envelope: Envelope) -> bool:
        """Whether messages with this envelope are written together now."""
        return envelope in self._batching.ready or self._make_ready(envelope)

    def _make_ready(self, envelope: Envelope) -> bool:
        """Whether messages with this envelope can be published together with others; if so, remember the envelope."""
        link, admission, batching = self._link, self.admission, self._batching
        if not self._started or link is None or admission.waiters or admission.refusal is not None:
            return False
        if not self.supervisor.breaker_closed or not batching.can_join(envelope):
            return False
        if admission.destinations.wants_outcomes(envelope):
            return False
        if link.validate(envelope, _LONGEST_ID, b"", _ANY_TOKEN) is not None:
            return False
        if len(batching.ready) >= MOST_READY:
            batching.ready.clear()
        batching.ready.add(envelope)
        return True

    def _request_pull(self) -> None:
        if self._link is not None and self._started:
            self._pull_requested = True
            self._link.request_pull()

    def pull(self) -> None:
        """The link is about to send."""
        self._pull_requested = False
        self._batching.batches.close()  # as long as a batch is open, the link will ask for it
        self.pump()

    def go_on(self) -> None:
        """There may be room for messages that wait. Those of batches and runs wait until the link asks for them."""
        if self.admission.waiters or self._batching.others_wait:
            self.pump()
        elif (self.feed.runs or self._batching.batches.flights) and not self._pull_requested:
            self._request_pull()

    def accepted(self, delivery: Delivery, now: float) -> None:
        """A message has just been accepted: write it now if that is possible."""
        self._keep_time(delivery, now)
        if self._started and not self._pumping:
            self._pumping = True
            try:
                self._write(now)
            finally:
                self._pumping = False

    def pump(self) -> None:
        """Write the messages that may be written now, and accept the waiters for which that makes capacity."""
        if self._pumping:
            return  # the link reports from within `publish`; the outer call goes on
        self._pumping = True
        try:
            if self._started:
                self._write(self.backend.clock())
            while (delivery := self.admission.let_in()) is not None:
                now = self.backend.clock()
                self._keep_time(delivery, now)
                if self._started:
                    self._write(now)
        finally:
            self._pumping = False
        if self.feed.runs:
            self.feed.release()

    def _write(self, now: float) -> None:
        link, batching = self._link, self._batching
        if link is None:
            return
        self._write_alone(link, now)
        if batching.batches.flights or self.feed.runs:
            self._write_batches(link, now)
            if batching.others_wait:
                self._write_alone(link, now)  # trouble has expanded a batch
        self.timer.wake_by(self.ledger.window.look_at)

    def _write_alone(self, link: Link, now: float) -> None:
        """Write the messages that are in no batch."""
        ledger, supervisor = self.ledger, self.supervisor
        while not link.congested:
            delivery = ledger.next(now)
            if delivery is None:
                break
            envelope, message_id, body, token = delivery.envelope, delivery.message_id, delivery.body, delivery.token
            problem = link.validate(envelope, message_id, body, token)
            if problem is not None:
                self.settling.settle(ledger.refuse(delivery, problem))
                continue
            if not supervisor.breaker_closed and not self.admission.permitted(delivery):
                break
            lane = delivery.lane
            channel = ledger.channel(lane)
            if channel is None:
                break
            ledger.published(delivery, channel, link.publish(lane, envelope, message_id, body, token), now)
            if lane is not _MAIN and now + SUSPECT_PASSES_AFTER < self.timer.at:
                self.timer.poke()
        if ledger.wants_suspect_channel:
            link.open_suspect_channel()
            if not ledger.wants_suspect_channel:
                self._write(now)  # a link without a socket has opened the channel at once

    def _write_batches(self, link: Link, now: float) -> None:
        batching = self._batching
        if self.backend.leaves_late:
            self.leaving.take_back()
        runs = self.feed
        # Runs and batches take turns to be first, so that neither can take the whole window for ever.
        runs.first = not runs.first
        if runs.runs and runs.first:
            runs.write(link, now, self._fly)
        while not link.congested and (flight := batching.next_flight(now)) is not None:
            self._fly(link, flight, now)
        if runs.runs and not runs.first:
            runs.write(link, now, self._fly)

    def _fly(self, link: Link, flight: Flight, now: float) -> None:
        at, count = flight.at, len(flight) - flight.at
        ids = IdRange(flight.prefix, flight.first_number + at, count)
        if flight.ids is None:
            tag = link.publish_batch(flight.envelopes[at:], ids, flight.bodies[at:])
        else:
            tag = link.publish_batch(flight.envelopes[at:], flight.ids[at:], flight.bodies[at:], ids)
        self._batching.flown(flight, tag, now)
        self.timer.wake_by(min(flight.deadline, now + self._confirm_timeout))

    def begun(self, channel: int) -> int:
        """Return the highest tag of the channel of which a byte was given to the transport."""
        return 0 if self._link is None else self._link.begun(channel)

    # --- publishers -------------------------------------------------------------------------------------------------

    def note_nacks(self, now: float) -> None:
        """Tell the breakers about the messages that the broker has just nacked; `settle` follows for those that end."""
        self.settling.nacked(now)
        self.timer.wake_by(self.ledger.delayed.due_at())
        self._suppressed_log.note(self.ledger.counters.suppressed, now)

    def outcome(self, ticket: Ticket) -> Receipt | PublishError | None:
        """Return the outcome of the ticket's message; None while there is none."""
        if ticket.code:
            return receipt_of(self.id_prefix, ticket.code)
        return None if ticket.delivery is None else ticket.delivery.outcome

    def message_id(self, number: int) -> str:
        """Return the id with this number."""
        return f"{self.id_prefix}{number:012x}"

    # --- time -------------------------------------------------------------------------------------------------------

    def _keep_time(self, delivery: Delivery, now: float) -> None:
        """Wake the timer if this message is due before it would wake."""
        self.timer.wake_by(min(delivery.deadline, now + self._confirm_timeout))

    def keep_sweep(self) -> None:
        """Wake the timer if the ledger has to search its waiting messages before the timer would wake."""
        self.timer.wake_by(self.ledger.ends.sweep_at)

    async def run_timer(self) -> None:
        """Call `look` whenever it is due. Runs until it is cancelled."""
        await self.timer.run()

    def look(self, now: float) -> float:
        """End messages at their deadline, find overdue ones, report a silent link; return when to look again."""
        self.settling.settle(self.ledger.expire(now))
        self.admission.refuse_waiters()
        if self._link is not None:
            if self._progress.made(self._link, self.ledger.tags()):
                self.ledger.progressed(now)
            self.ledger.look(now, self._link.written)
            self._suppressed_log.note(self.ledger.counters.suppressed, now)
        if self.ledger.silent(now) and self.settling.number:
            self.supervisor.confirm_overdue(self.settling.number)
        self.go_on()
        wake_at = self.ledger.next_wakeup(now)
        if self._progress.unfinished:
            # Bytes of ours wait to leave: look often enough to see when the last one has left.
            wake_at = min(wake_at, now + self._confirm_timeout / LOOKS)
        return wake_at


def _nothing(_channel: int) -> int:
    """Return how much was written on a link that never opened."""
    return 0
