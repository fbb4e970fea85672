"""The engine: one TCP + AMQP life on aiormq, inside an asyncio loop. It knows nothing of Trio.

Division of labour. aiormq does the handshake, the codec, the heartbeats it sends, channels, declarations, and the
marshalling and ordering of publishes. The driver reads what arrives for a producer from the wire itself (see `_transport`):
Tune, confirms, returns, closes, blocked, liveness. Therefore channels are opened with aiormq's own confirm tracking off
and put into confirm mode by a plain confirm.select: aiormq sends publishes, and never judges them. That is how the
driver stays truthful where aiormq is not: returns are matched by token and not by message_id, so equal ids may be in
flight together (F3); a multiple ack settles what it covers whatever its top tag (F4); and a closing channel yields no
invented nack (F6), because nacks come from the broker's frames and from nowhere else.

What must stay true:

* One pump hands publishes to aiormq, one at a time and in the order of their tags, so aiormq's frames and ours count
  the same. A publish that cannot be encoded ends the link: its tag would shift all later ones.
* The first fault wins, `fail` is a plain function, and the owner of the engine calls `stop`, which leaves no task and
  no socket behind. Tasks are cancelled by the engine alone; a caller's cancellation never reaches aiormq.
* aiormq never holds the credentials: its URL names no host and no user, and Start-Ok gets its response on the way out.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import math
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import aiormq
import pamqp.frame
from attrs import define, field
from pamqp import commands
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader
from yarl import URL

from warrener.drivers import _faults
from warrener.drivers._dial import dial
from warrener.drivers._faults import DialPhase
from warrener.drivers.aiormq import _transport as wire
from warrener.drivers.aiormq._transport import Epoch, FilteringTransport, FrameFilter, Parcel
from warrener.drivers.base import Lane, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault, printable
from warrener.records import Endpoint, Envelope, FieldValue, Returned
from warrener.topology import Binding, Declaration, Exchange, Queue

__all__ = ["TOKEN_HEADER", "Engine", "Publish", "properties_of"]

T = TypeVar("T")

#: The private header in which a publish carries the token that matches its return (F3).
TOKEN_HEADER = "x-warrener-token"  # noqa: S105 - not a secret

#: Bytes that wait in the transport before the pump holds publishes back; beyond it they are certainly not written.
_TAP_BACKLOG = 256 * 1024
#: The largest frame we agree to; RabbitMQ's default.
_FRAME_MAX = 131072
_CHANNEL_MAX = 2047
#: A publishing channel, one for suspects, one for declarations.
_FEWEST_CHANNELS = 3
#: What is waited for when the loop was away: what has arrived meanwhile is read before silence is judged.
_SILENCE_GRACE = 0.2
#: Envelopes whose properties are kept ready.
_ENVELOPES = 256

#: What pamqp raises on bytes that it cannot read; deep nesting included.
_UNREADABLE = (PAMQPException, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, struct.error)
#: What aiormq raises when a channel or connection under it is gone.
_GONE = (aiormq.AMQPError, aiormq.ChannelInvalidStateError, OSError, RuntimeError, asyncio.CancelledError)

#: Marks the context of our own connections, so that aiormq's log records about them can be told from others'.
_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("warrener_aiormq", default=False)


def _not_ours(_: logging.LogRecord) -> bool:
    """Drop what aiormq logs about our connections: the supervisor logs each change of state, once and without secrets."""
    return not _ours.get()


for _name in ("aiormq.base", "aiormq.channel", "aiormq.connection", "aiormq.connection.marshall"):
    logging.getLogger(_name).addFilter(_not_ours)

#: number of the epoch, tag, envelope, message_id, body, token
Publish = tuple[int, int, Envelope, str, bytes, "str | None"]


class _Connection(aiormq.Connection):
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


@define(eq=False)
class _Content:
    """A returned message on its way in: its body is hashed and not kept."""

    method: commands.Basic.Return
    epoch: Epoch | None
    header: ContentHeader | None = None
    size: int = 0
    digest: Any = field(factory=lambda: hashlib.blake2b(digest_size=16))


class Engine:
    """One link's protocol state and tasks; every method belongs to the asyncio loop unless it says otherwise."""

    def __init__(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener, *, down: Callable[[Fault], None],
        sent: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._options = options
        self._listener = listener
        self._tell_down = down
        self._tell_sent = sent
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._context.run(_ours.set, True)
        self._phase = DialPhase.DIALING
        self._fault: Fault | None = None
        self._down = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._transport: FilteringTransport | None = None
        self._connection: _Connection | None = None
        self._peer = Peer()
        #: Publishes that wait for the pump. Appended to from any thread; `work` wakes the pump.
        self.queue: deque[Publish] = deque()
        self.work = asyncio.Event()
        self._epochs: dict[int, Epoch] = {}
        #: The same by aiormq's channel number, only while the channel is open.
        self._by_channel: dict[int, Epoch] = {}
        self._opening: set[Lane] = set()
        #: Why the broker closed a channel that is no epoch; read by the call that used it.
        self._refusals: dict[int, tuple[int, str]] = {}
        self._returning: dict[int, _Content] = {}
        self._properties: dict[int, tuple[Envelope, commands.Basic.Properties]] = {}
        self._filter = FrameFilter(
            {
                wire.START: self._on_start,
                wire.TUNE: self._on_tune,
                wire.CONNECTION_CLOSE: self._on_connection_close,
                wire.BLOCKED: self._on_blocked,
                wire.UNBLOCKED: self._on_unblocked,
                wire.FLOW: self._on_flow,
                wire.CHANNEL_CLOSE: self._on_channel_close,
                wire.RETURN: self._on_return,
            },
            self._on_content,
            self._on_confirm,
        )

    # --- opening ----------------------------------------------------------------------------------------------------

    async def open(self) -> Peer:
        """Dial, shake hands, open the MAIN channel, all within `connect_timeout`; raises `LinkDown`. `stop` follows."""
        timeout = self._options.connect_timeout
        opening = self.spawn(self._open())
        down = self.spawn(self._down.wait())
        await asyncio.wait({opening, down}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        down.cancel()
        if self._fault is None:
            if not opening.done():
                self.fail(_faults.timed_out(self._phase, timeout))
            elif (error := opening.exception()) is not None:
                self.fail(_faults.fault_of(error, self._phase, seconds=timeout))
        if self._fault is not None:
            raise LinkDown(self._fault)
        return self._peer

    async def _open(self) -> None:
        options = self._options
        dialed = await dial(self._endpoint, require_tls=options.require_tls, ssl_context=options.ssl_context)
        self._phase = DialPhase.GREETING
        self._peer = Peer(address=dialed.address, tls=dialed.tls)
        self._transport = FilteringTransport(
            dialed.stream, self._filter, self._on_outgoing, self._tell_sent, self._lost, options.write_stall_timeout,
            options.frame_timeout,
        )  # fmt: skip
        connection = self._connection = _Connection(
            # Where to connect and as whom is decided elsewhere: this URL is only what aiormq insists on.
            URL("amqp://broker/"),
            transport_factory=_FilteredStreams(self._transport),
            client_properties={
                "product": "warrener by way of aiormq",
                "connection_name": options.connection_name,
            },
        )
        connection.vhost = self._endpoint.vhost
        await connection.connect()  # pyright: ignore[reportUnknownMemberType]
        self._phase = DialPhase.PREPARING
        if not connection.publisher_confirms:
            raise LinkDown(_faults.unusable("it does not offer publisher confirms"))
        await self._open_channel(Lane.MAIN)
        self._phase = DialPhase.UP
        self.spawn(self._pump())
        if self._peer.heartbeat:
            self.spawn(self._watch())

    async def _open_channel(self, lane: Lane) -> None:
        connection = self._connection
        assert connection is not None
        channel = await connection.channel(publisher_confirms=False)
        await channel.confirm_delivery()
        if self._options.prefetch:
            await channel.basic_qos(prefetch_count=self._options.prefetch)
        number = channel.number
        epoch = Epoch(len(self._epochs) + 1, lane, channel)
        self._epochs[epoch.number] = epoch
        self._by_channel[number] = epoch
        self._opening.discard(lane)
        self._listener.channel_opened(lane, epoch.number)

    def open_channel_soon(self, lane: Lane) -> None:
        """Open a publishing channel for the lane unless there is one or one is on its way."""
        if lane in self._opening or any(epoch.lane is lane for epoch in self._by_channel.values()):
            return
        self._opening.add(lane)
        self.spawn(self._open_channel_in_time(lane))

    async def _open_channel_in_time(self, lane: Lane) -> None:
        timeout = self._options.connect_timeout
        try:
            async with asyncio.timeout(timeout):
                await self._open_channel(lane)
        except TimeoutError:
            self.fail(_faults.timed_out(DialPhase.PREPARING, timeout))
        except _GONE as error:
            self.fail(self._refusal(error) or _faults.fault_of(error, DialPhase.UP))

    def _refusal(self, error: BaseException) -> Fault | None:
        """Return the broker's reason for closing a channel that was not yet one of ours, if it gave one."""
        if self._refusals:
            _, (code, text) = self._refusals.popitem()
            return _faults.channel_closed_by_broker(code, text)
        return None

    # --- frames from the broker -----------------------------------------------------------------------------------

    def _on_start(self, _: int, octets: bytes) -> bytes | None:
        start = _read(octets, commands.Connection.Start)
        written = str(start.mechanisms)
        if "PLAIN" not in written.split():
            raise LinkDown(_faults.no_common_mechanism(written))
        properties: Mapping[str, object] = start.server_properties or {}
        self._peer = Peer(
            product=printable(properties.get("product", "")),
            version=printable(properties.get("version", "")),
            address=self._peer.address,
            tls=self._peer.tls,
        )
        self._phase = DialPhase.AUTHENTICATING
        return octets

    def _on_tune(self, _: int, octets: bytes) -> bytes | None:
        """Settle the tuning, and hand aiormq values that it may accept as they are."""
        tune = _read(octets, commands.Connection.Tune)
        frame_max, channel_max, theirs = int(tune.frame_max), int(tune.channel_max), int(tune.heartbeat)
        if 0 < frame_max < 4096:
            raise LinkDown(_faults.unusable(f"it allows frames of {frame_max} bytes only; AMQP's floor is 4096"))
        if 0 < channel_max < _FEWEST_CHANNELS:
            raise LinkDown(_faults.unusable(f"it allows {channel_max} channels; {_FEWEST_CHANNELS} are needed"))
        ours = min(math.ceil(self._options.heartbeat), 65535)
        # The smaller of both; off where we want none; ours where the broker has no wish (as RabbitMQ's own clients do).
        heartbeat = min(ours, theirs or ours)
        frame_max = min(frame_max or _FRAME_MAX, _FRAME_MAX)
        channel_max = min(channel_max or _CHANNEL_MAX, _CHANNEL_MAX)
        self._filter.frame_max = frame_max
        assert self._connection is not None
        self._connection.heartbeat_timeout = heartbeat
        self._peer = Peer(
            product=self._peer.product,
            version=self._peer.version,
            heartbeat=float(heartbeat),
            frame_max=frame_max,
            channel_max=channel_max,
            address=self._peer.address,
            tls=self._peer.tls,
        )
        self._phase = DialPhase.OPENING
        return pamqp.frame.marshal(commands.Connection.Tune(channel_max, frame_max, heartbeat), 0)

    def _on_connection_close(self, _: int, octets: bytes) -> bytes | None:
        """Answer at once and end the link: aiormq may answer a close with a close, or not at all."""
        close = _read(octets, commands.Connection.Close)
        assert self._transport is not None
        self._transport.inject(pamqp.frame.marshal(commands.Connection.CloseOk(), 0))
        raise LinkDown(_faults.closed_by_broker(int(close.reply_code or 0), str(close.reply_text or ""), self._phase))

    def _on_blocked(self, _: int, octets: bytes) -> bytes | None:
        assert self._transport is not None
        self._transport.blocked = True
        self._listener.blocked(printable(_read(octets, commands.Connection.Blocked).reason))
        return None

    def _on_unblocked(self, _: int, octets: bytes) -> bytes | None:
        assert self._transport is not None
        self._transport.blocked = False
        self._listener.unblocked()
        return None

    def _on_flow(self, channel: int, octets: bytes) -> bytes | None:
        active = bool(_read(octets, commands.Channel.Flow).active)
        assert self._transport is not None
        self._transport.inject(pamqp.frame.marshal(commands.Channel.FlowOk(active=active), channel))
        if channel in self._by_channel:
            if active:
                self._listener.unblocked()
            else:
                self._listener.blocked("channel.flow")
        return None

    def _on_channel_close(self, channel: int, octets: bytes) -> bytes | None:
        """Answer at once, so that nothing can be sent on the number afterwards, and let aiormq know."""
        close = _read(octets, commands.Channel.Close)
        code, text = int(close.reply_code or 0), str(close.reply_text or "")
        assert self._transport is not None
        self._transport.inject(pamqp.frame.marshal(commands.Channel.CloseOk(), channel))
        self._returning.pop(channel, None)
        epoch = self._by_channel.pop(channel, None)
        if epoch is None:
            self._refusals[channel] = (code, text)
        else:
            epoch.closed = True
            self._listener.channel_closed(
                epoch.lane, epoch.number, _faults.channel_closed_by_broker(code, text), epoch.written
            )
            if epoch.lane is Lane.MAIN and not self._stopping:
                # aiormq learns of the close in the next turn of the loop; the task starts after that.
                self.open_channel_soon(Lane.MAIN)
        return octets

    def _on_confirm(self, channel: int, tag: int, multiple: bool, negative: bool) -> None:
        epoch = self._by_channel.get(channel)
        if epoch is None:
            return
        if not 0 < tag <= epoch.written:
            raise LinkDown(_faults.illegal_frame(f"a confirm for delivery tag {tag}; {epoch.written} were published"))
        if negative:
            self._listener.nacked(epoch.number, tag, multiple)
        else:
            self._listener.confirmed(epoch.number, tag, multiple)

    def _on_return(self, channel: int, octets: bytes) -> bytes | None:
        method = _read(octets, commands.Basic.Return)
        self._returning[channel] = _Content(method, self._by_channel.get(channel))
        return None

    def _on_content(self, kind: int, channel: int, octets: bytes) -> bool:
        """Take the header and body frames of a return; anything else is aiormq's."""
        content = self._returning.get(channel)
        if content is None:
            return False
        if kind == wire.HEADER:
            header = _read(octets, ContentHeader)
            if content.header is not None:
                raise LinkDown(_faults.illegal_frame("two headers for one returned message"))
            content.header = header
        else:
            if content.header is None:
                raise LinkDown(_faults.illegal_frame("a body without its header"))
            body = octets[7:-1]
            content.size += len(body)
            content.digest.update(body)
        if content.size > content.header.body_size:
            raise LinkDown(_faults.illegal_frame("a body longer than its header says"))
        if content.size == content.header.body_size:
            del self._returning[channel]
            if content.epoch is not None:
                self._listener.returned(content.epoch.number, _returned(content, content.header))
        return True

    # --- frames from aiormq ---------------------------------------------------------------------------------------

    def _on_outgoing(self, method: int, octets: bytes) -> bytes | None:
        """Rewrite or drop a frame of aiormq's: credentials go in here, and each close is answered only once."""
        if method == wire.START_OK:
            start_ok = _read(octets, commands.Connection.StartOk)
            credentials = self._endpoint.credentials
            start_ok.mechanism = "PLAIN"
            start_ok.response = f"\0{credentials.username}\0{credentials.password}"
            return pamqp.frame.marshal(start_ok, 0)
        if method == wire.CHANNEL_CLOSE_OK:
            return None
        return octets

    # --- publishing -----------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        tap = self._transport
        assert tap is not None
        queue, epochs = self.queue, self._epochs
        while True:
            await self.work.wait()
            self.work.clear()
            while queue:
                if tap.backlog > _TAP_BACKLOG:
                    await tap.wait_flushed()
                number, tag, envelope, message_id, body, token = queue.popleft()
                epoch = epochs[number]
                size = len(body) + OVERHEAD
                if epoch.closed:
                    self._tell_sent(size)
                    continue
                tap.expect(Parcel(epoch, tag, size))
                try:
                    await epoch.channel.basic_publish(
                        body,
                        exchange=envelope.exchange,
                        routing_key=envelope.routing_key,
                        properties=self._properties_for(envelope, message_id, token),
                        mandatory=envelope.mandatory,
                        wait=False,  # type: ignore[call-arg]
                    )
                except (aiormq.ChannelInvalidStateError, *_UNREADABLE) as error:
                    tap.forget_last()
                    if not epoch.closed:
                        self.fail(_faults.fault_of(error, DialPhase.UP))
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

    def written(self, number: int) -> int:
        """Return the highest tag that may have reached the network; from any thread."""
        epoch = self._epochs.get(number)
        return 0 if epoch is None else epoch.written

    # --- topology and the rest ------------------------------------------------------------------------------------

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare in the given order; raises `LinkDown`."""
        for declaration in declarations:
            await self._on_own_channel(partial(_declare, declaration), str(declaration))

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue; raises `LinkDown`."""

        async def take(channel: aiormq.abc.AbstractChannel) -> list[bytes]:
            bodies: list[bytes] = []
            while len(bodies) < limit:
                message = await channel.basic_get(queue, no_ack=True)
                if isinstance(message.delivery, commands.Basic.GetEmpty):
                    break
                bodies.append(message.body)
            return bodies

        return await self._on_own_channel(take, str(Queue(queue)))

    async def delete_queue(self, queue: str) -> None:
        """Delete the queue; raises `LinkDown`."""

        async def delete(channel: aiormq.abc.AbstractChannel) -> None:
            await channel.queue_delete(queue)

        await self._on_own_channel(delete, str(Queue(queue)))

    async def _on_own_channel(
        self, use: Callable[[aiormq.abc.AbstractChannel], Coroutine[Any, Any, T]], entity: str
    ) -> T:
        connection = self._connection
        assert connection is not None
        timeout = self._options.connect_timeout
        number = None
        try:
            async with asyncio.timeout(timeout):
                channel = await connection.channel(publisher_confirms=False)
                number = channel.number
                answer = await use(channel)
                await channel.close()
                return answer
        except TimeoutError:
            raise LinkDown(self._fault or _faults.timed_out(DialPhase.PREPARING, timeout)) from None
        except (TypeError, ValueError) as error:
            raise LinkDown(_faults.not_encodable(entity, error)) from None
        except _GONE as error:
            refusal = None if number is None else self._refusals.pop(number, None)
            if refusal is not None:
                raise LinkDown(_faults.declaration_refused(*refusal, entity)) from None
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # Somebody wants that; aiormq cancels without asking when a channel goes away.
            raise LinkDown(self._fault or _faults.fault_of(error, DialPhase.UP)) from None

    # --- liveness and the end -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """End the link after two heartbeat intervals without a byte (AMQP 0-9-1, 4.2.7; R12)."""
        tap = self._transport
        assert tap is not None
        allowed = 2 * self._peer.heartbeat
        while True:
            left = tap.heard_at + allowed - self._loop.time()
            if left > 0:
                await asyncio.sleep(left)
                continue
            heard = tap.heard_at
            await asyncio.sleep(_SILENCE_GRACE)
            if tap.heard_at == heard:
                self.fail(_faults.silent(allowed))
                return

    def _lost(self, error: BaseException) -> None:
        self.fail(_faults.fault_of(error, self._phase))

    def fail(self, fault: Fault) -> None:
        """End the link because of `fault`; the first one counts."""
        if self._fault is None and not self._stopping:
            self._fault = fault
            self._down.set()
            self._tell_down(fault)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` as a task of the engine's; `stop` cancels what is left of it."""
        task = self._loop.create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LinkDown):
            self.fail(_faults.fault_of(error, self._phase))

    async def stop(self, *, graceful: bool) -> None:
        """End everything: with a close handshake within `close_timeout` if wanted and possible, else at once.

        Takes at most `close_timeout` + `abort_timeout`, and leaves no task and no socket. Must not be cancelled.
        """
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._options.abort_timeout)
        tap, connection = self._transport, self._connection
        if tap is None or connection is None:
            return
        ending: set[asyncio.Task[Any]] = set()
        if graceful and self._fault is None:
            ending = {self._loop.create_task(connection.close(), context=self._context)}
            await asyncio.wait(ending, timeout=self._options.close_timeout)
        elif tap.backlog and self._fault is not None and self._fault.reply_code is not None:
            # Our Close-Ok; it is polite and no more.
            ending = {self._loop.create_task(tap.wait_flushed(), context=self._context)}
            await asyncio.wait(ending, timeout=self._options.abort_timeout / 2)
        tap.abort()
        ending |= {
            self._loop.create_task(tap.wait_aborted(), context=self._context),
            self._loop.create_task(connection.close(), context=self._context),
        }
        _, late = await asyncio.wait(ending, timeout=self._options.abort_timeout / 2)
        for task in late:
            task.cancel()
        # aiormq ends itself in tasks that nobody holds; each needs a few turns of the loop.
        for _ in range(10):
            await asyncio.sleep(0)


#: What a publish counts for beyond its body in the backlog: method, header and frames; bytes.
OVERHEAD = 256


def properties_of(envelope: Envelope, message_id: str, token: str | None) -> commands.Basic.Properties:
    """Return the AMQP properties of a message; raises TypeError or ValueError for what AMQP cannot carry."""
    headers = None if envelope.headers is None and token is None else _table(envelope.headers or {})
    if headers is not None and token is not None:
        headers[TOKEN_HEADER] = token
    return commands.Basic.Properties(
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        headers=headers,
        delivery_mode=envelope.delivery_mode,
        priority=envelope.priority,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        expiration=envelope.expiration,
        message_id=message_id,
        timestamp=envelope.timestamp,
        message_type=envelope.type,
        user_id=envelope.user_id,
        app_id=envelope.app_id,
    )


def _table(table: Mapping[str, FieldValue]) -> dict[str, Any]:
    """Return the table in pamqp's types; pamqp would cut long names silently, so they are refused here."""
    for name in table:
        if len(name.encode()) > 128:
            raise ValueError("a header's name has at most 128 bytes")
    return {name: _value(value) for name, value in table.items()}


def _value(value: FieldValue) -> Any:
    match value:
        case bytes():
            return bytearray(value)
        case Mapping():
            return _table(value)
        case list():
            return [_value(item) for item in value]
        case float() if not math.isfinite(value):
            raise ValueError("a header holds a float that is not finite")
        case float() if struct.unpack(">f", struct.pack(">f", value))[0] != value:
            raise ValueError("a header holds a float that aiormq's codec would round to 32 bits; send it as text")
        case _:
            return value


async def _declare(declaration: Declaration, channel: aiormq.abc.AbstractChannel) -> None:
    arguments = _table(declaration.arguments)
    match declaration:
        case Exchange():
            await channel.exchange_declare(
                declaration.name,
                exchange_type=declaration.type,
                passive=declaration.passive,
                durable=declaration.durable,
                auto_delete=declaration.auto_delete,
                internal=declaration.internal,
                arguments=arguments,
            )
        case Queue():
            await channel.queue_declare(
                declaration.name,
                passive=declaration.passive,
                durable=declaration.durable,
                exclusive=declaration.exclusive,
                auto_delete=declaration.auto_delete,
                arguments=arguments,
            )
        case Binding():
            await channel.queue_bind(
                declaration.queue, declaration.exchange, declaration.routing_key, arguments=arguments
            )


def _read(octets: bytes, kind: type[T]) -> T:
    """Return the frame as pamqp reads it; raises `LinkDown` for bytes that are not such a frame."""
    try:
        frame = pamqp.frame.unmarshal(octets)[2]
    except _UNREADABLE as error:
        raise LinkDown(_faults.illegal_frame(f"a frame that cannot be read ({type(error).__name__})")) from None
    if not isinstance(frame, kind):
        raise LinkDown(_faults.illegal_frame(f"a {type(frame).__name__} where {kind.__name__} was due"))
    return frame


def _returned(content: _Content, header: ContentHeader) -> Returned:
    properties = header.properties
    token = (properties.headers or {}).get(TOKEN_HEADER)
    return Returned(
        reply_code=int(content.method.reply_code or 0),
        reply_text=printable(content.method.reply_text or ""),
        exchange=printable(content.method.exchange or ""),
        routing_key=printable(content.method.routing_key or ""),
        message_id=properties.message_id,
        token=token if isinstance(token, str) else None,
        body_size=content.size,
        body_hash=content.digest.digest(),
    )
