"""`Delivery`: one accepted publish, with everything that the ledger knows about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warrener.errors import PublishError, printable
from warrener.records import Envelope, Lane, Receipt, Returned

if TYPE_CHECKING:
    from warrener._publishing.ledger.epoch import Epoch
    from warrener._publishing.ledger.queues import WaitingQueue

__all__ = ["Delivery"]


class Delivery:
    """One accepted publish. Once it is accepted, only the ledger changes it; everybody else reads it."""

    # The fields that most messages never change are defaults of the class: making a message costs a store for each other one.
    __slots__ = (
        "__dict__", "attempts", "body", "deadline", "envelope", "epoch", "message_id", "outcome", "published_at", "size",
        "tag", "token", "waiter", "waiting",
    )  # fmt: skip

    #: Opaque: the permits of the connection's circuit breaker and of the destination's, if the message is a probe.
    permit: Any = None
    destination_permit: Any = None
    #: Whether the caller left after the message got a tag and before its outcome.
    abandoned: bool = False
    #: Number of ended attempts that may have reached the broker. All of them ended UNKNOWN: any other end is final.
    unanswered: int = 0
    #: Number of attempts that were made alone, as a suspect of a channel close.
    suspected: int = 0
    #: Whether it is a suspect of a channel close, whose next attempt goes alone on a channel of its own.
    alone: bool = False
    #: Whether the broker has had the present attempt for long enough to close the channel because of it, and did not.
    passed: bool = False
    #: Whether the present attempt has waited for `confirm_timeout`, while the broker answered others.
    overdue: bool = False
    #: The channel that the present or the next attempt takes.
    lane: Lane = Lane.MAIN
    #: The queue that holds it; None while it is in flight, and once it has its outcome or was cancelled.
    queue: WaitingQueue | None = None
    #: Of the present attempt: the broker's return of it, and whether an unmatched return may be its own.
    returned: Returned | None = None
    ambiguous: bool = False

    def __init__(
        self, envelope: Envelope, body: bytes, message_id: str, deadline: float, token: str | None = None
    ) -> None:
        self.envelope = envelope
        self.body = body
        self.message_id = message_id
        #: Monotonic seconds; `math.inf` for none.
        self.deadline = deadline
        self.token = token
        self.size = len(body)
        #: Opaque: the task that waits for the outcome. The ledger sets it to None when that task has left.
        self.waiter: Any = None
        #: Set once, by the ledger.
        self.outcome: Receipt | PublishError | None = None
        #: Whether a caller still waits: no outcome, not cancelled. The deadline counts only while this is true.
        self.waiting = True
        #: Number of publishes on the wire. An attempt that was certainly not written is not counted.
        self.attempts = 0
        #: The epoch in which it is in flight.
        self.epoch: Epoch | None = None
        #: Of the present attempt: the delivery tag, and the instant at which the link took the message.
        self.tag = 0
        self.published_at = 0.0

    def __repr__(self) -> str:
        return f"<Delivery {printable(self.message_id)} attempts={self.attempts} outcome={self.outcome!r}>"
