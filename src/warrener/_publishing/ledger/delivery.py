"""`Delivery`: one accepted publish, with everything that the ledger knows about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warrener.errors import PublishError, Unconfirmed, printable
from warrener.records import Envelope, Lane, Receipt, Returned

if TYPE_CHECKING:
    from warrener._publishing.ledger.epoch import Epoch
    from warrener._publishing.ledger.queues import WaitingQueue
    from warrener._retry_rules import RetryRules

__all__ = ["Delivery"]


class Delivery:
    """One accepted publish. Once it is accepted, only the ledger changes it; everybody else reads it."""

    # A field that most messages never change is a default of the class. Each other field costs one store per message.
    __slots__ = (
        "__dict__", "attempts", "body", "deadline", "envelope", "epoch", "message_id", "outcome", "published_at", "size",
        "tag", "token", "waiter", "waiting",
    )  # fmt: skip

    #: Opaque: the permits of the connection's circuit breaker and of the destination's, if the message is a probe.
    permit: Any = None
    destination_permit: Any = None
    #: Whether the caller left after the message got a tag and before its outcome.
    abandoned: bool = False
    #: Whether `outcomes()` has the answer that came after the deadline.
    told_late: bool = False
    #: The retry policy of this message; None: the producer's.
    retry: RetryRules | None = None
    #: Number of attempts that may have reached the broker and ended, or were given up, without an answer: UNKNOWN.
    unanswered: int = 0
    #: Number of attempts that the broker nacked.
    nacks: int = 0
    #: The instant at which a nacked message may be written again.
    ready_at: float = 0.0
    #: Whether a budget has forbidden another attempt of this message.
    suppressed: bool = False
    #: This is no message of its own: it is an earlier attempt of that message, still in flight.
    earlier_of: Delivery | None = None
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

    def as_earlier(self) -> Delivery:
        """Return the present attempt as a delivery of its own, which waits for the answer and has no caller."""
        earlier = Delivery(self.envelope, self.body, self.message_id, self.deadline, self.token)
        earlier.earlier_of = self
        earlier.waiting = False
        earlier.outcome = Unconfirmed(self.message_id, "it was written again before this attempt was answered")
        earlier.attempts, earlier.tag, earlier.published_at = self.attempts, self.tag, self.published_at
        earlier.passed, earlier.overdue, earlier.lane = self.passed, self.overdue, self.lane
        earlier.returned, earlier.ambiguous = self.returned, self.ambiguous
        return earlier

    def __repr__(self) -> str:
        return f"<Delivery {printable(self.message_id)} attempts={self.attempts} outcome={self.outcome!r}>"
