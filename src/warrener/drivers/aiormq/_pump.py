"""The one task that gives messages to aiormq, one at a time and in the order of their tags."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

import aiormq
from pamqp import commands

from warrener.drivers import _faults
from warrener.drivers._faults import DialPhase
from warrener.drivers.aiormq._encoding import OVERHEAD, properties_of
from warrener.drivers.aiormq._frames import UNREADABLE
from warrener.drivers.aiormq._transport import Epoch, FilteringTransport, Parcel
from warrener.errors import Fault
from warrener.records import Envelope

__all__ = ["Publish", "Pump"]

#: number of the epoch, tag, envelope, message_id, body, token
Publish: TypeAlias = "tuple[int, int, Envelope, str, bytes, str | None]"

#: While more bytes than this wait in the transport, the pump holds messages back; these are certainly not written.
_BACKLOG = 256 * 1024
#: Envelopes whose properties are kept ready.
_ENVELOPES = 256


class Pump:
    """Takes messages from the queue. Nothing else publishes, so the broker counts the same tags as the driver."""

    def __init__(
        self,
        queue: deque[Publish],
        work: asyncio.Event,
        transport: FilteringTransport,
        epochs: Mapping[int, Epoch],
        *,
        dropped: Callable[[int], None],
        fail: Callable[[Fault], None],
    ) -> None:
        self._transport = transport
        self._epochs = epochs
        #: Called with the size of a message that is not sent, because its channel is closed.
        self._dropped = dropped
        self._fail = fail
        self._queue = queue
        self._work = work
        self._properties: dict[int, tuple[Envelope, commands.Basic.Properties]] = {}

    async def run(self) -> None:
        """Publish until cancelled. A message that cannot be encoded ends the link: it would shift all later tags."""
        transport, queue, epochs = self._transport, self._queue, self._epochs
        while True:
            await self._work.wait()
            self._work.clear()
            while queue:
                if transport.backlog > _BACKLOG:
                    await transport.wait_flushed()
                number, tag, envelope, message_id, body, token = queue.popleft()
                epoch = epochs.get(number)
                size = len(body) + OVERHEAD
                if epoch is None or epoch.closed:
                    self._dropped(size)
                    continue
                transport.expect(Parcel(epoch, tag, size))
                try:
                    await epoch.channel.basic_publish(
                        body,
                        exchange=envelope.exchange,
                        routing_key=envelope.routing_key,
                        properties=self._properties_for(envelope, message_id, token),
                        mandatory=envelope.mandatory,
                        wait=False,  # type: ignore[call-arg]
                    )
                except (aiormq.ChannelInvalidStateError, *UNREADABLE) as error:
                    transport.forget_last()
                    if not epoch.closed:
                        self._fail(_faults.fault_of(error, DialPhase.UP))
                        return

    def _properties_for(self, envelope: Envelope, message_id: str, token: str | None) -> commands.Basic.Properties:
        """Return the envelope's properties with this message's id.

        One object per envelope is changed from message to message: aiormq marshals it before the pump goes on.
        """
        if token is not None:
            return properties_of(envelope, message_id, token)
        kept = self._properties.get(id(envelope))
        if kept is None:
            if len(self._properties) >= _ENVELOPES:
                self._properties.clear()
            kept = self._properties[id(envelope)] = (envelope, properties_of(envelope, message_id, None))
        kept[1].message_id = message_id
        return kept[1]
