"""What the end of a channel or a link does to each publish that was in flight on it."""

from __future__ import annotations

from attrs import frozen

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.outcomes import ended_unanswered, unroutable
from warrener._publishing.ledger.settlement import Settlement
from warrener.errors import Fault, NotSent, PublishError
from warrener.records import Returned

__all__ = ["Rules", "end_epoch", "unmake"]


@frozen
class Rules:
    """What does not change while a producer lives."""

    #: Whether a message whose attempt may have arrived is sent again.
    at_least_once: bool
    #: Number of attempts that a suspect of a channel close gets alone.
    suspect_attempts: int
    #: Exchanges that this producer declared with a type of AMQP itself; their returns are certain.
    standard_exchanges: frozenset[str]

    def unroutable(self, delivery: Delivery, returned: Returned) -> PublishError:
        """Return the outcome of a returned attempt. An exchange of a plugin may return a message and deliver it later."""
        exchange = delivery.envelope.exchange
        certain = not exchange or exchange.startswith("amq.") or exchange in self.standard_exchanges
        return unroutable(delivery, returned, certain=certain)


def end_epoch(
    epoch: Epoch, written: int, fault: Fault, rules: Rules, settlement: Settlement, settled: list[Delivery]
) -> list[Delivery]:
    """End all attempts of an epoch; return the messages that wait again, in order of tag.

    `written` is the highest tag whose message may have reached the network. Messages with an outcome go to `settled`.
    """
    again: list[Delivery] = []
    for tag, delivery in epoch.outstanding.items():
        delivery.epoch = None
        delivery.passed = False
        if delivery.returned is not None:
            settlement.answer(delivery, rules.unroutable(delivery, delivery.returned), settled)
            continue
        delivery.ambiguous = False
        left = delivery.abandoned or delivery.outcome is not None
        if tag > written:
            unmake(delivery)
            if left:
                reason = "its caller had left, and the link ended before it was written"
                settlement.end_unwritten(delivery, NotSent, reason, fault, settled)
            else:
                again.append(delivery)
            continue
        delivery.unanswered += 1
        if left or not rules.at_least_once or delivery.suspected >= rules.suspect_attempts:
            settlement.answer(delivery, ended_unanswered(delivery, fault, rules.suspect_attempts), settled)
        else:
            again.append(delivery)
    return again


def unmake(delivery: Delivery) -> None:
    """The present attempt was not written, so it does not count."""
    delivery.attempts -= 1
    if delivery.alone:
        delivery.suspected -= 1
