"""The engine: one TCP + AMQP life on aiormq, inside an asyncio loop. It knows nothing of Trio.

Division of labour. aiormq does the handshake, the codec, the heartbeats it sends, channels, declarations, and the
marshalling and ordering of publishes. The driver reads these from the bytes and does not leave them to aiormq (`_protocol`,
`_transport`): the tuning, confirms, returns, closes, blocked, and signs of life. Therefore channels are opened with aiormq's own
confirm tracking off and put into confirm mode by a plain confirm.select: aiormq sends publishes, and never judges them.
So the driver reports three things that aiormq gets wrong. Returns are matched by token and not by message_id, so equal
ids may be in flight together. A multiple ack confirms all tags that it covers, even if its highest tag was confirmed
before. A closing channel causes no nack, because nacks come from the broker's frames only.

Invariants:

* One pump gives publishes to aiormq, one at a time and in the order of their tags, so the broker gives each message the
  tag that the driver has given it.
* The first fault wins, `fail` is a plain function, and the owner of the engine calls `stop`, which leaves no task and
  no socket behind. Tasks are cancelled by the engine alone; a caller's cancellation never reaches aiormq.
* aiormq never holds the credentials: its URL names no host and no user, and start-ok gets its response on the way out.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
from anyio.abc import ByteStream

from warrener.drivers import _faults
from warrener.drivers._dial import Dialed, dial
from warrener.drivers._faults import DialPhase
from warrener.drivers.aiormq._protocol import Protocol
from warrener.drivers.aiormq._pump import Publish
from warrener.drivers.aiormq._requests import Requests
from warrener.drivers.base import Lane, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault
from warrener.records import Endpoint

__all__ = ["Engine"]

T = TypeVar("T")

#: How long the reader may take, after the event loop stood still, to read the bytes that have arrived; seconds.
_SILENCE_GRACE = 0.2

#: Marks the context of our own connections, so that aiormq's log records about them can be told from others'.
_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("warrener_aiormq", default=False)


def _not_ours(_: logging.LogRecord) -> bool:
    """Drop what aiormq logs about our connections: the supervisor logs each change of state, once and without secrets."""
    return not _ours.get()


for _name in ("aiormq.base", "aiormq.channel", "aiormq.connection", "aiormq.connection.marshall"):
    logging.getLogger(_name).addFilter(_not_ours)


class Engine:
    """One link's tasks and its end; every method belongs to the asyncio loop unless it says otherwise."""

    def __init__(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener, *, down: Callable[[Fault], None],
        sent: Callable[[int], None], room: asyncio.Event | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._options = options
        self._listener = listener
        self._tell_down = down
        self._tell_sent = sent
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._context.run(_ours.set, True)
        self._fault: Fault | None = None
        self._down = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._protocol: Protocol | None = None
        #: Publishes that wait for the pump. Appended to from any thread; `work` wakes the pump.
        self.queue: deque[Publish] = deque()
        self.work = asyncio.Event()

    @property
    def _phase(self) -> DialPhase:
        return DialPhase.DIALING if self._protocol is None else self._protocol.phase

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
        return opening.result()

    async def _open(self) -> Peer:
        options = self._options
        dialed = await dial(
            self._endpoint,
            require_tls=options.require_tls,
            ssl_context=options.ssl_context,
            first_address=options.first_address,
        )
        while (fault := await self._attempt(dialed)) is not None:
            if dialed.after is None:
                raise LinkDown(fault)
            if self._protocol is not None:
                await self._shut(self._protocol)
                self._protocol = None
            dialed = await dialed.after(fault)
        protocol = self._protocol
        assert protocol is not None
        self.spawn(protocol.pump.run())
        if protocol.peer.heartbeat:
            self.spawn(self._watch(protocol))
        return protocol.peer

    async def _attempt(self, dialed: Dialed[ByteStream]) -> Fault | None:
        """Shake hands on one stream; return why that failed."""
        failed: asyncio.Future[Fault] = self._loop.create_future()

        def fail(fault: Fault) -> None:
            if opened:
                self.fail(fault)
            elif not failed.done():
                failed.set_result(fault)

        opened = False
        seconds = None if dialed.last else dialed.share(self._options.connect_timeout)
        try:
            protocol = self._protocol = Protocol(
                dialed, self._endpoint, self._options, self._listener, self.queue, self.work, spawn=self.spawn,
                fail=fail, sent=self._tell_sent, room=self._room,
            )  # fmt: skip
        except LinkDown:
            await anyio.aclose_forcefully(dialed.stream)
            raise
        connecting = self._start(protocol.connect())
        # Read the exception in any case: asyncio logs an error for each exception that nobody has read.
        connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        left = None if seconds is None else max(0.0, dialed.began + seconds - anyio.current_time())
        either: set[asyncio.Future[Any]] = {connecting, failed}
        await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            fault = failed.result()
        elif not connecting.done():
            fault = _faults.timed_out(protocol.phase, seconds or 0.0)
        elif (error := connecting.exception()) is not None:
            fault = _faults.fault_of(error, protocol.phase)
        else:
            opened = True
            return None
        connecting.cancel()
        return fault

    # --- for the link -----------------------------------------------------------------------------------------------

    def open_channel_soon(self, lane: Lane) -> None:
        """Open a publishing channel for the lane unless there is one or one is on its way."""
        if self._protocol is not None:
            self._protocol.channels.open_soon(lane)

    def written(self, number: int) -> int:
        """Return the highest tag of the epoch that was written; from any thread."""
        return 0 if self._protocol is None else self._protocol.channels.written(number)

    def begun(self, number: int) -> int:
        """Return the highest tag of the epoch that was begun; from any thread."""
        return 0 if self._protocol is None else self._protocol.channels.begun(number)

    @property
    def bytes_out(self) -> int:
        """How many bytes the peer has taken, as far as can be told; from any thread."""
        return 0 if self._protocol is None else self._protocol.transport.bytes_out - self.unacknowledged

    @property
    def unacknowledged(self) -> int:
        """How many bytes are in the kernel; from any thread."""
        return 0 if self._protocol is None else self._protocol.transport.unacknowledged()

    @property
    def requests(self) -> Requests:
        """Declarations and the like."""
        assert self._protocol is not None
        return self._protocol.requests

    # --- liveness and the end -------------------------------------------------------------------------------------

    async def _watch(self, protocol: Protocol) -> None:
        """End the link after two heartbeat intervals without a byte (AMQP 0-9-1, 4.2.7)."""
        transport = protocol.transport
        allowed = 2 * protocol.peer.heartbeat
        while True:
            left = transport.heard_at + allowed - self._loop.time()
            if left > 0:
                await asyncio.sleep(left)
                continue
            heard = transport.heard_at
            await asyncio.sleep(_SILENCE_GRACE)
            if transport.heard_at == heard and not transport.held:
                self.fail(_faults.silent(allowed))
                return

    def fail(self, fault: Fault) -> None:
        """End the link because of `fault`; the first one counts."""
        if self._fault is None and not self._stopping:
            self._fault = fault
            self._down.set()
            self._tell_down(fault)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` as a task of the engine's; `stop` cancels it, and its exception ends the link."""
        task = self._start(work)
        task.add_done_callback(self._fail_with)
        return task

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # Not by the loop's task factory: an eager one would enter the engine's context, in which the caller may be, again.
        return asyncio.Task(work, loop=self._loop, context=self._context)

    def _fail_with(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LinkDown):
            self.fail(_faults.fault_of(error, self._phase))

    async def stop(self, *, graceful: bool) -> None:
        """End everything: with a close handshake within `close_timeout` if wanted and possible, else at once.

        Takes at most `close_timeout` + `abort_timeout`, and leaves no task and no socket. Must not be cancelled.
        """
        protocol = self._protocol
        self._stopping = True
        if protocol is not None:
            protocol.stop()  # before its tasks are cancelled
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._options.abort_timeout)
        if protocol is None:
            return
        closing: set[asyncio.Task[Any]] = set()
        if graceful and self._fault is None:
            closing = {self._task(protocol.connection.close())}
            await asyncio.wait(closing, timeout=self._options.close_timeout)
        await self._shut(protocol, *closing)

    async def _shut(self, protocol: Protocol, *closing: asyncio.Task[Any]) -> None:
        """Close the stream, and let aiormq see that; takes at most `abort_timeout`."""
        transport, connection = protocol.transport, protocol.connection
        protocol.stop()
        ending = set(closing)
        if transport.backlog and protocol.answering:
            # Our close-ok is waiting to be sent; the link ends without it too.
            ending = {self._task(transport.wait_flushed())}
            await asyncio.wait(ending, timeout=self._options.abort_timeout / 2)
        transport.abort()
        ending |= {
            self._task(transport.wait_aborted()),
            self._task(connection.close()),
        }
        _, late = await asyncio.wait(ending, timeout=self._options.abort_timeout / 2)
        for task in late:
            task.cancel()
        # aiormq ends in tasks of its own, to which it keeps no reference; each needs a few turns of the loop.
        for _ in range(10):
            await asyncio.sleep(0)
