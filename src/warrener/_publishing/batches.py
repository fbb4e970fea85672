"""`Batch`: the messages of one `publish_many`, and the one task that waits for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warrener._publishing.ledger import Delivery
from warrener.errors import PublishError, Unconfirmed
from warrener.records import Receipt

__all__ = ["Batch"]


class Batch:
    """Many messages and the one task that waits for them. It is woken when the last one has its outcome."""

    __slots__ = ("items", "left", "waiter")

    def __init__(self) -> None:
        #: In the order given: the accepted message, or the error with which it was refused.
        self.items: list[Delivery | PublishError] = []
        #: Number of accepted messages without an outcome.
        self.left = 0
        self.waiter: Any = None

    def watch(self, delivery: Delivery) -> None:
        """Wait for this message too."""
        if delivery.outcome is None:
            delivery.waiter = self
            self.left += 1

    def deliveries(self) -> Iterator[Delivery]:
        """Return the messages that were not refused."""
        return (item for item in self.items if isinstance(item, Delivery))

    def forget(self) -> None:
        """No task waits for the batch any more."""
        self.waiter = None
        for delivery in self.deliveries():
            delivery.waiter = None

    def outcomes(self) -> list[Receipt | PublishError]:
        """Return the outcomes, in the order given."""
        return [item if isinstance(item, PublishError) else _outcome(item) for item in self.items]


def _outcome(delivery: Delivery) -> Receipt | PublishError:
    outcome = delivery.outcome
    return outcome if outcome is not None else Unconfirmed(delivery.message_id, "the producer lost track of it")
