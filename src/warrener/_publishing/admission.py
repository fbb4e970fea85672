"""Admission: which new messages are accepted, at once or when there is capacity, and which are refused.

Each question is asked once, when publish is called: is the producer closing? Did it give up? Does the circuit breaker let
the message in? Is there capacity? A message that finds no capacity waits, first come, first served; `max_block` limits
that wait only while there is no link or the broker blocks publishers. An accepted message is not checked again.

Invariant: if a waiter leaves, or capacity comes free, the waiters at the head that fit are accepted at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
from attrs import define, field

from warrener._backend import Backend
from warrener._publishing.destinations import Destinations, described, of
from warrener._publishing.ledger import Delivery, Ledger
from warrener._supervision.supervisor import Supervisor
from warrener.errors import BufferFull, CircuitOpen, DeadlineExceeded, InvalidMessage, NotSent, PublishError

__all__ = ["Admission"]


@define(eq=False)
class CapacityWaiter:
    """A publisher that waits for capacity. `let_in` accepts its message, so that no younger one can overtake it."""

    delivery: Delivery
    changed: anyio.Event = field(factory=anyio.Event)
    accepted: bool = False
    refusal: PublishError | None = None


class Admission:
    """Accepts or refuses new messages; the head of this module explains it. One per producer."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        supervisor: Supervisor,
        destinations: Destinations,
        *,
        max_block: float,
    ) -> None:
        #: Why nothing is accepted any more; None while messages are accepted.
        self.refusal: Callable[[str], PublishError] | None = None
        self.waiters: deque[CapacityWaiter] = deque()
        #: Both are set once by the sender. `pump` accepts waiters and writes messages; `cancelled` is called when the
        #: publisher of an accepted message has left.
        self.pump: Callable[[], None]
        self.cancelled: Callable[[Delivery], None]
        self.destinations = destinations
        self._ledger = ledger
        self._backend = backend
        self._supervisor = supervisor
        self._max_block = max_block
        #: Number of sweeps of the ledger (`Ends.sweeps`) when the waiters were last checked.
        self._sweeps = 0
        #: Since when no message can be written (no link, or blocked); None while messages can be written.
        self._stalled_since: float | None = backend.clock()

    # --- new messages -----------------------------------------------------------------------------------------------

    def refused(self, delivery: Delivery) -> PublishError | None:
        """Check everything except the capacity; return the error for a message that is refused.

        None: the message may be accepted, and holds a permit if the breaker is half open.
        """
        if self.refusal is not None:
            return self.refusal(delivery.message_id)
        if delivery.size > self._ledger.largest:
            return InvalidMessage(
                delivery.message_id,
                f"the body has {delivery.size:,} bytes, and max_buffered_bytes allows {self._ledger.largest:,} in all",
            )
        refusal = self._refused_by_destination(delivery)
        if refusal is not None:
            return refusal
        supervisor, retry = self._supervisor, self._ledger.rules.retry_of(delivery)
        if not retry.waits and self._stalled_since is not None:
            self.destinations.left(delivery)
            fault = self._ledger.settlement.last_fault
            return NotSent(
                delivery.message_id,
                "no message can be written now, and its retry policy does not wait (`on` lacks 'not_sent')",
                last_fault=fault,
            )
        if supervisor.breaker_closed or not retry.fail_fast:
            return None
        # Half open: accepted messages go first, so a new message is a probe only when none of them waits to be written.
        others = self._ledger.buffered > len(self._ledger.delayed)
        permit = supervisor.patience() if others else supervisor.admit()
        if isinstance(permit, float):
            self.destinations.left(delivery)
            return CircuitOpen(
                delivery.message_id,
                f"the circuit breaker is open; publish again in {permit:.3g} s",
                retry_after=permit,
                last_fault=self._ledger.settlement.last_fault,
            )
        delivery.permit = permit
        return None

    def _refused_by_destination(self, delivery: Delivery) -> PublishError | None:
        """Ask what is known about the destination alone: remembered refusals, its breaker, and its share of the capacity."""
        ledger, destinations = self._ledger, self.destinations
        now = self._backend.clock()
        refusal = ledger.refusal(delivery, now)
        if refusal is not None:
            return refusal
        destination = of(delivery)
        unhealthy = destination in ledger.overdue or (destinations.active and destinations.is_open(delivery))
        if ledger.crowds(destination, delivery.size):
            return BufferFull(
                delivery.message_id,
                "most of the buffer and of the in-flight window are taken by messages to its destination, which wait for the "
                f"broker's answers ({described(destination)})",
            )
        if unhealthy and ledger.share_used(destination, delivery.size, now):
            return BufferFull(
                delivery.message_id,
                "the breaker of its destination is open, or a confirm from it is overdue; until this ends, the destination "
                f"may use only its share of the capacity, and this share is used up ({described(destination)})",
            )
        return destinations.refusal(delivery, now) if destinations.active else None

    def refuse_waiters(self) -> None:
        """Refuse waiters whose messages a remembered refusal is about, once after each `Ends.sweep` of the ledger."""
        sweeps, self._sweeps = self._sweeps, self._ledger.ends.sweeps
        if sweeps == self._sweeps or not self.waiters:
            return
        now = self._backend.clock()
        for waiter in tuple(self.waiters):
            refusal = self._ledger.remembered(waiter.delivery, now)
            if refusal is not None:
                self.waiters.remove(waiter)
                waiter.refusal = refusal
                self.give_back(waiter.delivery)
                waiter.changed.set()

    def try_accept(self, delivery: Delivery) -> bool:
        """Accept the message. False: there is no capacity, or older messages wait for it."""
        if self.waiters or self._ledger.full(delivery.size):
            return False
        self._ledger.accept(delivery)
        return True

    def full(self, delivery: Delivery) -> BufferFull:
        """Return the error for a message that found no capacity; its permit is given back."""
        self.give_back(delivery)
        fault = self._ledger.settlement.last_fault
        reason = "the buffer of unwritten messages is full (max_buffered, max_buffered_bytes)"
        return BufferFull(delivery.message_id, reason, last_fault=fault)

    async def wait(self, delivery: Delivery) -> PublishError | None:
        """Wait until the message is accepted (None) or refused.

        The wait ends at the message's deadline, and while the link is down or blocked also after `max_block` seconds.
        """
        called = self._backend.clock()
        waiter = CapacityWaiter(delivery)
        self.waiters.append(waiter)
        self._ledger.batching.ready.clear()
        try:
            while True:
                limit = delivery.deadline
                if self._stalled_since is not None:
                    limit = min(limit, max(called, self._stalled_since) + self._max_block)
                waiter.changed = anyio.Event()
                with anyio.move_on_after(limit - self._backend.clock()):
                    await waiter.changed.wait()
                if waiter.accepted or waiter.refusal is not None:
                    return waiter.refusal
                if self._backend.clock() >= limit:
                    break
        except BaseException:
            if waiter.accepted:
                self.cancelled(delivery)
            else:
                self._leave(waiter)
            raise
        self._leave(waiter)
        if limit < delivery.deadline:
            return self.full(delivery)
        fault = self._ledger.settlement.last_fault
        reason = (
            "its deadline passed while the buffer of unwritten messages was full (max_buffered, max_buffered_bytes)"
        )
        return DeadlineExceeded(delivery.message_id, reason, last_fault=fault)

    def _leave(self, waiter: CapacityWaiter) -> None:
        """Take out a waiter that was not accepted; a younger one may fit where it did not."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        self.give_back(waiter.delivery)
        self.pump()

    def let_in(self) -> Delivery | None:
        """Accept the message of the first waiter if it fits now, and return it."""
        waiters = self.waiters
        if not waiters or self._ledger.full(waiters[0].delivery.size):
            return None
        waiter = waiters.popleft()
        waiter.accepted = True
        waiter.changed.set()
        self._ledger.accept(waiter.delivery)
        return waiter.delivery

    # --- what changes the answers -----------------------------------------------------------------------------------

    def refuse_with(self, refusal: Callable[[str], PublishError]) -> None:
        """Refuse all new messages and all waiters with this error."""
        self.refusal = refusal
        self._ledger.batching.ready.clear()
        waiters, self.waiters = self.waiters, deque()
        for waiter in waiters:
            waiter.refusal = refusal(waiter.delivery.message_id)
            self.give_back(waiter.delivery)
            waiter.changed.set()

    def note_flow(self, *, stalled: bool) -> None:
        """Note that messages cannot be written (`stalled`: `max_block` begins to run) or can be written again (it stops)."""
        if stalled == (self._stalled_since is not None):
            return
        self._stalled_since = self._backend.clock() if stalled else None
        for waiter in self.waiters:
            waiter.changed.set()

    # --- permits of a half-open breaker -----------------------------------------------------------------------------

    def permitted(self, delivery: Delivery) -> bool:
        """Whether the half-open breaker lets an accepted message be written. A permit that no longer counts is replaced."""
        permit = delivery.permit
        if permit is None or not self._supervisor.holds(permit):
            asked = self._supervisor.admit()
            if isinstance(asked, float):
                return False
            delivery.permit = asked
        return True

    def give_back(self, delivery: Delivery) -> None:
        """Return an unused permit to the breaker."""
        permit, delivery.permit = delivery.permit, None
        if permit is not None:
            self._supervisor.released(permit)
        if delivery.destination_permit is not None:
            self.destinations.left(delivery)
