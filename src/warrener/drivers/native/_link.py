"""The link: what its owner calls, what the events of the session mean for it, and how it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from warrener._backend import backend
from warrener.drivers import _faults
from warrener.drivers._faults import DialPhase
from warrener.drivers._progress import unacknowledged
from warrener.drivers.base import Lane, LinkListener, LinkOptions, Peer
from warrener.drivers.native._channels import Channels
from warrener.drivers.native._reader import Reader
from warrener.drivers.native._requests import Requests
from warrener.drivers.native._transport import ENDS, Transport
from warrener.drivers.native._writer import HIGH_WATER, Writer
from warrener.errors import Fault
from warrener.records import Envelope
from warrener.topology import Binding, Declaration, Queue
from warrener.wire import Session, SessionPhase, events, requests

__all__ = ["NativeLink"]

#: How long the reader may go on after a write failed, in seconds.
_LAST_WORDS: Final = 1.0
#: Checkpoints that a reader with readable bytes needs to take them in, TLS included.
_GRACE: Final = 5

_MAIN: Final = Lane.MAIN

#: How far a link has come before its first channel is open, by the phase of its session.
_DIAL_PHASES: Final = {
    SessionPhase.STARTING: DialPhase.GREETING,
    SessionPhase.AUTHENTICATING: DialPhase.AUTHENTICATING,
    SessionPhase.OPENING: DialPhase.OPENING,
}


class NativeLink:
    """One TCP connection with its AMQP session; see `warrener.drivers.base.Link`."""

    def __init__(
        self, transport: Transport, peer: Peer, session: Session, options: LinkOptions, listener: LinkListener
    ) -> None:
        self.peer = peer
        self.fault: Fault | None = None
        self._transport = transport
        self._session = session
        self._options = options
        self._listener = listener
        #: Stands around the body of the `async with`; cancelled when the link ends.
        self.scope = anyio.CancelScope()
        parking = backend()
        self._writer = Writer(
            transport,
            session,
            options.write_stall_timeout,
            parking,
            on_pull=listener.pull,
            on_writable=listener.writable,
            on_stalled=self._write_stalled,
            on_lost=self._write_lost,
        )
        self._reader = Reader(
            transport,
            session,
            options.frame_timeout,
            parking,
            on_event=self._on_event,
            on_read=self._on_read,
            on_stalled=self._frame_stalled,
            on_lost=self._lost,
        )
        self._channels = Channels(
            session, listener, options.connect_timeout, fail=self._fail, wake_writer=self._writer.wake
        )
        self._requests = Requests(
            session, options.declare_timeout, abort=self._abort_for, wake_writer=self._writer.wake
        )
        self._bytes_out = 0
        #: Whether the next message is written at once: between the last two reads at most one was published.
        self._one_at_a_time = True
        self._tag_at_read = 0
        self._tuned = anyio.Event()
        #: Our close handshake has begun; it is complete, or not worth waiting for.
        self._leaving = False
        self._left = anyio.Event()
        #: The answer to the broker's close waits to be sent.
        self._answering = False

    # --- what the owner calls -----------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether the owner should hold back: the socket is behind, or the broker has just stopped us.

        This is true as soon as the session has read the broker's stop; the stop is reported later, after the confirms
        of the same read. The session has then answered with flow-ok already, and after flow-ok nothing may be published
        (AMQP 0-9-1, channel.flow-ok).
        """
        return self._writer.full or self._session.blocked

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Append one message to the pending bytes; return its tag."""
        publisher = self._channels.main if lane is _MAIN else self._channels.suspect
        if publisher is None:
            raise RuntimeError(f"the link has no open channel for the {lane.value} lane")
        tag = publisher.publish(envelope, message_id, body, token)
        writer = self._writer
        if publisher.outgoing.backlog >= HIGH_WATER:
            writer.full = True
        if writer.waiter is not None:
            self._have_sent()
        return tag

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """Append messages with consecutive tags to the pending bytes; return the first tag."""
        publisher = self._channels.main
        if publisher is None:
            raise RuntimeError("the link has no open channel for the main lane")
        tag = publisher.publish_batch(envelopes, message_ids, bodies, tokens)
        writer = self._writer
        if publisher.outgoing.backlog >= HIGH_WATER:
            writer.full = True
        if writer.waiter is not None:
            self._have_sent()
        return tag

    def request_pull(self) -> None:
        """Have the writer ask for messages before its next send."""
        writer = self._writer
        writer.pull_requested = True
        if writer.waiter is not None:
            self._have_sent()

    def _have_sent(self) -> None:
        """Have pending bytes sent.

        While messages come one at a time, they are written in this step, without another pass of the event loop.
        Otherwise the writer's task sends them.
        """
        if self._one_at_a_time:
            self._one_at_a_time = False
            self._writer.write_now()
        else:
            self._writer.wake()

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why the message cannot be sent on this link, or None."""
        assert self._channels.main is not None
        return self._channels.main.validate(envelope, message_id, body, token)

    def written(self, channel: int) -> int:
        """Return the highest tag that was written."""
        return self._session.publisher(channel).written

    def open_suspect_channel(self) -> None:
        """Open a channel for suspects unless there is one, or one is on its way."""
        if self.fault is None and not self._channels.has(Lane.SUSPECT):
            self._channels.open(Lane.SUSPECT)

    def begun(self, channel: int) -> int:
        """Return the highest tag that was begun."""
        return self._session.publisher(channel).begun

    @property
    def bytes_out(self) -> int:
        """How many bytes the peer has taken: the kernel's own queue is not counted, where the system tells its length."""
        self._bytes_out = max(self._bytes_out, self._writer.bytes_out - unacknowledged(self._transport.descriptor))
        return self._bytes_out

    @property
    def bytes_left(self) -> int:
        """About how many bytes the peer has not taken yet."""
        return self._writer.bytes_left + unacknowledged(self._transport.descriptor)

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Declare in the given order, on a channel of its own."""
        return await self._requests.declare(declarations)

    async def unbind(self, binding: Binding) -> None:
        """End a binding."""
        await self._requests.ask(requests.unbind(binding), str(binding))

    async def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue."""
        return await self._requests.ask(requests.purge(queue), str(Queue(queue)))

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue."""
        return await self._requests.get(queue, limit)

    async def delete_queue(self, queue: str) -> int:
        """Delete a queue."""
        return await self._requests.ask(requests.delete_queue(queue), str(Queue(queue)))

    async def update_secret(self, secret: str) -> None:
        """Give the broker a new secret in place of the password."""
        await self._requests.update_secret(secret)

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake."""
        if self.fault is None:
            self._silence()
            self._end(fault)

    # --- ending -------------------------------------------------------------------------------------------------

    def _abort_for(self, fault: Fault) -> Fault:
        """End the link; return the fault that ended it."""
        self.abort(fault)
        return self.fault or fault

    def _end(self, fault: Fault) -> None:
        """Record why the link is over, and cancel the body. The first fault stands."""
        if self.fault is None:
            self.fault = fault
            self.scope.cancel()
        self._left.set()
        self._requests.end(self.fault)

    def _fail(self, fault: Fault) -> None:
        """End the link because of `fault`. During our own close handshake the link just ends, without a fault."""
        self._silence()
        if self._leaving:
            self._left.set()
        else:
            self._end(fault)

    def _silence(self) -> None:
        """Send nothing any more, nor the rest of the present send."""
        self._session.fail()
        self._writer.stop()

    def _lost(self, error: Exception) -> None:
        self._fail(_faults.fault_of(error, self._dial_phase(self._session.phase)))

    async def _write_lost(self, error: Exception) -> None:
        with anyio.move_on_after(_LAST_WORDS):
            await self._reader.ended.wait()
        self._lost(error)

    def _write_stalled(self) -> None:
        self._fail(_faults.stalled_write(self._options.write_stall_timeout))

    def _frame_stalled(self) -> None:
        self._fail(_faults.stalled_frame(self._options.frame_timeout))

    def _dial_phase(self, phase: SessionPhase) -> DialPhase:
        return DialPhase.UP if self._channels.ready.is_set() else _DIAL_PHASES.get(phase, DialPhase.PREPARING)

    # --- for the driver -----------------------------------------------------------------------------------------

    def start(self, tasks: TaskGroup) -> None:
        """Start reader, writer and watch."""
        self._channels.tasks = tasks
        tasks.start_soon(self._writer.run)
        tasks.start_soon(self._reader.run)
        tasks.start_soon(self._watch)

    async def handshake(self, deadline: float, seconds: float) -> None:
        """Wait for the first channel in confirm mode; at the deadline, after `seconds`, the link ends."""
        with anyio.CancelScope(deadline=deadline) as patience:
            await self._channels.ready.wait()
        if patience.cancelled_caught:
            self._fail(_faults.timed_out(self._dial_phase(self._session.phase), seconds))
            await anyio.lowlevel.checkpoint()  # where the cancellation of the body takes effect

    async def close(self) -> None:
        """Do our close handshake, at most `close_timeout` long."""
        self._leaving = True
        self._session.close()
        self._writer.wake()
        with anyio.move_on_after(self._options.close_timeout):
            await self._left.wait()
            await self._writer.flush()

    async def answer_close(self) -> None:
        """Let the answer to the broker's close go out, at most `abort_timeout` long."""
        if self._answering:
            with anyio.CancelScope(deadline=anyio.current_time() + self._options.abort_timeout, shield=True):
                await self._writer.flush()

    async def shut(self) -> None:
        """Close the stream, whatever state it is in."""
        self._session.fail()
        with anyio.CancelScope(deadline=anyio.current_time() + self._options.abort_timeout, shield=True):
            try:
                await self._transport.aclose()
            except ENDS:
                pass

    # --- heartbeats ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._tuned.wait()
        interval = self.peer.heartbeat
        if not interval:
            return
        writer, reader = self._writer, self._reader
        while True:
            await anyio.sleep_until(min(writer.sent_at + interval / 2, reader.heard_at + 2 * interval))
            if anyio.current_time() >= reader.heard_at + 2 * interval:
                for _ in range(_GRACE):
                    await anyio.lowlevel.checkpoint()
                if anyio.current_time() >= reader.heard_at + 2 * interval:
                    self._fail(_faults.silent(2 * interval))
                    return
            now = anyio.current_time()
            if now >= writer.sent_at + interval / 2:
                # A writer without a waiter is sending, so no heartbeat is needed; or the kernel takes no bytes, so a
                # heartbeat would not go out.
                if writer.waiter is not None:
                    self._session.beat()
                    writer.wake()
                writer.sent_at = now

    # --- events of the session ----------------------------------------------------------------------------------

    def _on_read(self) -> bool:
        """After each read: have the session's answers sent; False when nothing more can come."""
        if (main := self._channels.main) is not None:
            # If a pass publishes several messages, a write at once would send them in several parts.
            self._one_at_a_time = main.last_tag - self._tag_at_read <= 1
            self._tag_at_read = main.last_tag
        if not self._session.idle or self._transport.left:
            self._writer.wake()
        return not (self._leaving and self._left.is_set())

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.Tuned(tuning):
                self.peer = Peer(
                    product=tuning.product,
                    version=tuning.version,
                    heartbeat=tuning.heartbeat,
                    frame_max=tuning.frame_max,
                    channel_max=tuning.channel_max,
                    address=self.peer.address,
                    tls=self.peer.tls,
                    mechanism=tuning.mechanism,
                )
                self._tuned.set()
            case events.Opened():
                self._channels.open(_MAIN)
            case events.ChannelOpened(channel):
                self._channels.on_opened(channel)
            case events.ChannelClosed():
                self._channels.on_closed(event)
            case events.Replied() | events.GetResult() | events.Refused():
                self._requests.on_answer(event)
            case events.Blocked(reason):
                self._writer.block(blocked=True)
                self._channels.report(lambda: self._listener.blocked(reason))
            case events.Unblocked():
                self._writer.block(blocked=False)
                self._channels.report(self._listener.unblocked)
            case events.SecretUpdated():
                self._requests.on_secret_taken()
            case events.CloseReceived(code, text, phase, method):
                self._answering = True
                declaring = self._requests.entity if requests.is_declaration(method) else None
                updating_secret = requests.is_secret_update(method)
                self._end(
                    _faults.closed_by_broker(
                        code, text, self._dial_phase(phase), declaring=declaring, updating_secret=updating_secret
                    )
                )
            case events.Closed():
                self._left.set()
            case events.ProtocolError():
                self._fail(_faults.protocol_error(event))
