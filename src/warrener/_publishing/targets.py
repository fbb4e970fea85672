"""`Target`: a destination and fields that many messages share, checked once by `Producer.to`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING

from attrs import define

from warrener._publishing.envelopes import PUBLISH_TIMEOUT, seconds
from warrener._publishing.handles import PublishHandle, received
from warrener._publishing.place import Place
from warrener._publishing.runs import receipt_of
from warrener._publishing.sender import Sender
from warrener.errors import PublishError
from warrener.records import Body, Envelope, Message, Receipt, TargetFields

if TYPE_CHECKING:
    from warrener._publishing.producer import Producer

__all__ = ["Direct", "Target"]


@define
class Direct:
    """The parts of a producer with which its targets publish directly, without its methods."""

    place: Place
    #: The producer's own.
    publish_timeout: float
    #: None before `run()` begins, and if publishes are traced.
    sender: Sender | None = None


class Target:
    """Publishes bodies with the same exchange, routing key and other fields; made by `Producer.to`.

    The fields are checked once, and kept as they were then. Each message has a message_id of its own. A target can be made
    before the producer runs, and outlives links as the producer does.
    """

    def __init__(
        self, producer: Producer, direct: Direct, exchange: str, routing_key: str, fields: TargetFields
    ) -> None:
        if "message_id" in fields:
            raise TypeError("a target takes no message_id: each message that is published to it has its own")
        message = Message(b"", exchange=exchange, routing_key=routing_key, **fields)
        if message.headers:
            fields = {**fields, "headers": message.headers}  # a copy: the caller may change its own
        self.exchange = exchange
        self.routing_key = routing_key
        self._producer = producer
        self._direct = direct
        self._fields = fields
        self._envelope = Envelope.of(message)

    def __repr__(self) -> str:
        return f"<Target exchange={self.exchange!r} routing_key={self.routing_key!r} of {self._producer.name!r}>"

    async def publish(self, body: Body, *, key: str | None = None, timeout: float = PUBLISH_TIMEOUT) -> Receipt:
        """Publish one message; as `Producer.publish` does, with the `key` of this message."""
        direct = self._direct
        sender = direct.sender
        if sender is not None and type(body) is bytes and get_ident() == direct.place.thread:
            backend = sender.backend
            ticket = backend.ticket() or await backend.checked_ticket()
            allowed = direct.publish_timeout
            if timeout is not PUBLISH_TIMEOUT:
                allowed = seconds(timeout, allowed)
            envelope = self._envelope
            # `add` takes most messages. `join` takes these too, but it takes 0.3 us longer.
            if sender.add(envelope, body, ticket, allowed, backend.clock()) or sender.join(
                envelope, body, ticket, allowed
            ):
                await backend.wait(ticket)
                if ticket.code:
                    return receipt_of(sender.id_prefix, ticket.code)
                return received(ticket)
        return await self._producer.publish(
            body, key=key, timeout=timeout, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )

    async def publish_many(
        self, bodies: Iterable[Body], *, key: str | None = None, timeout: float = PUBLISH_TIMEOUT
    ) -> Sequence[Receipt | PublishError]:
        """Publish many messages, pipelined; as `Producer.publish_many` does."""
        return await self._producer.publish_many(
            bodies, key=key, timeout=timeout, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )

    def publish_nowait(self, body: Body, *, key: str | None = None, timeout: float = PUBLISH_TIMEOUT) -> PublishHandle:
        """Accept one message without waiting; as `Producer.publish_nowait` does."""
        direct = self._direct
        sender = direct.sender
        if sender is not None and type(body) is bytes and get_ident() == direct.place.thread:
            handle = PublishHandle(sender)
            number = sender.join(self._envelope, body, handle, seconds(timeout, direct.publish_timeout))
            if number:
                handle.accepted(number)
                return handle
        return self._producer.publish_nowait(
            body, key=key, timeout=timeout, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )
