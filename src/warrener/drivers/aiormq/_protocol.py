"""The protocol of one stream: aiormq's connection over the filtering transport, and what each frame means for the link."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import aiormq
import pamqp.frame
from anyio.abc import ByteStream
from attrs import define, evolve
from pamqp import commands
from yarl import URL

from warrener.drivers import _faults
from warrener.drivers._dial import Dialed
from warrener.drivers._faults import DialPhase
from warrener.drivers._login import encodable, login_of
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.aiormq._asked import Asked
from warrener.drivers.aiormq._channels import Channels
from warrener.drivers.aiormq._contents import Contents
from warrener.drivers.aiormq._frames import FrameFilter
from warrener.drivers.aiormq._handshake import Handshake
from warrener.drivers.aiormq._pump import Publish, Pump
from warrener.drivers.aiormq._requests import Requests
from warrener.drivers.aiormq._transport import FilteringTransport
from warrener.drivers.base import Lane, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault
from warrener.records import Endpoint
from warrener.wire.channel import Content
from warrener.wire.codec import ContentHeader, Malformed
from warrener.wire.handshake import Handshake as WireHandshake
from warrener.wire.masking import Mask
from warrener.wire.requests import is_declaration, is_secret_update

__all__ = ["Connection", "Protocol"]


#: The largest values that we agree to; RabbitMQ's defaults.
_FRAME_MAX = 131_072
_CHANNEL_MAX = 2047

#: The answers that aiormq waits for; those to requests are read by `_requests`.
_FOR_AIORMQ = (
    frames.OPEN_OK, frames.CONNECTION_CLOSE_OK, frames.CHANNEL_OPEN_OK, frames.CONFIRM_SELECT_OK, frames.QOS_OK
)  # fmt: skip


class Connection(aiormq.Connection):
    """aiormq's connection without a judgement of its own on liveness: the engine watches, and bounds each wait."""

    HEARTBEAT_GRACE_MULTIPLIER = 1_000_000
    READER_CLOSE_TIMEOUT = 1_000_000
    #: Frames between the pump and aiormq's writer task: fewer switches between the two.
    FRAME_BUFFER_SIZE = 64


@define
class _FilteredStreams(aiormq.TransportFactory):
    """Gives aiormq the streams of a transport."""

    transport: FilteringTransport

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start the transport; the URL is not looked at, so nothing in a URL can change how we connect."""
        return self.transport.start()


class Protocol:
    """Everything between the bytes of one stream and the link listener."""

    def __init__(
        self,
        dialed: Dialed[ByteStream],
        endpoint: Endpoint,
        options: LinkOptions,
        listener: LinkListener,
        queue: deque[Publish],
        work: asyncio.Event,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        fail: Callable[[Fault], None],
        sent: Callable[[int], None],
        room: asyncio.Event | None = None,
    ) -> None:
        self.phase = DialPhase.GREETING
        self._listener = listener
        self._fail = fail
        self._text = Mask(endpoint.credentials)
        self._stopping = False
        self._asked = Asked()
        #: Our answer to the broker's close waits to be sent.
        self.answering = False
        #: Whether publishing is blocked: the newest report of it, which waits for the first channel. No other reports wait.
        self._early_report: Callable[[], None] | None = None
        self._handshake = Handshake(
            encodable(
                lambda: WireHandshake(
                    endpoint.credentials,
                    frame_max=_FRAME_MAX,
                    channel_max=_CHANNEL_MAX,
                    **login_of(endpoint, options, product="warrener by way of aiormq"),
                )
            ),
            Peer(address=dialed.address, tls=dialed.tls),
        )
        self._contents = Contents(options.max_inbound_body)
        #: What has stopped publishing: 0 for the connection, else the channel whose flow was stopped.
        self._stopped_by: set[int] = set()
        self._filter = FrameFilter(
            {
                frames.START: self._on_start,
                frames.TUNE: self._on_tune,
                frames.CONNECTION_CLOSE: self._on_connection_close,
                frames.BLOCKED: self._on_blocked,
                frames.UNBLOCKED: self._on_unblocked,
                frames.SECRET_TAKEN: self._on_secret_taken,
                frames.FLOW: self._on_flow,
                frames.CHANNEL_CLOSE: self._on_channel_close,
                frames.CHANNEL_CLOSE_OK: self._on_channel_close_ok,
                frames.RETURN: self._on_return,
                frames.SECURE: self._on_secure,
                **dict.fromkeys(frames.ANSWERS, self._on_answer),
                **dict.fromkeys(_FOR_AIORMQ, self._on_aiormqs_answer),
            },
            self._contents.on_content,
            self._on_confirm,
        )
        self._filter.unfinished = self._contents
        self._filter.channels = self._asked
        self.transport = FilteringTransport(
            dialed.stream, self._filter, self._on_outgoing, sent, self._lost, options.write_stall_timeout,
            options.frame_timeout, room,
        )  # fmt: skip
        self.connection = Connection(
            # aiormq requires a URL. This one is not used to connect: the stream is connected already, and `_handshake`
            # has the credentials.
            URL("amqp://broker/"),
            transport_factory=_FilteredStreams(self.transport),
        )
        self.connection.vhost = endpoint.vhost
        self.channels = Channels(
            self.connection, options, listener, channel_max=lambda: self.peer.channel_max, spawn=spawn, fail=fail
        )
        self.requests = Requests(
            self.channels, self.transport, self._contents, options.declare_timeout,
            frame_max=lambda: self.peer.frame_max, unanswered=fail,
            mask=lambda secret: self._text.learn(evolve(endpoint.credentials, password=secret)),
        )  # fmt: skip
        self.pump = Pump(queue, work, self.transport, self.channels.epochs, dropped=sent, fail=fail)

    @property
    def stopping(self) -> bool:
        """Whether the link is ending: no channel is opened any more, and a frame that is not legal is dropped."""
        return self._stopping

    def stop(self) -> None:
        """The link is ending."""
        self._stopping = self._filter.leaving = True

    @property
    def peer(self) -> Peer:
        """What the handshake has found out so far."""
        return self._handshake.peer

    async def connect(self) -> None:
        """Shake hands and open the first channel; raises `LinkDown` and what aiormq raises."""
        await self.connection.connect()  # pyright: ignore[reportUnknownMemberType]
        self.phase = DialPhase.PREPARING
        if not self.connection.publisher_confirms:
            raise LinkDown(_faults.unusable("it does not offer publisher confirms"))
        number = self.channels.free_number()
        try:
            await self.channels.open(Lane.MAIN, number)
        except Exception as error:
            refusal = self.channels.refusal(number)
            if refusal is None:
                raise
            raise LinkDown(_faults.channel_closed_by_broker(*refusal)) from error
        self.phase = DialPhase.UP
        if self._early_report is not None:
            self._early_report()

    def _report(self, call: Callable[[], None]) -> None:
        """Report blocked or unblocked: now, or once the first channel is open, and then the newest report only.

        A dial that fails before that has reported nothing.
        """
        if self.phase is DialPhase.UP:
            call()
        else:
            self._early_report = call

    def _lost(self, error: BaseException) -> None:
        self._fail(_faults.fault_of(error, self.phase))

    # --- frames from the broker -----------------------------------------------------------------------------------

    def _expect(self, phase: DialPhase, what: str) -> None:
        if self.phase is not phase:
            raise Malformed(f"{what} came while the link was {self.phase.value}")

    def _on_start(self, _: int, data: bytes) -> bytes | None:
        self._expect(DialPhase.GREETING, "Connection.Start")
        kept = self._handshake.on_start(data)
        self.phase = DialPhase.AUTHENTICATING
        return kept

    def _on_secure(self, _: int, data: bytes) -> bytes | None:
        self._expect(DialPhase.AUTHENTICATING, "Connection.Secure")
        self._handshake.on_secure()
        return None

    def _on_tune(self, _: int, data: bytes) -> bytes | None:
        self._expect(DialPhase.AUTHENTICATING, "Connection.Tune")
        kept = self._handshake.on_tune(data)
        self._filter.frame_max = self.peer.frame_max
        # Without this value aiormq would use the interval that the server offers.
        self.connection.heartbeat_timeout = int(self.peer.heartbeat)
        self.phase = DialPhase.OPENING
        return kept

    def _on_connection_close(self, _: int, data: bytes) -> bytes | None:
        """Answer at once and end the link: aiormq may answer a close with a close, or not at all."""
        close = frames.read(data, commands.Connection.Close)
        self.answering = True
        self.transport.answer(pamqp.frame.marshal(commands.Connection.CloseOk(), 0))
        text = self._text(close.reply_text or "")
        method = (close.class_id or 0) << 16 | (close.method_id or 0)
        declaring = self.requests.entity if is_declaration(method) else None
        raise LinkDown(
            _faults.closed_by_broker(
                close.reply_code or 0, text, self.phase, declaring=declaring, updating_secret=is_secret_update(method)
            )
        )

    def _on_secret_taken(self, _: int, data: bytes) -> bytes | None:
        """Do not pass the answer on to aiormq: the driver sent the request itself."""
        frames.read(data, commands.Connection.UpdateSecretOk)
        self.requests.on_secret_taken()
        return None

    def _on_blocked(self, _: int, data: bytes) -> bytes | None:
        if self.phase in (DialPhase.GREETING, DialPhase.AUTHENTICATING):
            raise Malformed(f"Connection.Blocked came while the link was {self.phase.value}")
        self._stop(0, self._text(frames.read(data, commands.Connection.Blocked).reason))
        return None

    def _on_unblocked(self, _: int, data: bytes) -> bytes | None:
        self._go_on(0)
        return None

    def _stop(self, source: int, reason: str) -> None:
        self._stopped_by.add(source)
        self.transport.blocked = True
        self._report(lambda: self._listener.blocked(reason))

    def _go_on(self, source: int) -> None:
        if source in self._stopped_by:
            self._stopped_by.discard(source)
            if not self._stopped_by:
                self.transport.blocked = False
                self._report(self._listener.unblocked)

    def _on_flow(self, channel: int, data: bytes) -> bytes | None:
        active = bool(frames.read(data, commands.Channel.Flow).active)
        self.transport.answer(pamqp.frame.marshal(commands.Channel.FlowOk(active=active), channel))
        if active:
            self._go_on(channel)
        elif self.channels.publishes(channel):
            self._stop(channel, "the broker stopped the flow of the channel")
        return None

    def _on_channel_close(self, channel: int, data: bytes) -> bytes | None:
        """Answer at once, so that nothing can be sent on the closed channel afterwards, and let aiormq know."""
        close = frames.read(data, commands.Channel.Close)
        self.transport.answer(pamqp.frame.marshal(commands.Channel.CloseOk(), channel))
        self._contents.forget(channel)
        code, text = close.reply_code or 0, self._text(close.reply_text or "")
        if not self.requests.closing(channel):  # after a close of ours, the broker's close-ok ends the channel
            self._asked.closed_by_broker(channel)
        epoch = self.channels.on_close(channel, code, text)
        self.requests.on_close(channel)
        self._go_on(channel)
        if epoch is not None and epoch.lane is Lane.MAIN and not self.stopping:
            # aiormq learns of the close in the next turn of the event loop; the task starts after that.
            self.channels.open_soon(Lane.MAIN)
        return data

    def _on_channel_close_ok(self, channel: int, data: bytes) -> bytes | None:
        if not (self.requests.closing(channel) or self._asked.answered(channel, frames.CHANNEL_CLOSE_OK)):
            raise Malformed(f"Channel.CloseOk came on channel {channel}, which did not ask for it")
        self._asked.ended(channel)
        self.requests.on_close_ok(channel)
        self._contents.forget(channel)
        return data

    def _on_confirm(self, channel: int, tag: int, multiple: bool, negative: bool) -> None:
        epoch = self.channels.epoch(channel)
        if channel in self._contents:
            raise Malformed("a confirm came inside the content of a return")
        if epoch is None:
            if self.stopping:
                return
            raise Malformed(f"a confirm came on channel {channel}, where nothing is published")
        if not 0 < tag <= epoch.written:
            raise Malformed(f"tag {tag} was confirmed, but only tags 1 to {epoch.written} were written")
        if negative:
            self._listener.nacked(epoch.number, tag, multiple)
        else:
            self._listener.confirmed(epoch.number, tag, multiple)

    def _on_return(self, channel: int, data: bytes) -> bytes | None:
        method = frames.read(data, commands.Basic.Return)
        epoch = self.channels.epoch(channel)
        if epoch is None or not epoch.begun:
            raise Malformed(f"a return came on channel {channel}, where nothing is published")

        def report(content: Content, header: ContentHeader) -> None:
            self._listener.returned(epoch.number, content.returned(header, self._text))

        self._contents.begin(channel, Content(method, kept=None), report)
        return None

    def _on_answer(self, channel: int, data: bytes) -> bytes | None:
        if not self.requests.on_answer(channel, data):
            raise Malformed(f"an answer came on channel {channel}, which did not ask for it")
        return None

    def _on_aiormqs_answer(self, channel: int, data: bytes) -> bytes | None:
        """Let aiormq have the answers that it asked for, and nothing else."""
        if not self._asked.answered(channel, frames.method_of(data) or 0):
            raise Malformed(f"an answer came on channel {channel}, which did not ask for it")
        return data

    # --- frames from aiormq ---------------------------------------------------------------------------------------

    def _on_outgoing(self, method: int, data: bytes) -> bytes | None:
        """Rewrite or drop a frame of aiormq's: credentials go in here, and each close is answered only once."""
        if method == frames.START_OK:
            return self._handshake.start_ok()
        if method == frames.CHANNEL_CLOSE_OK:
            return None
        channel = frames.channel_of(data)
        if method == frames.CHANNEL_CLOSE and self.requests.closing(channel):
            return None
        if method != frames.CHANNEL_OPEN and channel not in self._asked:
            return None  # the broker has closed the channel, and aiormq learns of it in the next turn of the event loop
        self._asked.sent(channel, method)
        return data
