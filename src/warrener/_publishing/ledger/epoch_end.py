"""What the end of a channel or a link does to each publish that was in flight on it."""

from __future__ import annotations

from attrs import frozen

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.outcomes import ended_unanswered, unroutable
from warrener._publishing.ledger.settlement import Settlement
from warrener.errors import Fault, NotSent
from warrener.records import Lane

__all__ = ["ResendRules", "end_epoch"]


@frozen
class ResendRules:
    """Whether a message whose attempt may have arrived is sent again."""

    at_least_once: bool
    #: Number of attempts that a suspect of a channel close gets alone.
    suspect_attempts: int
    #: Number of times that a message is written; None: its deadline alone limits them.
    attempts: int | None = None

    def stop(self, delivery: Delivery) -> bool:
        """Whether the message is not written again."""
        if not self.at_least_once or delivery.suspected >= self.suspect_attempts:
            return True
        return self.attempts is not None and delivery.attempts >= self.attempts


def end_epoch(
    epoch: Epoch, written: int, fault: Fault, rules: ResendRules, settlement: Settlement, settled: list[Delivery]
) -> tuple[list[Delivery], list[Delivery]]:
    """End all attempts of an epoch; return the messages that wait again, in order of tag: not written, unanswered.

    `written` is the highest tag whose message may have reached the network. Messages with an outcome go to `settled`.
    """
    not_written: list[Delivery] = []
    unanswered: list[Delivery] = []
    for tag, delivery in epoch.outstanding.items():
        delivery.epoch = None
        if delivery.returned is not None:
            settlement.answer(delivery, unroutable(delivery, delivery.returned), settled)
            continue
        delivery.ambiguous = False
        left = delivery.abandoned or delivery.outcome is not None
        if tag > written:
            delivery.attempts -= 1
            if epoch.lane is Lane.SUSPECT:
                delivery.suspected -= 1
            if left:
                reason = "its caller had left, and the link ended before it was written"
                settlement.end_unwritten(delivery, NotSent, reason, fault, settled)
            else:
                not_written.append(delivery)
            continue
        delivery.unanswered += 1
        if left or rules.stop(delivery):
            settlement.answer(delivery, ended_unanswered(delivery, fault, rules.suspect_attempts), settled)
        else:
            unanswered.append(delivery)
    return not_written, unanswered
