"""The link as its owner sees it: tags, lanes, back-pressure. The same on asyncio and across the bridge.

`AiormqLink` lives with the owner, the engine in its asyncio loop; on Trio that is another thread. What they share is
one deque, to which the owner appends and from which the engine takes, and counters that one side writes and the other
reads. Reports reach the owner through `TaskEndpoint`, which updates the link before it passes them on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from warrener.drivers.aiormq._encoding import OVERHEAD, header_size
from warrener.drivers.base import Lane, LinkListener, Peer
from warrener.errors import Fault
from warrener.records import Envelope, Returned
from warrener.topology import Binding, Declaration, Queue
from warrener.wire import requests
from warrener.wire.channel import LARGEST_BODY

if TYPE_CHECKING:
    from warrener.drivers.aiormq._engine import Engine

__all__ = ["AiormqLink", "TaskEndpoint"]

#: Unsent bytes at which the link is congested, and at which it no longer is.
HIGH_WATER = 1024 * 1024
LOW_WATER = HIGH_WATER // 2

#: Envelopes whose encoded size is kept.
_ENVELOPES = 256

#: Runs a coroutine function of the engine, in the event loop of the engine.
Call = Callable[..., Awaitable[Any]]


class AiormqLink:
    """One TCP connection with its AMQP session, on aiormq; see `warrener.drivers.base.Link`."""

    def __init__(
        self,
        *,
        wake: Callable[[], None],
        soon: Callable[..., object],
        call: Call,
        fail: Callable[[Fault], None],
        pull: Callable[[], None],
    ) -> None:
        self._wake = wake
        self._soon = soon
        self._call = call
        self._fail = fail
        #: The pump takes messages from a queue whenever they come, so a requested pull follows at once.
        self.request_pull = pull
        self._engine: Engine | None = None
        self._aborted = False
        #: Whether the engine has stopped for good: it writes nothing any more.
        self.ended = False
        self.peer = Peer()
        #: The open channel of each lane and the last tag assigned on it.
        self._channels: dict[Lane, list[int]] = {}
        #: Bytes that the owner has published; the owner's side writes it.
        self._published_bytes = 0
        #: Bytes of those that are no longer waiting; the engine's side writes it.
        self._sent_bytes = 0
        self._congested = False
        self._bytes_out = 0
        self._sizes: dict[int, tuple[Envelope, int | str]] = {}

    def attach(self, engine: Engine) -> None:
        """Set the engine that sends the messages of this link."""
        self._engine = engine

    @property
    def congested(self) -> bool:
        """Whether a mebibyte or more waits for the socket."""
        return self._congested

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Append one message to the pump's queue; return its tag."""
        engine = self._engine
        channel = self._channels.get(lane)
        if engine is None or channel is None:
            raise RuntimeError(f"the link has no open channel for the {lane.value} lane")
        channel[1] += 1
        self._published_bytes += len(body) + OVERHEAD
        if self._published_bytes - self._sent_bytes >= HIGH_WATER:
            # Set before the message is appended: if it is the last message, its own send still ends the congestion.
            self._congested = True
        engine.queue.append((channel[0], channel[1], envelope, message_id, body, token))
        self._wake()
        return channel[1]

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """Append messages to the pump's queue, one by one; return the first tag."""
        tags = [
            self.publish(Lane.MAIN, envelope, message_id, body, token)
            for envelope, message_id, body, token in zip(
                envelopes, message_ids, bodies, tokens or repeat(None, len(bodies)), strict=True
            )
        ]
        return tags[0]

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why aiormq cannot send the message, or None."""
        if not message_id:
            return "message_id is empty; aiormq would replace it"
        try:
            id_size = len(message_id.encode())
        except UnicodeEncodeError:
            return "message_id cannot be encoded as UTF-8"
        if id_size > 255:
            return f"message_id is {id_size} bytes long; AMQP short strings hold at most 255"
        kept = self._sizes.get(id(envelope))
        if kept is None:
            if len(self._sizes) >= _ENVELOPES:
                self._sizes.clear()
            kept = self._sizes[id(envelope)] = (envelope, header_size(envelope))
        size = kept[1]
        if isinstance(size, str):
            return size
        size += id_size + (0 if token is None else _TOKEN_SIZE + len(token))
        if size > self.peer.frame_max:
            return (
                f"the properties and headers take {size:,} bytes; this broker takes {self.peer.frame_max:,} (frame_max)"
            )
        if len(body) > LARGEST_BODY:
            return f"the body has {len(body):,} bytes; RabbitMQ takes {LARGEST_BODY:,} at most"
        return None

    def written(self, channel: int) -> int:
        """Return the highest tag whose last byte may have reached the network (marked before the send call).

        Between `abort` and the end of the link the engine, perhaps in another thread, may still write more messages.
        This side cannot tell how many, so it returns the last tag assigned.
        """
        return self._last_if_aborting(channel) or (0 if self._engine is None else self._engine.written(channel))

    def _last_if_aborting(self, channel: int) -> int:
        if self._aborted and not self.ended:
            for number, last in self._channels.values():
                if number == channel:
                    return last
        return 0

    def begun(self, channel: int) -> int:
        """Return the highest tag that was begun; between `abort` and the end of the link the last tag assigned."""
        return self._last_if_aborting(channel) or (0 if self._engine is None else self._engine.begun(channel))

    @property
    def bytes_out(self) -> int:
        """How many bytes the peer has taken: the kernel's own queue is not counted, where the system tells its length."""
        if self._engine is not None:
            self._bytes_out = max(self._bytes_out, self._engine.bytes_out)
        return self._bytes_out

    @property
    def bytes_left(self) -> int:
        """About how many bytes the peer has not taken yet."""
        return self._published_bytes - self._sent_bytes + (0 if self._engine is None else self._engine.unacknowledged)

    def open_suspect_channel(self) -> None:
        """Open a channel for suspects unless there is one."""
        if self._engine is not None:
            self._soon(self._engine.open_channel_soon, Lane.SUSPECT)

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Declare in the given order, on a channel of its own."""
        names: list[str] = await self._call("declare", tuple(declarations))
        return names

    async def unbind(self, binding: Binding) -> None:
        """End a binding."""
        await self._call("ask", requests.unbind(binding), str(binding))

    async def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue."""
        removed: int = await self._call("ask", requests.purge(queue), str(Queue(queue)))
        return removed

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue."""
        bodies: list[bytes] = await self._call("get", queue, limit)
        return bodies

    async def delete_queue(self, queue: str) -> int:
        """Delete the queue."""
        removed: int = await self._call("ask", requests.delete_queue(queue), str(Queue(queue)))
        return removed

    async def update_secret(self, secret: str) -> None:
        """Give the broker a new secret in place of the password."""
        await self._call("update_secret", secret)

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake."""
        self._aborted = True
        self._fail(fault)

    # --- for the engine and the task endpoint -----------------------------------------------------------------------

    def sent(self, size: int) -> bool:
        """Count bytes that no longer wait; called in the engine's thread. True when the congestion may be over."""
        self._sent_bytes += size
        return self._congested and self._published_bytes - self._sent_bytes <= LOW_WATER

    def opened(self, lane: Lane, channel: int) -> None:
        """A lane has a channel."""
        self._channels[lane] = [channel, 0]

    def closed(self, lane: Lane) -> None:
        """A lane has lost its channel."""
        self._channels.pop(lane, None)

    def writable(self) -> bool:
        """End the congestion; False if there is none, or if there is a new one."""
        if self._congested and self._published_bytes - self._sent_bytes <= LOW_WATER:
            self._congested = False
            return True
        return False


class TaskEndpoint:
    """Takes the reports in the owner's task: it updates the link first, then calls the owner's listener."""

    def __init__(self, link: AiormqLink, listener: LinkListener) -> None:
        self._link = link
        self._listener = listener
        self.confirmed = listener.confirmed
        self.nacked = listener.nacked
        self.blocked = listener.blocked
        self.unblocked = listener.unblocked
        self.pull = listener.pull

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """A publishing channel is in confirm mode."""
        self._link.opened(lane, channel)
        self._listener.channel_opened(lane, channel)

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """The broker closed the channel."""
        self._link.closed(lane)
        self._listener.channel_closed(lane, channel, fault, written)

    def returned(self, channel: int, returned: Returned) -> None:
        """The broker returned a message."""
        self._listener.returned(channel, returned)

    def writable(self) -> None:
        """The link may accept publishes again."""
        if self._link.writable():
            self._listener.writable()


#: A header field with a token: name, type and length.
_TOKEN_SIZE = 1 + len("x-warrener-token") + 5
