"""`Target`: a destination and fields that many messages share, checked once by `Producer.to`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from warrener._publishing.envelopes import PUBLISH_TIMEOUT
from warrener._publishing.handles import PublishHandle
from warrener.errors import PublishError
from warrener.records import Body, Message, Receipt, TargetFields
from warrener.retry import Retry

if TYPE_CHECKING:
    from warrener._publishing.producer import Producer

__all__ = ["Target"]


class Target:
    """Publishes bodies with the same exchange, routing key and other fields; made by `Producer.to`.

    The fields are checked once, and kept as they were then. Each message has a message_id of its own. A target can be made
    before the producer runs, and outlives links as the producer does.
    """

    def __init__(self, producer: Producer, exchange: str, routing_key: str, fields: TargetFields) -> None:
        if "message_id" in fields:
            raise TypeError("a target takes no message_id: each message that is published to it has its own")
        message = Message(b"", exchange=exchange, routing_key=routing_key, **fields)
        if message.headers:
            fields = {**fields, "headers": message.headers}  # a copy: the caller may change its own
        self.exchange = exchange
        self.routing_key = routing_key
        self._producer = producer
        self._fields = fields

    def __repr__(self) -> str:
        return f"<Target exchange={self.exchange!r} routing_key={self.routing_key!r} of {self._producer.name!r}>"

    async def publish(self, body: Body, *, timeout: float = PUBLISH_TIMEOUT, retry: Retry | None = None) -> Receipt:
        """Publish one message; as `Producer.publish` does."""
        return await self._producer.publish(
            body, timeout=timeout, retry=retry, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )

    async def publish_many(
        self, bodies: Iterable[Body], *, timeout: float = PUBLISH_TIMEOUT, retry: Retry | None = None
    ) -> Sequence[Receipt | PublishError]:
        """Publish many messages, pipelined; as `Producer.publish_many` does."""
        return await self._producer.publish_many(
            bodies, timeout=timeout, retry=retry, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )

    def publish_nowait(
        self, body: Body, *, timeout: float = PUBLISH_TIMEOUT, retry: Retry | None = None
    ) -> PublishHandle:
        """Accept one message without waiting; as `Producer.publish_nowait` does."""
        return self._producer.publish_nowait(
            body, timeout=timeout, retry=retry, exchange=self.exchange, routing_key=self.routing_key, **self._fields
        )
