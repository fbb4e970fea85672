"""`PublishHandle`: the outcome to come of one `publish_nowait`."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from warrener._publishing.ledger import Delivery
from warrener._publishing.sender import Sender
from warrener.errors import PublishError
from warrener.records import Receipt

__all__ = ["PublishHandle", "error_of"]


class PublishHandle:
    """The outcome to come of one `publish_nowait`."""

    def __init__(self, sender: Sender, delivery: Delivery) -> None:
        self._sender = sender
        self._delivery = delivery

    @property
    def message_id(self) -> str:
        """The message_id that is sent with the message."""
        return self._delivery.message_id

    @property
    def settled(self) -> bool:
        """Whether the outcome is there, so that `wait()` does not wait."""
        return self._delivery.outcome is not None

    async def wait(self) -> Receipt:
        """Wait for the outcome; return the receipt or raise the `PublishError`. May be called again.

        Cancelling this call does not cancel the message, which keeps its own deadline. Only one task may wait at a time
        (`anyio.BusyResourceError`).
        """
        delivery = self._delivery
        if delivery.outcome is not None:
            await anyio.lowlevel.checkpoint()
        elif delivery.waiter is not None:
            raise anyio.BusyResourceError("waiting for")
        else:
            await self._sender.watch(delivery)
        outcome = delivery.outcome
        if isinstance(outcome, Receipt):
            return outcome
        raise error_of(outcome)


def error_of(outcome: Receipt | PublishError | None) -> PublishError:
    """Return the error to raise for an outcome that is no receipt."""
    if isinstance(outcome, PublishError):
        return outcome
    raise AssertionError("a publisher was woken without an outcome")
