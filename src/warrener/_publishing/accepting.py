"""How one message is accepted: at once or when there is capacity; `published` waits for its outcome as well."""

from __future__ import annotations

import anyio.lowlevel

from warrener._publishing.envelopes import Envelopes, require_destination
from warrener._publishing.handles import PublishHandle, error_of
from warrener._publishing.ledger import Delivery
from warrener._publishing.sender import Sender
from warrener._retry_rules import RetryRules
from warrener.errors import InvalidMessage, PublishError
from warrener.records import Body, Message, MessageFields, Receipt

__all__ = ["accepted", "offered", "published"]


def offered(
    sender: Sender,
    envelopes: Envelopes,
    body: Body | Message,
    allowed: float,
    retry: RetryRules | None,
    fields: MessageFields,
) -> tuple[PublishHandle, Delivery | None]:
    """Accept one message with a timeout of `allowed` seconds; return its handle.

    If there is no capacity, return the message too. Raises the `PublishError` with which it is refused.
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
    """Accept one message of a stream, and wait for capacity if need be; return the error with which it is refused.

    Raises `InvalidMessage` for a body without a destination, which is a mistake in the call and not in the body.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        require_destination("publish_stream", fields)
    try:
        handle, waiting = offered(sender, envelopes, body, allowed, retry, fields)
    except PublishError as refused:
        return refused
    refusal = None if waiting is None else await sender.admission.wait(waiting)
    return handle if refusal is None else refusal


async def published(
    sender: Sender,
    envelopes: Envelopes,
    body: Body | Message,
    allowed: float,
    retry: RetryRules | None,
    fields: MessageFields,
) -> Receipt:
    """Publish one message on its own, not in a batch; raise the `PublishError` with which it ends."""
    backend, admission = sender.backend, sender.admission
    called = backend.clock()
    try:
        delivery = envelopes.delivery(body, called + allowed, fields)
    except InvalidMessage:
        await anyio.lowlevel.checkpoint()
        raise
    delivery.retry = retry
    refusal = admission.refused(delivery)
    if refusal is not None:
        await anyio.lowlevel.checkpoint()
        raise refusal
    if admission.try_accept(delivery):
        sender.accepted(delivery, called)
    else:
        refusal = await admission.wait(delivery)
        if refusal is not None:
            raise refusal
    if delivery.outcome is None:
        await backend.park(delivery, sender.leaving.cancelled)
    else:
        try:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        except BaseException:  # a `Task.cancel()`, which no scope keeps off
            sender.leaving.cancelled(delivery)
            raise
    outcome = delivery.outcome
    if type(outcome) is Receipt:
        return outcome
    raise error_of(outcome)
