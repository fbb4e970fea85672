"""The sender: where publishers wait for a link, and the only place that moves messages from the ledger to a link.

The ledger (`warrener._publishing.ledger.ledger`) decides, the sender does: it hands what the ledger says to `Link.publish`, wakes the
publishers whose outcome the ledger has settled, and keeps the one timer that the ledger asks for. It opens, pauses and
shuts on the supervisor's orders. Nothing in here awaits but the timer and the waiting publishers themselves, so a
publisher's cancellation finds either "nothing was handed over" or "handed over", never something in between.

What must stay true:

* Every delivery that the ledger accepted is woken exactly once, or its publisher was cancelled.
* Publishers that wait for room are let in in the order in which they came (`_Room`); nobody overtakes them.
* Facts of an ended link change nothing: `_LinkListener` looks at its link's number first.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from attrs import define, field

from warrener._backend import Backend
from warrener._publishing.ledger import Delivery, Ledger
from warrener.drivers.base import Lane, Link
from warrener.errors import (
    BufferFull,
    CircuitOpen,
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishError,
    Unconfirmed,
    printable,
)
from warrener.machine import Permit
from warrener.records import Outcome, Receipt, Returned

__all__ = ["Batch", "Sender", "SenderOwner"]

log = logging.getLogger("warrener")

#: A timer that wakes so many seconds after its time was held up, and gives the reader of the link so many checkpoints.
LATE = 0.01
GRACE = 5
#: At most so many returned messages are logged in `RETURN_LOG_WINDOW` seconds; the rest is counted and summed up.
RETURN_LOG_LIMIT = 10
RETURN_LOG_WINDOW = 10.0

_MAIN = Lane.MAIN


class SenderOwner(Protocol):
    """What the sender asks of, and tells, the supervisor. Plain functions."""

    #: Whether the breaker lets everybody in; read on every publish.
    breaker_closed: bool
    #: Whether a confirm would change the record (breaker not clean, link not proven); read on every confirm.
    wants_confirms: bool

    def admit(self) -> Permit | float | None:
        """Ask the breaker: a permit, None where none is needed, or the seconds to wait before asking again."""
        ...

    def patience(self) -> float:
        """Return the seconds to wait before asking the breaker, without asking it."""
        ...

    def confirmed(self, link: int, permit: Permit | None) -> None:
        """The broker acked; with the permit of a probe, where it was one."""

    def nacked(self, link: int, permit: Permit | None) -> None:
        """The broker nacked."""

    def released(self, permit: Permit) -> None:
        """A probe was never written, or its caller left."""

    def channel_closed(self, link: int, fault: Fault) -> None:
        """The broker closed a publishing channel."""

    def blocked(self, link: int) -> None:
        """The broker takes no publishes for now."""

    def unblocked(self, link: int) -> None:
        """It takes them again."""

    def confirm_overdue(self, link: int) -> None:
        """The oldest publish has waited longer than `confirm_timeout`."""

    def drained(self) -> None:
        """Closing, and nothing accepted is unsettled any more."""


class Batch:
    """A waiter for many deliveries at once: woken when the last of them is settled."""

    __slots__ = ("items", "left", "waiter")

    def __init__(self) -> None:
        #: In the order given: what was taken in, or why it was refused.
        self.items: list[Delivery | PublishError] = []
        self.left = 0
        self.waiter: Any = None

    def deliveries(self) -> Iterator[Delivery]:
        """Return what was taken in."""
        return (item for item in self.items if isinstance(item, Delivery))

    def forget(self) -> None:
        """Nobody waits for the batch any more."""
        self.waiter = None
        for delivery in self.deliveries():
            delivery.waiter = None


@define(eq=False)
class _Room:
    """A publisher that waits for room; the sender admits its delivery itself, so nobody can overtake it."""

    delivery: Delivery
    changed: anyio.Event = field(factory=anyio.Event)
    admitted: bool = False
    refusal: PublishError | None = None


class _LinkListener:
    """The reports of one link, and of no other."""

    __slots__ = ("_ledger", "_number", "_sender")

    def __init__(self, sender: Sender, number: int) -> None:
        self._sender = sender
        self._ledger = sender.ledger
        self._number = number

    def channel_opened(self, lane: Lane, channel: int) -> None:
        if self._sender.number == self._number:
            self._ledger.channel_opened(lane, channel)
            self._sender.pump()

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        if self._sender.number == self._number:
            settled = self._ledger.channel_closed(lane, channel, fault, written, self._sender.backend.clock())
            self._sender.settle(settled)
            self._sender.owner.channel_closed(self._number, fault)
            self._sender.pump()

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        sender = self._sender
        if sender.number == self._number:
            sender.settle(self._ledger.confirmed(channel, tag, multiple, sender.backend.clock()))
            if sender.owner.wants_confirms:
                sender.owner.confirmed(self._number, None)
            sender.pump()

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        sender = self._sender
        if sender.number == self._number:
            sender.settle(self._ledger.nacked(channel, tag, multiple, sender.backend.clock()))
            sender.pump()

    def returned(self, channel: int, returned: Returned) -> None:
        sender = self._sender
        if sender.number == self._number:
            sender.log_return(returned)
            sender.settle(self._ledger.returned(channel, returned, sender.backend.clock()))

    def blocked(self, reason: str) -> None:
        if self._sender.number == self._number:
            log.warning("%s: the broker blocks publishing: %s", self._sender.name, printable(reason))
            self._sender.owner.blocked(self._number)

    def unblocked(self) -> None:
        if self._sender.number == self._number:
            log.info("%s: the broker takes publishes again", self._sender.name)
            self._sender.owner.unblocked(self._number)

    def writable(self) -> None:
        if self._sender.number == self._number:
            self._sender.pump()


def _leave(delivery: Delivery) -> None:
    delivery.waiter = None


class Sender:
    """See the module's docstring. One per producer; lives as long as its `run()`."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        owner: SenderOwner,
        *,
        name: str,
        max_block: float,
        confirm_timeout: float,
    ) -> None:
        #: The producer's, for the log.
        self.name = name
        self.ledger = ledger
        self.backend = backend
        self.owner = owner
        #: The number of the link whose reports count; 0: none.
        self.number = 0
        self._max_block = max_block
        self._confirm_timeout = confirm_timeout
        self._link: Link | None = None
        #: Whether the block of that link has been left, or will be without our doing.
        self._ended = True
        self._open = False
        #: Since when no publish can be written (no link, or blocked); None while they can.
        self._stalled_since: float | None = backend.clock()
        self._rooms: deque[_Room] = deque()
        self._timer_at = -math.inf
        self._timer_poke = anyio.Event()
        self._draining = False
        #: Why nothing is accepted any more; None while publishes are.
        self._refusal: Callable[[str], PublishError] | None = None
        self._listeners: list[Callable[[Outcome], None]] = []
        self._pumping = False
        #: message_ids settled otherwise than by the broker since the closing began; bounded by what was pending then.
        self.unconfirmed: list[str] = []
        self.not_sent: list[str] = []
        self._returns_logged = 0
        self._returns_hushed = 0
        self._returns_since = -math.inf

    # --- the supervisor's orders: plain functions, no checkpoint ---------------------------------------------------

    def expect(self, number: int) -> _LinkListener:
        """A dial begins: from now on facts of this link count, and of no other."""
        self.number = number
        self._link = None
        self.ledger.begin_link(number)
        return _LinkListener(self, number)

    def attach(self, link: Link) -> None:
        """The dialed link is open; publishers are let in later, by `open`."""
        self._link = link
        self._ended = False

    def open(self, number: int) -> None:
        """Let publishers in on the attached link, or in again after a pause; what waits goes with the next `pump`."""
        if number != self.number or self._link is None:
            return
        self.ledger.link_up(number)
        self.ledger.resume(self.backend.clock())
        self._open = True
        self._flow(stalled=False)
        self._poke_timer()

    def pause(self, number: int) -> None:
        """Hold publishers back; what is in flight stays pending and its confirm clock stands still."""
        if number != self.number or self._link is None:
            return
        now = self.backend.clock()
        self.ledger.link_up(number)
        self.ledger.pause(now)
        self._open = False
        self._flow(stalled=True)

    def halt(self) -> None:
        """The link's block has been left: hand nothing to it any more. `shut` settles what was in flight."""
        self._open = False
        self._ended = True

    def shut(self, fault: Fault) -> None:
        """The link is lost: settle what was in flight by the delivery mode; the rest waits for the next link."""
        link, self._link, self._open, self.number = self._link, None, False, 0
        if link is not None and not self._ended:
            # It is being replaced: from here on it hands out nothing more that would not count as written.
            link.abort(fault)
        written = _nothing if link is None else link.written
        self.settle(self.ledger.link_lost(fault, written, self.backend.clock()))
        self._flow(stalled=True)

    def fail_pending(self, fault: Fault) -> None:
        """Gave up: everything pending is settled at once, and new calls are refused until a hint revives the producer."""
        self._refuse_with(
            lambda message_id: GaveUp(message_id, "the reconnect attempts are used up", last_fault=fault),
            self.ledger.give_up(fault, self.backend.clock()),
        )

    def accept_again(self) -> None:
        """A producer that had given up was revived."""
        if not self._draining:
            self._refusal = None

    def stop_accepting(self) -> None:
        """The producer closes: new calls and those that wait for room are refused; `SenderOwner.drained` follows."""
        if self._draining:
            return
        self._draining = True
        self._refuse_with(
            lambda message_id: ProducerClosed(message_id, "the producer is closing", last_fault=self.ledger.last_fault),
            [],
        )
        if self.ledger.empty:
            self.owner.drained()

    def close(self) -> None:
        """Final: settle everything that is left."""
        self.stop_accepting()
        if self._link is not None:
            # Cut off without a LinkLost: the link still tells what had not been written to the network.
            self.shut(Fault(FaultKind.CLOSED, "the producer was closed"))
        self.settle(self.ledger.close(self.backend.clock()))

    def _refuse_with(self, refusal: Callable[[str], PublishError], settled: Sequence[Delivery]) -> None:
        self._refusal = refusal
        rooms, self._rooms = self._rooms, deque()
        for room in rooms:
            room.refusal = refusal(room.delivery.message_id)
            room.changed.set()
        self.settle(settled)

    def _flow(self, *, stalled: bool) -> None:
        """Tell those who wait for room that the link came or went: `max_block` counts only while it is away."""
        if stalled == (self._stalled_since is not None):
            return
        self._stalled_since = self.backend.clock() if stalled else None
        for room in self._rooms:
            room.changed.set()

    # --- from the ledger to the link -------------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand over what may be written now, and let in who waits for the room that this makes."""
        if self._pumping:
            return  # a link that reports from within `publish`: the outer call goes on
        self._pumping = True
        try:
            if self._open:
                self._write(self.backend.clock())
            while self._rooms and not self.ledger.full(len(self._rooms[0].delivery.body)):
                room = self._rooms.popleft()
                room.admitted = True
                room.changed.set()
                now = self.backend.clock()
                self.ledger.accept(room.delivery, now)
                self._watch(room.delivery, now)
                if self._open:
                    self._write(now)
        finally:
            self._pumping = False

    def _write(self, now: float) -> None:
        ledger, link, owner = self.ledger, self._link, self.owner
        if link is None:
            return
        while not link.congested:
            delivery = ledger.next(now)
            if delivery is None:
                break
            envelope, message_id, body, token = delivery.envelope, delivery.message_id, delivery.body, delivery.token
            problem = link.validate(envelope, message_id, body, token)
            if problem is not None:
                self.settle(ledger.refuse(delivery, problem))
                continue
            if not owner.breaker_closed and not self._permitted(delivery):
                break
            lane = delivery.lane
            channel = ledger.channel(lane)
            if channel is None:
                break
            ledger.sent(delivery, channel, link.publish(lane, envelope, message_id, body, token), now)
        if ledger.has_suspects and ledger.wants_suspect_channel:
            link.open_suspect_channel()

    def _permitted(self, delivery: Delivery) -> bool:
        """Whether the half-open breaker lets this one be written: with the permit it was admitted with, or a new one."""
        permit = self.owner.admit() if delivery.permit is None else delivery.permit
        if isinstance(permit, float):
            return False
        delivery.permit = permit
        return True

    # --- from the ledger to the publishers -------------------------------------------------------------------------

    def settle(self, settled: Sequence[Delivery]) -> None:
        """Wake the publishers whose outcome was decided, pass on late outcomes, tell the breaker."""
        for delivery in settled:
            ticket = delivery.waiter
            if ticket is not None:
                delivery.waiter = None
                if type(ticket) is Batch:
                    ticket.left -= 1
                    ticket = ticket.waiter if ticket.left == 0 else None
                if ticket is not None:
                    self.backend.wake(ticket)
            outcome = delivery.outcome
            if self._draining and type(outcome) is not Receipt:
                self._note_unsettled(outcome)
            if type(outcome) is Nacked:
                self.owner.nacked(self.number, delivery.permit)
            elif delivery.permit is not None:
                self._return_permit(delivery)
        ledger = self.ledger
        if ledger.late:
            while ledger.late:
                self._tell(ledger.late.popleft())
        if self._draining and ledger.empty:
            self.owner.drained()

    def _note_unsettled(self, outcome: Receipt | PublishError | None) -> None:
        if isinstance(outcome, NotSent):
            self.not_sent.append(outcome.message_id)
        elif isinstance(outcome, Unconfirmed):
            self.unconfirmed.append(outcome.message_id)

    def _return_permit(self, delivery: Delivery) -> None:
        permit, delivery.permit = delivery.permit, None
        if isinstance(delivery.outcome, Receipt):
            self.owner.confirmed(self.number, permit)
        elif permit is not None:
            self.owner.released(permit)

    def _tell(self, outcome: Outcome) -> None:
        for listener in self._listeners:
            listener(outcome)

    def listen(self, listener: Callable[[Outcome], None]) -> Callable[[], None]:
        """Call `listener` (a plain, quick function) with each late outcome; returns how to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def log_return(self, returned: Returned) -> None:
        """One WARNING per returned message, rate-limited; never its body or headers."""
        now = self.backend.clock()
        if now - self._returns_since >= RETURN_LOG_WINDOW:
            if self._returns_hushed:
                log.warning("%s: %d more returned messages were not logged one by one", self.name, self._returns_hushed)
            self._returns_since, self._returns_logged, self._returns_hushed = now, 0, 0
        if self._returns_logged >= RETURN_LOG_LIMIT:
            self._returns_hushed += 1
            return
        self._returns_logged += 1
        log.warning(
            "%s: returned by the broker: exchange %r, routing key %r, code %d %s, message %s",
            self.name,
            printable(returned.exchange),
            printable(returned.routing_key),
            returned.reply_code,
            printable(returned.reply_text),
            printable(returned.message_id or "?"),
        )

    # --- publishers ------------------------------------------------------------------------------------------------

    def write_straight(self, delivery: Delivery, now: float) -> bool:
        """Accept and write at once, where nothing and nobody stands in the way; False: nothing was done, go on with `refusal`.

        What `refusal`, `try_accept` and `pump` come to in the usual state of a healthy link, without their questions.
        """
        link = self._link
        if not self._open or link is None or link.congested or self._rooms or self._pumping:
            return False
        if self._refusal is not None or not self.owner.breaker_closed or delivery.deadline <= now:
            return False
        ledger = self.ledger
        channel = ledger.straight(delivery.size)
        if channel is None:
            return False
        envelope, message_id, body, token = delivery.envelope, delivery.message_id, delivery.body, delivery.token
        if link.validate(envelope, message_id, body, token) is not None:
            return False
        self._pumping = True
        try:
            ledger.accept_sent(delivery, channel, link.publish(_MAIN, envelope, message_id, body, token), now)
        finally:
            self._pumping = False
        timer_at = self._timer_at
        if delivery.deadline < timer_at or now + self._confirm_timeout < timer_at:
            self._poke_timer()
        return True

    def refusal(self, delivery: Delivery) -> PublishError | None:
        """Ask everything that is asked once, at the call: closing, gave up, breaker. Nothing is kept on a refusal."""
        if self._refusal is not None:
            return self._refusal(delivery.message_id)
        if not self.ledger.fits(delivery.size):
            return BufferFull(delivery.message_id, "the body alone is larger than max_buffered_bytes")
        if not self.owner.breaker_closed:
            # Half-open: what was accepted before goes first, so a newcomer is a probe only when nothing else waits.
            permit = self.owner.admit() if not self.ledger.buffered else self.owner.patience()
            if isinstance(permit, float):
                fault = self.ledger.last_fault
                return CircuitOpen(
                    delivery.message_id,
                    f"the circuit breaker is open; ask again in {permit:.3g} s",
                    retry_after=permit,
                    last_fault=fault,
                )
            delivery.permit = permit
        return None

    def try_accept(self, delivery: Delivery, now: float) -> bool:
        """Accept and, where possible, write at once; False when there is no room or others wait for it already."""
        ledger = self.ledger
        if self._rooms or ledger.full(delivery.size):
            return False
        ledger.accept(delivery, now)
        self._watch(delivery, now)
        if self._open and not self._pumping:
            # What `pump` does when nobody waits for room.
            self._pumping = True
            try:
                self._write(now)
            finally:
                self._pumping = False
        return True

    def full(self, delivery: Delivery) -> BufferFull:
        """What a delivery that found no room is refused with."""
        fault = self.ledger.last_fault
        return BufferFull(delivery.message_id, "the buffer of unwritten messages is full", last_fault=fault)

    async def wait_for_room(self, delivery: Delivery) -> PublishError | None:
        """Wait until the delivery is accepted: to its deadline while the link flows, `max_block` while it does not."""
        called = self.backend.clock()
        room = _Room(delivery)
        self._rooms.append(room)
        try:
            while True:
                limit = delivery.deadline
                if self._stalled_since is not None:
                    limit = min(limit, max(called, self._stalled_since) + self._max_block)
                room.changed = anyio.Event()
                with anyio.move_on_after(limit - self.backend.clock()):
                    await room.changed.wait()
                if room.admitted or room.refusal is not None:
                    return room.refusal
                if self.backend.clock() >= limit:
                    self._rooms.remove(room)
                    self.give_back(delivery)
                    if limit == delivery.deadline:
                        return DeadlineExceeded(
                            delivery.message_id, "no room until the deadline", last_fault=self.ledger.last_fault
                        )
                    return self.full(delivery)
        except BaseException:
            if room.admitted:
                self.cancelled(delivery)
            else:
                if room in self._rooms:
                    self._rooms.remove(room)
                self.give_back(delivery)
            raise

    async def watch(self, delivery: Delivery) -> None:
        """Park until the delivery is settled; cancelling the wait is nothing to the publish."""
        await self.backend.park(delivery, _leave)

    def cancelled(self, delivery: Delivery) -> None:
        """The publisher is cancelled: un-accept what was not handed over, track the rest to its outcome."""
        delivery.waiter = None
        if delivery.outcome is not None:
            self._tell(Outcome(delivery.message_id, delivery.outcome))
        else:
            self.ledger.cancel(delivery, self.backend.clock())
            self.give_back(delivery)
            self.settle([])
            self.pump()

    def give_back(self, delivery: Delivery) -> None:
        """Return an unused permit to the breaker."""
        permit, delivery.permit = delivery.permit, None
        if permit is not None:
            self.owner.released(permit)

    # --- the one timer ---------------------------------------------------------------------------------------------

    def _watch(self, delivery: Delivery, now: float) -> None:
        timer_at = self._timer_at
        if delivery.deadline < timer_at or now + self._confirm_timeout < timer_at:
            self._poke_timer()

    def _poke_timer(self) -> None:
        self._timer_at = -math.inf
        self._timer_poke.set()

    async def run_timer(self) -> None:
        """Expire what is due and report an overdue confirm. Sleeps while nothing is due; stale wake-ups do no harm.

        A new publish pokes the timer only when it is due before the timer would wake, which with equal timeouts is
        never: an idle producer has no wake-ups, a busy one a few in `confirm_timeout`.
        """
        while True:
            now = self.backend.clock()
            self.settle(self.ledger.expire(now))
            if self.ledger.overdue(now) and self.number:
                self.owner.confirm_overdue(self.number)
            self.pump()
            self._timer_at = wake_at = self.ledger.next_wakeup(now)
            self._timer_poke = anyio.Event()
            with anyio.move_on_after(max(wake_at - self.backend.clock(), 0.0) if wake_at < math.inf else None):
                await self._timer_poke.wait()
            if self.backend.clock() > wake_at + LATE:
                # The machine slept, or the loop stood still: what the broker said meanwhile is read first (R23).
                for _ in range(GRACE):
                    await anyio.lowlevel.checkpoint()


def _nothing(_channel: int) -> int:
    """What a link that was never attached has written."""
    return 0
