"""`offered` and `accepted`: one message becomes a `PublishHandle`, at once or when there is capacity."""

from __future__ import annotations

from warrener._publishing.envelopes import Envelopes
from warrener._publishing.handles import PublishHandle
from warrener._publishing.ledger import Delivery
from warrener._publishing.sender import Sender
from warrener._retry_rules import RetryRules
from warrener.errors import PublishError
from warrener.records import Body, Message, MessageFields

__all__ = ["accepted", "offered"]


def offered(
    sender: Sender,
    envelopes: Envelopes,
    body: Body | Message,
    allowed: float,
    retry: RetryRules | None,
    fields: MessageFields,
) -> tuple[PublishHandle, Delivery | None]:
    """Accept one message, which has `allowed` seconds; return its handle, and the message itself if there is no capacity.

    Raises the `PublishError` with which it is refused.
    """
    handle = PublishHandle(sender)
    if type(body) is bytes and retry is None and (envelope := envelopes.known(fields)) is not None:
        number = sender.join(envelope, body, handle, allowed)
        if number:
            handle.accepted(number)
            return handle, None
    called = sender.backend.clock()
    delivery = envelopes.delivery(body, called + allowed, fields)
    delivery.retry = retry
    admission = sender.admission
    refusal = admission.refused(delivery)
    if refusal is not None:
        raise refusal
    handle.delivery, delivery.waiter = delivery, handle
    handle.accepted(delivery.message_id)
    if not admission.try_accept(delivery):
        return handle, delivery
    sender.accepted(delivery, called)
    return handle, None


async def accepted(
    sender: Sender,
    envelopes: Envelopes,
    body: Body | Message,
    allowed: float,
    retry: RetryRules | None,
    fields: MessageFields,
) -> PublishHandle | PublishError:
    """Accept one message, and wait for capacity if need be; return the error with which it is refused."""
    try:
        handle, waiting = offered(sender, envelopes, body, allowed, retry, fields)
    except PublishError as refused:
        return refused
    refusal = None if waiting is None else await sender.admission.wait(waiting)
    return handle if refusal is None else refusal
