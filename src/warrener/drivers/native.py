"""The native driver: a `warrener.wire` session over an anyio byte stream.

A link is four tasks in one task group, and a rule for each of them:

* **the body** of ``async with driver.open(…)``, in a cancel scope of its own: ended by `_end`;
* **the reader** receives at most 64 KiB, lets the session say what they mean, and passes it on; between slices of 16 KiB
  it lets others run, so that no peer can keep the loop to itself;
* **the writer**, the only one that sends, takes whatever is pending and sends all of it at once. What is published
  meanwhile waits for the next turn and so is coalesced. It is never cancelled by a publisher, because no publisher waits
  in it; `written` was raised when the session handed the bytes out, before the send began;
* **the watch** sends a heartbeat whenever nothing was sent for half an interval and ends the link when nothing was heard
  for two. It sleeps until the earlier of the two is due: an idle link wakes for nothing else.

**Ending.** Whoever finds the link dead records the `Fault` and cancels the body (`_end`); nobody raises into the group,
so one bare `LinkDown` leaves the block. What the body raises is carried past the group as well. After the body, in this
order: our close handshake if the body ended by itself, or the answer to the broker's close; then the tasks are cancelled
and the stream is closed, shielded, whatever happened.

**A write that fails is not the end yet.** The broker may have said why, and confirmed more, before it closed; so the
reader has a second to come to the end of what has arrived. Likewise a late wake-up (a machine that slept, a loop that
stood still) lets the reader have what is readable before silence is declared (R23).

Time is `anyio.current_time`, so everything runs under a mock clock, with `dial` replaced by streams in memory.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Protocol, TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from warrener.drivers import _faults
from warrener.drivers._dial import Dialed
from warrener.drivers._dial import dial as dial_endpoint
from warrener.drivers.base import Lane, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, Envelope
from warrener.topology import Declaration
from warrener.wire import MECHANISMS, Phase, ProtocolErrorKind, Session, Unsendable, events
from warrener.wire.channel import Publisher

__all__ = ["Dial", "NativeDriver", "NativeLink"]

#: Unsent bytes at which the owner should hold back, and at which it may go on.
HIGH_WATER: Final = 1024 * 1024
LOW_WATER: Final = HIGH_WATER // 2

_RECEIVE: Final = 64 * 1024
#: Bytes that are parsed between two checkpoints: some 800 confirms.
_SLICE: Final = 16 * 1024
#: How long the reader may go on after a write failed, in seconds.
_LAST_WORDS: Final = 1.0
#: Checkpoints that a reader with readable bytes needs to take them in, TLS included.
_GRACE: Final = 5

_MAIN: Final = Lane.MAIN
_SUSPECT: Final = Lane.SUSPECT

#: What a byte stream raises when it is over; `ssl.SSLError` is an `OSError`. Busy is what TLS is when it has to answer
#: its peer (a key update) just while the writer sends: the answer is lost, and with it the connection.
_STREAM_ENDS: Final = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.BusyResourceError,
    anyio.ClosedResourceError,
    OSError,
)

_Answer: TypeAlias = events.Replied | events.GetResult | events.Refused


class Dial(Protocol):
    """How a driver comes by a connected stream; `warrener.drivers._dial.dial` unless a simulation says otherwise."""

    async def __call__(self, endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None) -> Dialed:
        """Connect; raises one bare `LinkDown`."""
        ...


class NativeLink:
    """One TCP + AMQP life; see `warrener.drivers.base.Link`."""

    def __init__(self, dialed: Dialed, session: Session, options: LinkOptions, listener: LinkListener) -> None:
        self.peer = Peer(address=dialed.address, tls=dialed.tls)
        self.fault: Fault | None = None
        self._stream = dialed.stream
        self._session = session
        self._options = options
        self._listener = listener
        #: Around the body of the block.
        self.scope = anyio.CancelScope()

        #: The newest channel of each lane, and which lane a channel number belongs to.
        self._main: Publisher | None = None
        self._suspect: Publisher | None = None
        self._lanes: dict[int, Lane] = {}
        #: Set when the channel is open, or closed again; kept while it is being opened.
        self._opening: dict[int, anyio.Event] = {}
        self._tasks: TaskGroup | None = None

        now = anyio.current_time()
        self._heard_at = now
        self._sent_at = now
        #: Whether about a mebibyte or more waits for the socket.
        self._full = False
        #: Around the writer; its deadline is that of the present send. A broker that has blocked us does not read (F7):
        #: no send is overdue meanwhile (R9).
        self._patience = anyio.CancelScope()
        self._sending = False
        self._blocked = False
        #: What the writer waits for while there is nothing to send.
        self._rest: anyio.Event | None = None
        #: Set when the writer comes to rest, where somebody waits for that.
        self._resting: anyio.Event | None = None
        self._reader_ended = anyio.Event()
        self._tuned = anyio.Event()
        self.ready = anyio.Event()
        #: Our close handshake has begun; it is complete, or not worth waiting for.
        self._leaving = False
        self._left = anyio.Event()
        self._answering = False

        self._control = anyio.Lock()
        self._answer: _Answer | None = None
        self._answered: anyio.Event | None = None

    # --- what the owner calls -----------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether the owner should hold back: the socket is behind, or the broker has just stopped us.

        A stop counts from the byte that says so. Its report comes a little later, behind confirms of the same read, and
        nothing may be published behind the flow-ok that has answered it (AMQP 0-9-1, channel.flow-ok).
        """
        return self._full or self._session.blocked

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Hand one message to the writer; return its tag."""
        publisher = self._main if lane is _MAIN else self._suspect
        if publisher is None:
            raise RuntimeError(f"the link has no open channel for the {lane.value} lane")
        tag = publisher.publish(envelope, message_id, body, token)
        if publisher.outgoing.backlog >= HIGH_WATER:
            self._full = True
        if self._rest is not None:
            self._nudge()
        return tag

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why the message cannot be sent on this link, or None."""
        assert self._main is not None
        return self._main.validate(envelope, message_id, body, token)

    def written(self, channel: int) -> int:
        """Return the highest tag whose last byte may have reached the network."""
        return self._session.publisher(channel).written

    def open_suspect_channel(self) -> None:
        """Open a channel for suspects unless there is one, or one is on its way."""
        if self.fault is None and _SUSPECT not in self._lanes.values():
            self._open_channel(_SUSPECT)

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare one after the other on a channel of its own, which is closed again."""
        async with self._control:
            try:
                for declaration in declarations:
                    try:
                        answer = await self._ask(partial(self._session.declare, declaration), str(declaration))
                    except Unsendable as error:
                        raise LinkDown(_faults.not_encodable(str(declaration), error)) from None
                    if isinstance(answer, events.Refused):
                        raise LinkDown(
                            _faults.declaration_refused(answer.reply_code, answer.reply_text, str(declaration))
                        )
            finally:
                self._release_control()

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue."""
        bodies: list[bytes] = []
        async with self._control:
            try:
                while len(bodies) < limit:
                    answer = await self._ask(partial(self._session.take_one, queue), f"queue {queue!r}")
                    if isinstance(answer, events.Refused):
                        raise LinkDown(_faults.channel_closed_by_broker(answer.reply_code, answer.reply_text))
                    if not isinstance(answer, events.GetResult) or answer.size is None:
                        break
                    if answer.body is None:
                        text = f"a message of {answer.size:,} bytes is larger than max_inbound_body"
                        raise LinkDown(_faults.unusable(text))
                    bodies.append(answer.body)
            finally:
                self._release_control()
        return bodies

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue."""
        async with self._control:
            try:
                answer = await self._ask(partial(self._session.delete_queue, queue), f"queue {queue!r}")
                if isinstance(answer, events.Refused):
                    raise LinkDown(_faults.channel_closed_by_broker(answer.reply_code, answer.reply_text))
            finally:
                self._release_control()

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake."""
        if self.fault is None:
            self._silence()
            self._end(fault)

    # --- requests -----------------------------------------------------------------------------------------------

    async def _ask(self, order: Callable[[], None], about: str) -> _Answer:
        """Make a request on the control channel and wait for the answer, `connect_timeout` long."""
        if self.fault is not None:
            raise LinkDown(self.fault)
        if self._session.phase is not Phase.OPEN:
            raise LinkDown(Fault(FaultKind.CLOSED, "the link is closing"))
        self._answer = None
        self._answered = anyio.Event()
        order()
        self._nudge()
        timeout = self._options.connect_timeout
        with anyio.move_on_after(timeout):
            await self._answered.wait()
        answer: _Answer | None = self._answer
        if answer is None:
            self.abort(Fault(FaultKind.STALLED, f"the broker did not answer within {timeout:g} s about {about}"))
            assert self.fault is not None
            raise LinkDown(self.fault)
        return answer

    def _release_control(self) -> None:
        self._session.release_control()
        self._nudge()

    # --- ending -------------------------------------------------------------------------------------------------

    def _end(self, fault: Fault) -> None:
        """Record why the link is over, and cancel the body. The first fault stands."""
        if self.fault is None:
            self.fault = fault
            self.scope.cancel()
        self._left.set()
        if self._answered is not None:
            self._answered.set()

    def _fail(self, fault: Fault) -> None:
        """End the link because of what was found out here; while leaving that is the end, not a fault."""
        self._silence()
        if self._leaving:
            self._left.set()
        else:
            self._end(fault)

    def _silence(self) -> None:
        """Send nothing any more, nor the rest of what is being sent (R18)."""
        self._session.fail()
        self._patience.cancel()

    def time_out(self, seconds: float) -> None:
        """The handshake's deadline has passed."""
        self._fail(_faults.timed_out(self._stage_of(self._session.phase), seconds))

    async def close(self) -> None:
        """Do our close handshake, at most `close_timeout` long."""
        self._leaving = True
        self._session.close()
        self._nudge()
        with anyio.move_on_after(self._options.close_timeout):
            await self._left.wait()
            await self._flush()

    async def answer_close(self) -> None:
        """Let the answer to the broker's close go out, at most `abort_timeout` long."""
        if self._answering:
            with anyio.CancelScope(deadline=anyio.current_time() + self._options.abort_timeout, shield=True):
                await self._flush()

    async def shut(self) -> None:
        """Close the stream, whatever state it is in."""
        with anyio.CancelScope(deadline=anyio.current_time() + self._options.abort_timeout, shield=True):
            try:
                await self._stream.aclose()
            except _STREAM_ENDS:
                pass

    async def _flush(self) -> None:
        while not self._session.idle or self._rest is None:
            self._resting = anyio.Event()
            self._nudge()
            await self._resting.wait()

    # --- tasks --------------------------------------------------------------------------------------------------

    def start(self, tasks: TaskGroup) -> None:
        """Start reader, writer and watch."""
        self._tasks = tasks
        tasks.start_soon(self._write)
        tasks.start_soon(self._read)
        tasks.start_soon(self._watch)

    async def _read(self) -> None:
        session, receive = self._session, self._stream.receive
        deadline = 0.0
        try:
            while True:
                unfinished = session.residue > 0
                if unfinished:
                    data = b""
                    with anyio.CancelScope(deadline=deadline):
                        data = await receive(_RECEIVE)
                    if not data:
                        self._fail(_faults.stalled_frame(self._options.frame_timeout))
                        return
                else:
                    data = await receive(_RECEIVE)
                self._heard_at = anyio.current_time()
                completions = session.completions
                if len(data) <= _SLICE:
                    for fact in session.receive(data):
                        self._on(fact)
                else:
                    await self._take_in_slices(data)
                # Only a completed frame moves the deadline: one that drips in has to be whole in time.
                if not unfinished or session.completions != completions:
                    deadline = self._heard_at + self._options.frame_timeout
                if self._rest is not None and not session.idle:
                    self._nudge()
                if self._leaving and self._left.is_set():
                    # Nothing more can come. To be cancelled in a receive while the end of the stream arrives is what
                    # anyio's Unix sockets on asyncio do not bear (an InvalidStateError in the event loop).
                    return
        except _STREAM_ENDS as error:
            self._fail(_faults.fault_of(error, self._stage_of(self._session.phase)))
        finally:
            self._reader_ended.set()

    async def _take_in_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(data), _SLICE):
            for fact in self._session.receive(view[at : at + _SLICE]):
                self._on(fact)
            await anyio.lowlevel.checkpoint()

    async def _write(self) -> None:
        with self._patience as patience:
            await self._send_on()
        if patience.cancelled_caught:
            self._fail(_faults.stalled_write(self._options.write_stall_timeout))

    async def _send_on(self) -> None:
        session, send, patience = self._session, self._stream.send, self._patience
        while True:
            data = session.data_to_send()
            if not data:
                self._rest = anyio.Event()
                if self._resting is not None:
                    self._resting.set()
                await self._rest.wait()
                continue
            if self._full and session.backlog <= LOW_WATER:
                self._full = False
                self._listener.writable()
            self._sent_at = anyio.current_time()
            self._sending = True
            patience.deadline = self._stalled_at()
            try:
                await send(data)
            except _STREAM_ENDS as error:
                patience.deadline = math.inf
                with anyio.move_on_after(_LAST_WORDS):
                    await self._reader_ended.wait()
                self._fail(_faults.fault_of(error, self._stage_of(self._session.phase)))
                return
            self._sending = False
            patience.deadline = math.inf

    def _stalled_at(self) -> float:
        """When a send that begins now, or is free to go on from now, has taken too long."""
        if self._blocked or not self._sending:
            return math.inf
        return anyio.current_time() + self._options.write_stall_timeout

    def _block(self, *, blocked: bool) -> None:
        self._blocked = blocked
        self._patience.deadline = self._stalled_at()

    def _nudge(self) -> None:
        """Wake the writer if it rests."""
        if self._rest is not None:
            self._rest.set()
            self._rest = None

    async def _watch(self) -> None:
        await self._tuned.wait()
        interval = self.peer.heartbeat
        if not interval:
            return
        while True:
            await anyio.sleep_until(min(self._sent_at + interval / 2, self._heard_at + 2 * interval))
            if anyio.current_time() >= self._heard_at + 2 * interval:
                for _ in range(_GRACE):
                    await anyio.lowlevel.checkpoint()
                if anyio.current_time() >= self._heard_at + 2 * interval:
                    self._fail(_faults.silent(2 * interval))
                    return
            now = anyio.current_time()
            if now >= self._sent_at + interval / 2:
                # A writer that does not rest is sending already, or would not get a heartbeat out either.
                if self._rest is not None:
                    self._session.beat()
                    self._nudge()
                self._sent_at = now

    async def _limit_opening(self, channel: int) -> None:
        """End the link when a channel takes longer to open than a whole handshake may."""
        timeout = self._options.connect_timeout
        with anyio.move_on_after(timeout) as patience:
            await self._opening[channel].wait()
        if patience.cancelled_caught:
            self._fail(Fault(FaultKind.STALLED, f"the broker did not open a channel within {timeout:g} s"))

    def _stage_of(self, phase: Phase) -> _faults.Phase:
        return _faults.Phase.UP if self.ready.is_set() else _STAGES.get(phase, _faults.Phase.PREPARING)

    # --- facts --------------------------------------------------------------------------------------------------

    def _open_channel(self, lane: Lane) -> None:
        if self._session.phase is not Phase.OPEN:
            return  # the connection was closed in the same read as the channel; that fact comes next
        try:
            channel = self._session.open_publisher()
        except Unsendable as error:
            self._fail(_faults.unusable(str(error)))
            return
        self._lanes[channel] = lane
        self._opening[channel] = anyio.Event()
        if self.ready.is_set():
            assert self._tasks is not None
            self._tasks.start_soon(self._limit_opening, channel)
        self._nudge()

    def _on(self, fact: events.Event) -> None:
        match fact:
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
                self._open_channel(_MAIN)
            case events.ChannelOpened(channel):
                self._on_channel_opened(channel)
            case events.ChannelClosed():
                self._on_channel_closed(fact)
            case events.Replied() | events.GetResult() | events.Refused():
                self._answer = fact
                if self._answered is not None:
                    self._answered.set()
            case events.Blocked(reason):
                self._block(blocked=True)
                self._listener.blocked(reason)
            case events.Unblocked():
                self._block(blocked=False)
                self._listener.unblocked()
            case events.SecretUpdated():
                pass
            case events.CloseReceived(code, text, phase):
                self._answering = True
                self._end(_faults.closed_by_broker(code, text, self._stage_of(phase)))
            case events.Closed():
                self._left.set()
            case events.ProtocolError():
                self._fail(_fault_of_breach(fact))

    def _on_channel_opened(self, channel: int) -> None:
        lane = self._lanes[channel]
        publisher = self._session.publisher(channel)
        if lane is _MAIN:
            self._main = publisher
        else:
            self._suspect = publisher
        self._opening.pop(channel).set()
        self._listener.channel_opened(lane, channel)
        if not self.ready.is_set():
            self.ready.set()

    def _on_channel_closed(self, closed: events.ChannelClosed) -> None:
        fault = _faults.channel_closed_by_broker(closed.reply_code, closed.reply_text)
        if not self.ready.is_set():
            self._fail(fault)
            return
        lane = self._lanes.pop(closed.channel)
        never_opened = self._opening.pop(closed.channel, None)
        if never_opened is not None:
            # A broker that refuses to open a channel would refuse the next one too.
            never_opened.set()
            self._fail(fault)
            return
        self._listener.channel_closed(lane, closed.channel, fault, closed.written)
        if lane is _MAIN and self.fault is None:
            self._open_channel(_MAIN)


#: How far a link has come before its first channel is open, by the phase of its session.
_STAGES: Final = {
    Phase.STARTING: _faults.Phase.GREETING,
    Phase.AUTHENTICATING: _faults.Phase.AUTHENTICATING,
    Phase.OPENING: _faults.Phase.OPENING,
}


def _fault_of_breach(broken: events.ProtocolError) -> Fault:
    match broken.kind_of_error:
        case ProtocolErrorKind.NOT_AMQP:
            return _faults.not_amqp(broken.octets)
        case ProtocolErrorKind.NO_MECHANISM:
            return _faults.no_common_mechanism(broken.text)
        case ProtocolErrorKind.UNUSABLE:
            return _faults.unusable(broken.text)
        case ProtocolErrorKind.ILLEGAL:
            return _faults.illegal_frame(broken.text)


def _mechanisms(endpoint: Endpoint) -> tuple[str, ...]:
    """EXTERNAL needs a client certificate; it comes last, unless there is no user name to log in with."""
    if endpoint.certfile is None:
        return MECHANISMS
    return (*MECHANISMS, "EXTERNAL") if endpoint.credentials.username else ("EXTERNAL",)


def _session(endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> Session:
    try:
        return Session(
            endpoint.credentials,
            listener,
            vhost=endpoint.vhost,
            heartbeat=options.heartbeat,
            prefetch=options.prefetch,
            max_inbound_body=options.max_inbound_body,
            mechanisms=_mechanisms(endpoint),
            client_properties={
                "product": "warrener",
                "version": _version(),
                "platform": f"Python {platform.python_version()}",
                "connection_name": options.connection_name,
            },
        )
    except ValueError as error:
        raise LinkDown(Fault(FaultKind.VHOST, f"the endpoint cannot be put into AMQP: {error}")) from None


def _version() -> str:
    try:
        return importlib.metadata.version("warrener")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class NativeDriver:
    """Makes links over byte streams that `dial` connects; holds no state of theirs."""

    name = "native"

    def __init__(self, dial: Dial | None = None) -> None:
        self._dial: Dial = dial or dial_endpoint

    @asynccontextmanager
    async def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AsyncGenerator[NativeLink]:
        """Connect, shake hands, open the main channel; see `warrener.drivers.base` for what holds."""
        deadline = anyio.current_time() + options.connect_timeout
        session = _session(endpoint, options, listener)
        dialed = await self._connect(endpoint, options, deadline)
        link = NativeLink(dialed, session, options, listener)
        failure: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                link.start(tasks)
                try:
                    with link.scope:
                        await _handshake(link, options, deadline)
                        yield link
                    if link.fault is None:
                        await link.close()
                except BaseException as error:  # noqa: BLE001 - raised again below, bare
                    failure = error
                await link.answer_close()
                tasks.cancel_scope.cancel()
        finally:
            session.fail()
            await link.shut()
        if failure is not None:
            raise failure
        if link.fault is not None:
            raise LinkDown(link.fault)

    async def _connect(self, endpoint: Endpoint, options: LinkOptions, deadline: float) -> Dialed:
        with anyio.CancelScope(deadline=deadline):
            try:
                return await self._dial(endpoint, require_tls=options.require_tls, ssl_context=options.ssl_context)
            except _STREAM_ENDS as error:
                raise LinkDown(
                    _faults.fault_of(error, _faults.Phase.DIALING, seconds=options.connect_timeout)
                ) from None
        raise LinkDown(_faults.timed_out(_faults.Phase.DIALING, options.connect_timeout))


async def _handshake(link: NativeLink, options: LinkOptions, deadline: float) -> None:
    with anyio.CancelScope(deadline=deadline) as patience:
        await link.ready.wait()
    if patience.cancelled_caught:
        link.time_out(options.connect_timeout)
        await anyio.lowlevel.checkpoint()  # where the cancellation of the body takes effect
