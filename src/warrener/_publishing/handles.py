"""`PublishHandle`: the outcome to come of one `publish_nowait`."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from warrener._publishing.ledger import Ticket
from warrener._publishing.sender import Sender
from warrener.errors import PublishError, printable
from warrener.records import Receipt

__all__ = ["PublishHandle", "error_of"]


class PublishHandle(Ticket):
    """The outcome to come of one `publish_nowait`."""

    __slots__ = ("_message_id", "_sender")

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender
        self._message_id: int | str = ""

    def __repr__(self) -> str:
        return f"<PublishHandle {printable(self.message_id)} settled={self.settled}>"

    def accepted(self, message_id: int | str) -> None:
        """The message has this id, or this number of an id of a flight."""
        self._message_id = message_id

    @property
    def message_id(self) -> str:
        """The message_id that is sent with the message."""
        if isinstance(self._message_id, int):
            self._message_id = self._sender.message_id(self._message_id)
        return self._message_id

    @property
    def settled(self) -> bool:
        """Whether the outcome is there, so that `wait()` does not wait."""
        return self._sender.outcome(self) is not None

    async def wait(self) -> Receipt:
        """Wait for the outcome; return the receipt or raise the `PublishError`. May be called again.

        Cancelling this call does not cancel the message, which keeps its own deadline. Only one task may wait at a time
        (`anyio.BusyResourceError`).
        """
        sender = self._sender
        if sender.outcome(self) is not None:
            await anyio.lowlevel.checkpoint()
        elif self.waiter is not None:
            raise anyio.BusyResourceError("waiting for")
        else:
            await sender.backend.park(self, _forget_waiter)
        outcome = sender.outcome(self)
        if isinstance(outcome, Receipt):
            return outcome
        raise error_of(outcome)


def _forget_waiter(handle: PublishHandle) -> None:
    handle.waiter = None


def error_of(outcome: Receipt | PublishError | None) -> PublishError:
    """Return the error to raise for an outcome that is no receipt."""
    if isinstance(outcome, PublishError):
        return outcome
    raise AssertionError("a publisher was woken without an outcome")
