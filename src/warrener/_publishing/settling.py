"""Settling: outcomes go from the ledger to the publishers, the breakers and the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from warrener._backend import Backend
from warrener._publishing.admission import Admission
from warrener._publishing.ledger import Delivery, Ledger, Ticket
from warrener._publishing.runs import Run
from warrener._supervision.supervisor import Supervisor
from warrener.errors import NotSent, PublishError, Unconfirmed
from warrener.records import Outcome, Receipt

__all__ = ["Settling"]


class Settling:
    """Wakes each publisher once, when the ledger has set its outcome."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        supervisor: Supervisor,
        admission: Admission,
        tell: Callable[[Outcome], None],
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._supervisor = supervisor
        self._admission = admission
        #: Called with each outcome that comes after the publisher was cancelled.
        self.tell = tell
        #: The number of the link whose facts count; 0: none.
        self.number = 0
        #: Whether the producer accepts no more messages; the supervisor is told when none is pending.
        self.closing = False
        #: Whether the supervisor waits for the confirms of the messages in flight.
        self.handing_over = False
        #: message_ids of messages that ended without an answer of the broker after closing began.
        self.unconfirmed: list[str] = []
        self.not_sent: list[str] = []

    def settle(self, settled: Sequence[Delivery]) -> None:
        """Wake the publishers whose outcome is set, pass late outcomes to `tell`, report outcomes to the breakers."""
        destinations = self._admission.destinations
        for delivery in settled:
            ticket = delivery.waiter
            if ticket is not None:
                delivery.waiter = None
                if type(ticket) is Run:
                    ticket = ticket.ended()
                elif isinstance(ticket, Ticket):
                    ticket.waiter, ticket = None, ticket.waiter
                if ticket is not None:
                    self._backend.wake(ticket)
            outcome = delivery.outcome
            if self.closing and type(outcome) is not Receipt:
                self._note_unanswered(outcome)
            if delivery.permit is not None:
                self._use_permit(delivery)
            if destinations.active:
                destinations.ended(delivery, self._backend.clock())
        if self._ledger.settlement.landed:
            self._land()
        late = self._ledger.settlement.late
        if late:
            while late:
                self.tell(late.popleft())
        if self.closing and not self._ledger.pending:
            self._supervisor.drained()
        if self.handing_over and not self._ledger.in_flight:
            self.handing_over = False
            self._supervisor.settled(self.number)

    def _land(self) -> None:
        """Wake the publishers of flights."""
        settlement, backend = self._ledger.settlement, self._backend
        landed, settlement.landed = settlement.landed, []
        for flight, start, stop in landed:
            if flight.run is not None:
                waiter = flight.run.confirmed(flight, start, stop)
                if waiter is not None:
                    backend.wake(waiter)
                continue
            tickets = flight.tickets
            backend.land(tickets if stop - start == len(tickets) else tickets[start:stop], flight.code(start))

    def nacked(self, now: float) -> None:
        """Tell the breakers about the messages that the broker has just nacked."""
        refused, destinations = self._ledger.answers.refused, self._admission.destinations
        for delivery in refused:
            destinations.nacked(delivery, now)
            if delivery.queue is not None and delivery.permit is not None:
                self._use_permit(delivery)  # it waits for its next attempt; another message can be the probe now
        refused.clear()

    def _note_unanswered(self, outcome: Receipt | PublishError | None) -> None:
        if isinstance(outcome, NotSent):
            self.not_sent.append(outcome.message_id)
        elif isinstance(outcome, Unconfirmed):
            self.unconfirmed.append(outcome.message_id)

    def _use_permit(self, delivery: Delivery) -> None:
        permit, delivery.permit = delivery.permit, None
        if isinstance(delivery.outcome, Receipt):
            self._supervisor.confirmed(self.number, permit)
        else:
            self._supervisor.released(permit)
