"""`Settlement`: gives each message its one outcome, counts outcomes, and keeps the late ones."""

from __future__ import annotations

from collections import deque

from attrs import define

from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Landed
from warrener._publishing.ledger.outcomes import Verdict, not_written, verdict_of
from warrener.errors import Fault, NotSent, PublishError, Unconfirmed
from warrener.records import Outcome, Receipt

__all__ = ["Counters", "Settlement"]


@define
class Counters:
    """Counts since the start. After every call: accepted = confirmed + rejected + nacked + unknown + pending."""

    accepted: int = 0
    confirmed: int = 0
    #: Certainly in no queue: not sent (cancelled in time included), returned, or refused alone.
    rejected: int = 0
    nacked: int = 0
    unknown: int = 0
    #: Cancelled before the message got a tag; part of `rejected`.
    cancelled: int = 0
    #: Attempts beyond the first one.
    resent: int = 0
    #: Further attempts that a retry budget, or the share of a destination, has forbidden.
    suppressed: int = 0
    returned: int = 0
    #: Messages that waited longer than `confirm_timeout` for their answer.
    overdue: int = 0
    #: Answers that came after the deadline; they change none of the counts above.
    late: int = 0
    #: Facts that a correct broker does not state: a tag answered twice or never assigned, a return of no publish.
    anomalies: int = 0
    #: Facts about a channel that is no longer open.
    stale: int = 0


class Settlement:
    """Gives messages their outcomes. An outcome is set once and never changes."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.deadlines = Deadlines()
        #: Outcomes of messages whose callers have left; the sender takes them out.
        self.late: deque[Outcome] = deque()
        #: Messages of flights that were confirmed; the sender takes them out.
        self.landed: list[Landed] = []
        #: The newest fault; every `NotSent` quotes it.
        self.last_fault: Fault | None = None
        #: Number of publishes in flight that are no pending message: their deadline passed, or they are earlier attempts.
        self.tombstones = 0

    def accept(self, delivery: Delivery) -> None:
        """Take one more message into account."""
        self.counters.accepted += 1
        self.deadlines.add(delivery)

    def answer(self, delivery: Delivery, result: Receipt | PublishError, settled: list[Delivery]) -> None:
        """Set the outcome and add the message to `settled`.

        If the caller had its outcome at the deadline, note instead what became of the message after that.
        """
        counters = self.counters
        if delivery.outcome is not None:
            self.tombstones -= 1
            if delivery.earlier_of is not None:
                return
            counters.late += 1
            if isinstance(delivery.outcome, Unconfirmed):
                self.late.append(Outcome(delivery.message_id, result))
                delivery.told_late = True
            return
        delivery.outcome = result
        match verdict_of(result):
            case Verdict.CONFIRMED:
                counters.confirmed += 1
            case Verdict.UNKNOWN:
                counters.unknown += 1
            case Verdict.NACKED:
                counters.nacked += 1
            case Verdict.REJECTED:
                counters.rejected += 1
        if delivery.abandoned:
            self.late.append(Outcome(delivery.message_id, result))
        else:
            self.stop_waiting(delivery)
        settled.append(delivery)

    def end_unwritten(
        self, delivery: Delivery, kind: type[NotSent], reason: str, fault: Fault | None, settled: list[Delivery]
    ) -> None:
        """End a message that is not in flight."""
        self.answer(delivery, not_written(delivery, kind, reason, fault), settled)

    def abandon(self, delivery: Delivery) -> None:
        """The caller has left a message that has a tag: it is tracked to its outcome, which goes to `late`."""
        delivery.abandoned = True
        delivery.waiter = None
        self.stop_waiting(delivery)

    def stop_waiting(self, delivery: Delivery) -> None:
        """Nobody waits for the message any more, so its deadline no longer counts."""
        delivery.waiting = False
        self.deadlines.forget()
