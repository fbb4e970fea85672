"""`ManyPublishes`: accepts the messages of one `publish_many`, as capacity comes free.

Bodies that share their fields, and messages with few envelopes, are written together while the link is healthy: the sender takes as many as the window has room
for, again and again, while this call waits once. In any other state, and for messages with headers of their own, each one is
accepted alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from itertools import islice
from typing import cast

import anyio
import anyio.lowlevel

from warrener._publishing.envelopes import Envelopes, has_destination, require_destination
from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.batching import LARGEST
from warrener._publishing.runs import Outcomes, Run
from warrener._publishing.sender import Sender
from warrener._retry_rules import RetryRules
from warrener._sources import reading
from warrener.errors import DeadlineExceeded, InvalidMessage
from warrener.records import Body, Envelope, Message, MessageFields, Outcome

__all__ = ["ManyPublishes"]


#: The types of bodies that can be written together.
_BODIES = {bytes}
#: Number of messages that are accepted one by one before other tasks run.
STRIDE = 128
#: A piece of messages with more envelopes is accepted one by one: each envelope is asked about before each flight.
MOST_KINDS = 64
#: Number of messages that are taken at a time from an iterable that is no list and no tuple.
PIECE = 1024


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
        self._run = Run(deadline)
        self._sender = sender
        self._envelopes = envelopes
        self._deadline = deadline
        self._fields = fields
        #: The policy of these messages; None: the producer's.
        self._retry = retry
        self._bodies_allowed = has_destination(fields)
        self._taken = 0

    async def publish(self, messages: Iterable[Body | Message] | AsyncIterable[Body | Message]) -> Outcomes:
        """Accept all messages, wait until each has its outcome, and return the outcomes."""
        run, backend = self._run, self._sender.backend
        try:
            if isinstance(messages, AsyncIterable):
                async with reading(messages) as source:
                    async for message in source:
                        await self._accept_alone(message)
            else:
                for piece, last in _pieces(messages):
                    run.last = last
                    await self._accept(piece)
            run.last = True
            if run.left:
                await backend.park(run, Run.forget)
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            self._cancel()
            raise
        return Outcomes(run, self._sender.id_prefix)

    async def _accept(self, piece: list[Body | Message]) -> None:
        if not self._put_together(piece):
            for message in piece:
                await self._accept_alone(message)
            return
        run, sender = self._run, self._sender
        while run.unaccepted:
            if not sender.feed.add(run):
                await self._accept_alone(piece[run.at])
                continue
            if run not in sender.feed:
                continue
            with anyio.move_on_after(self._deadline - sender.backend.clock()) as patience:
                await sender.backend.park(run, Run.forget)
            if patience.cancelled_caught:
                sender.feed.withdraw(run)
                while run.unaccepted:
                    await self._accept_alone(piece[run.at])

    def _put_together(self, piece: list[Body | Message]) -> bool:
        """Put the messages into the run if they can be written together."""
        if self._retry is not None or not piece:
            return False
        if type(piece[0]) is Message and not self._fields:
            return self._put_own(piece)
        # One call of C for all types, and one for all sizes: 0.05 us a message.
        if not self._bodies_allowed or "message_id" in self._fields or set(map(type, piece)) != _BODIES:
            return False
        bodies = cast("list[bytes]", piece)
        largest = max(map(len, bodies))
        envelope = self._shared_envelope() if largest <= LARGEST else None
        if envelope is None:
            return False
        self._run.put(envelope, bodies, largest)
        return True

    def _put_own(self, piece: list[Body | Message]) -> bool:
        if any(type(each) is not Message for each in piece):
            return False
        messages = cast("list[Message]", piece)
        ids, bodies = [each.message_id for each in messages], [each.body for each in messages]
        largest = max(map(len, bodies))
        if largest > LARGEST or not all(ids):
            return False
        envelopes = self._envelopes.few(messages, MOST_KINDS)
        if envelopes is None:
            return False
        self._run.put_own(envelopes, ids, bodies, largest)
        return True

    def _shared_envelope(self) -> Envelope | None:
        """Return the envelope of bodies that can be written together."""
        try:
            return self._envelopes.shared(self._fields)
        except InvalidMessage:
            return None  # each message is refused with it

    async def _accept_alone(self, message: Body | Message) -> None:
        self._taken += 1
        if self._taken % STRIDE == 0:
            await anyio.lowlevel.checkpoint()
        run = self._run
        refused = self._take(message)
        if isinstance(refused, Delivery):
            delivery = refused
            refusal = await self._sender.admission.wait(delivery)
            run.place_one(delivery if refusal is None else refusal)
            if refusal is None:
                run.watch(delivery)

    def _take(self, message: Body | Message) -> Delivery | None:
        """Accept or refuse the message; return it if it has to wait for capacity first."""
        sender, run = self._sender, self._run
        called = sender.backend.clock()
        if not self._bodies_allowed and not isinstance(message, Message):
            require_destination("publish_many", self._fields)
        try:
            delivery = self._envelopes.delivery(message, self._deadline, self._fields)
        except InvalidMessage as refused:
            run.place_one(refused)
            return None
        if self._retry is not None:
            delivery.retry = self._retry
        admission = sender.admission
        refusal = admission.refused(delivery)
        if refusal is None and called >= self._deadline:
            admission.give_back(delivery)
            refusal = DeadlineExceeded(delivery.message_id, "its deadline passed before it was accepted")
        if refusal is not None:
            run.place_one(refusal)
            return None
        if not admission.try_accept(delivery):
            return delivery
        run.place_one(delivery)
        sender.accepted(delivery, called)
        run.watch(delivery)
        return None

    def _cancel(self) -> None:
        """The caller has left: each accepted message is cancelled as if it had been published alone."""
        run, sender = self._run, self._sender
        sender.feed.withdraw(run)
        sender.ledger.batching.expand_run(run)
        for receipt in run.receipts(sender.id_prefix):
            sender.settling.tell(Outcome(receipt.message_id, receipt))
        for delivery in list(run.deliveries()):
            sender.leaving.cancelled(delivery)


def _pieces(messages: Iterable[Body | Message]) -> Iterator[tuple[list[Body | Message], bool]]:
    """Return the messages in lists, each with whether it is the last one. A list or a tuple is one piece."""
    if isinstance(messages, list | tuple):
        yield list(messages), True
        return
    iterator = iter(messages)
    while piece := list(islice(iterator, PIECE)):
        yield piece, False
