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

    __slots__ = (
        "abandoned", "alone", "ambiguous", "attempts", "body", "deadline", "destination_permit", "envelope", "epoch", "lane",
        "message_id", "outcome", "overdue", "passed", "permit", "published_at", "queue", "returned", "size", "suspected", "tag", "token", "unanswered", "waiter",
        "waiting",
    )  # fmt: skip

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
        #: Opaque: the permits of the connection's circuit breaker and of the destination's, if the message is a probe.
        self.permit: Any = None
        self.destination_permit: Any = None
        #: Set once, by the ledger.
        self.outcome: Receipt | PublishError | None = None
        #: Whether the caller left after the message got a tag and before its outcome.
        self.abandoned = False
        #: Number of publishes on the wire. An attempt that was certainly not written is not counted.
        self.attempts = 0
        #: Number of ended attempts that may have reached the broker. All of them ended UNKNOWN: any other end is final.
        self.unanswered = 0
        #: Number of attempts that were made alone, as a suspect of a channel close.
        self.suspected = 0
        #: Whether it is a suspect of a channel close, whose next attempt goes alone on a channel of its own.
        self.alone = False
        #: Whether the broker has had the present attempt for long enough to close the channel because of it, and did not.
        self.passed = False
        #: Whether the present attempt has waited for `confirm_timeout`, while the broker answered others.
        self.overdue = False
        #: The channel that the present or the next attempt takes.
        self.lane = Lane.MAIN
        #: Whether a caller still waits: no outcome, not cancelled. The deadline counts only while this is true.
        self.waiting = True
        #: The queue or the epoch that holds it; both None once it has its outcome or was cancelled before it got a tag.
        self.queue: WaitingQueue | None = None
        self.epoch: Epoch | None = None
        #: Of the present attempt: the delivery tag, the instant at which the link took the message, the broker's return of
        #: it, and whether an unmatched return may be its own.
        self.tag = 0
        self.published_at = 0.0
        self.returned: Returned | None = None
        self.ambiguous = False

    def __repr__(self) -> str:
        return f"<Delivery {printable(self.message_id)} attempts={self.attempts} outcome={self.outcome!r}>"
