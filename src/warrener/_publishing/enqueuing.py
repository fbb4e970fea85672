"""The part of a producer that stores messages in its outbox."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Unpack

from warrener._publishing.envelopes import message_of, with_message_fields
from warrener._publishing.relaying import RelayLike
from warrener.records import Body, Message, MessageFields, Receipt, Stored

__all__ = ["Enqueuing"]


class Enqueuing(ABC):
    """Base class of `Producer`."""

    @abstractmethod
    def _relay_here(self) -> RelayLike:
        """Return the relay of the outbox; raise if there is none, or if it runs elsewhere."""

    @with_message_fields
    async def enqueue(self, body: Body | Message, *, key: str | None = None, **fields: Unpack[MessageFields]) -> Stored:
        """Store one message in the outbox; return when it is on disk, whether or not a broker is there.

        From then on it is published until the broker confirms it, or set aside for a person. Messages of one `key` are
        published in the order in which they were stored. If this call is cancelled before the message is on its way to the
        disk, nothing is stored; if it is cancelled later, it returns `Stored`, and the next
        `enqueue` of this task, or an earlier checkpoint, raises the cancellation. Raises `OutboxFull`, `OutboxUnusable`.
        """
        relay = self._relay_here()
        return await relay.enqueue(message_of(body, fields), key=key)

    async def enqueue_and_wait(self, message: Message, *, key: str | None = None, patience: float) -> Receipt | Stored:
        """Store one message as `enqueue` does; return its receipt if the confirm comes within `patience` seconds."""
        return await self._relay_here().enqueue_and_wait(message, key=key, patience=patience)

    async def wait_flushed(self, timeout: float = math.inf) -> None:
        """Wait until each message stored so far is confirmed or set aside; `OutboxNotFlushed` after `timeout` seconds."""
        await self._relay_here().wait_flushed(timeout)
