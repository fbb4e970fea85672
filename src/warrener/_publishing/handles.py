"""`PublishHandle`: the outcome to come of one `publish_nowait`."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from warrener._publishing.ledger import Ticket
from warrener._publishing.sender import Sender
from warrener.errors import PublishError, printable
from warrener.records import Receipt

__all__ = ["PublishHandle", "error_of", "received"]


class PublishHandle(Ticket):
    """The outcome to come of one `publish_nowait`."""

    __slots__ = ("_message_id", "owner")

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        #: For the library: the sender that knows the outcome.
        self.owner = sender
        self._message_id: int | str = ""

    def __repr__(self) -> str:
        return f"<PublishHandle {printable(self.message_id)} settled={self.settled}>"

    def accepted(self, message_id: int | str) -> None:
        """Note the message_id, or in a flight the number from which the message_id is made."""
        self._message_id = message_id

    @property
    def message_id(self) -> str:
        """The message_id that is sent with the message."""
        if isinstance(self._message_id, int):
            self._message_id = self.owner.message_id(self._message_id)
        return self._message_id

    @property
    def settled(self) -> bool:
        """Whether the outcome is there, so that `wait()` does not wait."""
        return self.owner.outcome(self) is not None

    async def wait(self) -> Receipt:
        """Wait for the outcome; return the receipt or raise the `PublishError`. May be called again.

        Cancelling this call does not cancel the message, which keeps its own deadline. Only one task may wait at a time
        (`anyio.BusyResourceError`).
        """
        outcome = await outcome_of(self)
        if isinstance(outcome, Receipt):
            return outcome
        raise error_of(outcome)


async def outcome_of(handle: PublishHandle) -> Receipt | PublishError:
    """Wait for the outcome and return it, an error too."""
    sender = handle.owner
    if sender.outcome(handle) is not None:
        await anyio.lowlevel.checkpoint()
    elif handle.waiter is not None:
        raise anyio.BusyResourceError("waiting for")
    else:
        await sender.backend.park(handle, _forget_waiter)
    outcome = sender.outcome(handle)
    return outcome if isinstance(outcome, Receipt) else error_of(outcome)


def leave(handle: PublishHandle) -> None:
    """Nobody waits for the message any more: it is cancelled, as a publish whose caller is cancelled."""
    handle.owner.leaving.left(handle)


def _forget_waiter(handle: PublishHandle) -> None:
    handle.waiter = None


def received(ticket: Ticket) -> Receipt:
    """Return the receipt of a message that was expanded, or raise the error with which it ended."""
    outcome = None if ticket.delivery is None else ticket.delivery.outcome
    if isinstance(outcome, Receipt):
        return outcome
    raise error_of(outcome)


def error_of(outcome: Receipt | PublishError | None) -> PublishError:
    """Return the error to raise for an outcome that is no receipt."""
    if isinstance(outcome, PublishError):
        return outcome
    raise AssertionError("a publisher was woken without an outcome")
