"""Leaving: what becomes of a message whose publisher is cancelled."""

from __future__ import annotations

from collections.abc import Callable

from warrener._backend import Backend
from warrener._publishing.admission import Admission
from warrener._publishing.ledger import Delivery, Ledger, Ticket
from warrener._publishing.runs import receipt_of
from warrener._publishing.settling import Settling
from warrener.records import Outcome

__all__ = ["Leaving"]


class Leaving:
    """Drops a message without a tag, and has any other one tracked to its outcome, which `tell` gets."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        admission: Admission,
        settling: Settling,
        *,
        pump: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._batching = ledger.batching
        self._prefix = ledger.batching.batches.prefix
        self._backend = backend
        self._admission = admission
        self._settling = settling
        #: Writes the messages that can take the place of the one that has left.
        self._pump = pump
        backend.leave = self.left

    def left(self, ticket: Ticket) -> None:
        """The publisher that holds the ticket is cancelled."""
        ticket.waiter = None
        if ticket.code:
            receipt = receipt_of(self._prefix, ticket.code)
            self._settling.tell(Outcome(receipt.message_id, receipt))
        else:
            self.cancelled(self._batching.delivery_of(ticket))

    def cancelled(self, delivery: Delivery) -> None:
        """The publisher of this message is cancelled."""
        delivery.waiter = None
        if delivery.told_late:
            return  # on asyncio a cancelled task runs some time later: the broker's answer came in between, and is newer
        if delivery.outcome is not None:
            self._settling.tell(Outcome(delivery.message_id, delivery.outcome))
        else:
            self._ledger.cancel(delivery)
            self._admission.give_back(delivery)
            self._settling.settle([])
            self._pump()

    def take_back(self) -> None:
        """Take messages out of the batches whose publishers are cancelled and have not run since."""
        batches = self._batching.batches.flights
        # Look first at the publishers whose messages can be written now. If none of them is cancelled, do not look at
        # the others: with a full window, each answer of the broker would cause a look at all of them.
        left = self._batching.places
        for batch in batches:
            if left <= 0:
                return
            front = batch.tickets[batch.at : batch.at + left]
            if self._backend.leaving(front):
                break
            left -= len(front)
        else:
            return
        for batch in tuple(batches):
            for ticket in self._backend.leaving(batch.tickets[batch.at :]):
                delivery = self._batching.delivery_of(ticket)
                delivery.waiter = None
                self._ledger.cancel(delivery)
