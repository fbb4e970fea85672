"""`ManyPublishes`: accepts the messages of one `publish_many`, one after the other, as capacity comes free."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable

import anyio.lowlevel

from warrener._publishing.batches import Batch
from warrener._publishing.envelopes import Envelopes
from warrener._publishing.ledger import Delivery
from warrener._publishing.sender import Sender
from warrener._retry_rules import RetryRules
from warrener.errors import DeadlineExceeded, InvalidMessage
from warrener.records import Body, Message, MessageFields

__all__ = ["ManyPublishes"]


#: Number of messages that are accepted before other tasks run.
STRIDE = 128


class ManyPublishes:
    """The messages of one `publish_many`, which share a deadline and, if they are bodies, their fields."""

    def __init__(
        self,
        sender: Sender,
        envelopes: Envelopes,
        deadline: float,
        fields: MessageFields,
        retry: RetryRules | None = None,
    ) -> None:
        self.batch = Batch()
        self._sender = sender
        self._envelopes = envelopes
        self._deadline = deadline
        self._fields = fields
        #: The policy of these messages; None: the producer's.
        self._retry = retry
        self._bodies_allowed = bool(fields.get("routing_key") or fields.get("exchange"))

    async def publish(self, messages: Iterable[Body | Message] | AsyncIterable[Body | Message]) -> None:
        """Accept all messages, and wait until each has its outcome."""
        batch = self.batch
        try:
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    if not self.take(message):
                        await self.wait()
            else:
                for taken, message in enumerate(messages):
                    if taken % STRIDE == STRIDE - 1:
                        await anyio.lowlevel.checkpoint()
                    if not self.take(message):
                        await self.wait()
            if batch.left:
                await self._sender.backend.park(batch, Batch.forget)
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            self.cancel()
            raise

    def take(self, message: Body | Message) -> bool:
        """Put the message, or the error with which it is refused, into the batch. False: call `wait` before the next one."""
        sender, batch = self._sender, self.batch
        called = sender.backend.clock()
        if not self._bodies_allowed and not isinstance(message, Message):
            raise InvalidMessage("", "publish_many of bodies needs a routing_key or an exchange for all of them")
        try:
            delivery = self._envelopes.delivery(message, self._deadline, self._fields)
        except InvalidMessage as refused:
            batch.items.append(refused)
            return True
        if self._retry is not None:
            delivery.retry = self._retry
        batch.items.append(delivery)
        admission = sender.admission
        refusal = admission.refused(delivery)
        if refusal is None and called >= self._deadline:
            admission.give_back(delivery)
            refusal = DeadlineExceeded(delivery.message_id, "its turn came after the deadline")
        if refusal is not None:
            batch.items[-1] = refusal
            return True
        if not admission.try_accept(delivery):
            return False
        sender.accepted(delivery, called)
        batch.watch(delivery)
        return True

    async def wait(self) -> None:
        """Wait until the last message is accepted or refused."""
        delivery = self.batch.items[-1]
        assert isinstance(delivery, Delivery)
        refusal = await self._sender.admission.wait(delivery)
        if refusal is not None:
            self.batch.items[-1] = refusal
        else:
            self.batch.watch(delivery)

    def cancel(self) -> None:
        """The caller has left: each accepted message is cancelled as one of its own."""
        for delivery in self.batch.deliveries():
            self._sender.cancelled(delivery)
