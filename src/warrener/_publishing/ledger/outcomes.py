"""What an attempt, and a whole message, ends as: the verdict, the fold over attempts, and the errors that say so.

Each attempt ends with a `Verdict`. The outcome of a message is the `fold` of its attempts: CONFIRMED, else UNKNOWN, else
NACKED, else REJECTED. CONFIRMED and REJECTED are final for the message, so all earlier attempts are UNKNOWN or NACKED;
`Delivery.unanswered` and `Delivery.nacks` count them. The functions below make the error for the last attempt; each asks
for earlier ones.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from warrener._publishing.ledger.delivery import Delivery
from warrener.errors import (
    Fault,
    FaultKind,
    Nacked,
    NotSent,
    PublishError,
    PublishRefused,
    Unconfirmed,
    Unroutable,
    printable,
)
from warrener.records import Receipt, Returned

__all__ = [
    "Verdict",
    "acked",
    "earlier",
    "ended_unanswered",
    "fold",
    "nacked",
    "not_written",
    "refused",
    "unanswered",
    "unroutable",
    "verdict_of",
]


class Verdict(enum.IntEnum):
    """How certain the end of an attempt, or of a whole message, is. The highest one wins in `fold`."""

    REJECTED = 0
    """Certain: the message is in no queue."""
    NACKED = 1
    """The broker refused it; a queue may still hold it."""
    UNKNOWN = 2
    """The message may or may not be in a queue."""
    CONFIRMED = 3
    """The broker acked it."""


def fold(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of a message, given those of its attempts; REJECTED if there was no attempt.

    It is the maximum, hence commutative, associative, idempotent and monotone.
    """
    return max(verdicts, default=Verdict.REJECTED)


def verdict_of(result: Receipt | PublishError) -> Verdict:
    """Return the verdict that an outcome states."""
    if isinstance(result, Receipt):
        return Verdict.CONFIRMED
    if isinstance(result, Nacked):
        return Verdict.NACKED
    return Verdict.UNKNOWN if result.may_have_been_delivered else Verdict.REJECTED


def acked(delivery: Delivery, link: int) -> Receipt | PublishError:
    """Return the outcome of an ack without a return: a receipt, unless an unmatched return may be of this attempt."""
    if delivery.ambiguous:
        reason = "the broker acked it after a return that may be of this message or of another one"
        return Unconfirmed(delivery.message_id, reason)
    return Receipt(delivery.message_id, delivery.attempts, delivery.attempts > 1, link)


def nacked(delivery: Delivery, why: str = "") -> PublishError:
    """Return the outcome of a nack without a return; the text `why` stands at the end of the reason."""
    if fold((Verdict.NACKED, earlier(delivery))) is Verdict.NACKED:
        return Nacked(delivery.message_id, f"the broker refused it (basic.nack){why}")
    reason = "the broker refused it (basic.nack), but an earlier attempt has no answer"
    return Unconfirmed(delivery.message_id, f"{reason}{why}")


def unroutable(delivery: Delivery, returned: Returned, *, certain: bool) -> PublishError:
    """Return the outcome of a returned attempt, whether an ack, a nack or the end of the channel follows the return."""
    why = f"the broker returned it: {printable(returned.reply_text)} [{returned.reply_code}]"
    match fold((Verdict.REJECTED, earlier(delivery))):
        case Verdict.UNKNOWN:
            return Unconfirmed(delivery.message_id, f"{why}, but an earlier attempt has no answer")
        case Verdict.NACKED:
            return Nacked(delivery.message_id, f"{why}, but an earlier attempt was nacked (basic.nack)")
        case _:
            pass
    return Unroutable(
        delivery.message_id,
        why,
        reply_code=returned.reply_code,
        exchange=delivery.envelope.exchange,
        routing_key=delivery.envelope.routing_key,
        may_have_been_delivered=not certain,
    )


def refused(delivery: Delivery, fault: Fault, *, from_memory: bool = False) -> PublishRefused:
    """Return the outcome of a refused message; `from_memory`: the broker has refused another one like it."""
    why = "the broker has just refused a message for the same reason" if from_memory else "the broker refused it"
    return PublishRefused(
        delivery.message_id,
        f"{why}: {fault}",
        reply_code=fault.reply_code or 0,
        reply_text=fault.text,
        may_have_been_delivered=fold((Verdict.REJECTED, earlier(delivery))) is not Verdict.REJECTED,
    )


def not_written(delivery: Delivery, kind: type[NotSent], reason: str, fault: Fault | None) -> PublishError:
    """Return the outcome of a message that is not in flight: `kind`, unless an earlier attempt may have arrived."""
    match earlier(delivery):
        case Verdict.UNKNOWN:
            return Unconfirmed(delivery.message_id, reason, last_fault=fault)
        case Verdict.NACKED:
            nack = "the broker refused it (basic.nack), and it was not written again"
            return Nacked(delivery.message_id, f"{nack}: {reason}", last_fault=fault)
        case _:
            return kind(delivery.message_id, reason, last_fault=fault)


def unanswered(delivery: Delivery, why: str, fault: Fault | None) -> PublishError:
    """Return the outcome of a message in flight whose answer is no longer waited for."""
    if delivery.suppressed:
        why = f"the retry budget allowed no further attempt, and {why}"
    error = Unconfirmed(delivery.message_id, f"{why} before the broker's confirm", last_fault=fault)
    error.cause = "suppressed" if delivery.suppressed else None
    return error


def ended_unanswered(delivery: Delivery, fault: Fault, suspect_attempts: int) -> PublishError:
    """Return the outcome of a written attempt that ended without an answer and is not followed by another one."""
    if delivery.suspected >= suspect_attempts:
        alone = f"in {delivery.suspected} of them it was the only message on its channel"
        reason = f"no confirm came in {delivery.attempts} attempts; {alone}"
    else:
        ended = "channel was closed" if fault.kind is FaultKind.CHANNEL_CLOSED else "link ended"
        reason = f"the {ended} before the broker's confirm"
    return Unconfirmed(delivery.message_id, reason, last_fault=fault)


def earlier(delivery: Delivery) -> Verdict:
    """Return the fold of the ended attempts: there was none, or each of them ended UNKNOWN or NACKED."""
    if delivery.unanswered:
        return Verdict.UNKNOWN
    return Verdict.NACKED if delivery.nacks else Verdict.REJECTED
