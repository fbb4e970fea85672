"""The link on Trio: the engine runs in an asyncio loop in a thread, and everything crosses in batches.

The *host* is the Trio task that owns the link. A call into another event loop costs a system call and a switch of threads.
One call per message would cost more than the message, so calls cross in batches:

* Outward, publishes go into a deque, whose ends are safe to use from two threads. One `call_soon_threadsafe` wakes the
  pump for all messages that were appended until it runs.
* Inward, reports go into another deque. One `run_sync_soon` of the host's token takes all reports that were appended
  until it runs. The token is Trio's own, from `anyio.lowlevel.current_token()`: its `run_sync_soon` neither blocks the
  asyncio thread, as `anyio.from_thread.run_sync` would, nor starts a task per call, as a blocking portal would.

The thread is a plain one, because a pool of workers keeps its threads after the link has ended.

Invariants:

* Order: all reports, and the end, cross through one queue. A host that sees the end has seen all reports before it.
* The host never blocks: it waits in Trio until the thread has nothing left to do.
* A broker that floods us costs bounded memory and bounded time: the host takes `_ARRIVING` reports in one turn, and the
  thread stops reading while `_WAITING` reports have not been taken.
* A caller's cancellation crosses as a request. The context manager ends only when the engine has stopped.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.lowlevel import current_token

from warrener.drivers._faults import DialPhase, fault_of
from warrener.drivers._threads import start_thread
from warrener.drivers.aiormq._engine import Engine
from warrener.drivers.aiormq._link import AiormqLink, TaskEndpoint
from warrener.drivers.base import Lane, Link, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, Returned

__all__ = ["open_bridged"]

#: Whether uvloop is installed. The import system is asked now, because it may have no free file descriptor later.
_UVLOOP = importlib.util.find_spec("uvloop") is not None

#: Seconds that the host waits for the end of the thread, beyond `close_timeout` and `abort_timeout`. After that the
#: thread runs on alone. Only a name resolution that the platform cannot cancel takes that long.
_LETTING_GO = 1.0

_NO_THREAD = Fault(
    FaultKind.UNREACHABLE,
    "the operating system refused a thread for the link; see its limits for threads and memory",
)

#: How many reports the host takes in one turn of its event loop, and how many may wait for it.
_ARRIVING = 200
_WAITING = 4000


class _Inward:
    """A queue of calls from the asyncio thread to the host, one crossing per batch; also the engine's `LinkListener`."""

    def __init__(self, run_sync_soon: Callable[[Callable[[], None]], None]) -> None:
        self._run_sync_soon = run_sync_soon
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._crossing = False
        self.task_endpoint: TaskEndpoint | None = None
        #: Set while the thread may read on; belongs to the thread's event loop.
        self.room = asyncio.Event()
        self.room.set()
        self._full = False
        #: Has the thread's event loop call a function; from the host.
        self.soon: Callable[[Callable[[], None]], None] = lambda _: None

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Have the host call the function, after all that was posted before."""
        self._calls.append((function, args))
        if len(self._calls) >= _WAITING:
            self.room.clear()
            self._full = True
        # This side appends first and then reads the flag; the host clears the flag first and then reads the calls. So no
        # call is left behind.
        if not self._crossing:
            self._crossing = True
            # RunFinishedError (a RuntimeError): the host's Trio run ended before this thread did.
            with suppress(RuntimeError):
                self._run_sync_soon(self._arrive)

    def _arrive(self) -> None:
        self._crossing = False
        calls = self._calls
        for _ in range(_ARRIVING):
            if not calls:
                break
            function, args = calls.popleft()
            function(*args)
        if calls and not self._crossing:
            self._crossing = True
            self._run_sync_soon(self._arrive)
        if self._full and len(calls) <= _WAITING // 2:
            self._full = False
            self.soon(self.room.set)

    @property
    def _target(self) -> TaskEndpoint:
        assert self.task_endpoint is not None
        return self.task_endpoint

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """See `warrener.drivers.base.LinkListener`, for the other reports too."""
        self.post(self._target.channel_opened, lane, channel)

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """Report to the host."""
        self.post(self._target.channel_closed, lane, channel, fault, written)

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """Report to the host."""
        self.post(self._target.confirmed, channel, tag, multiple)

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """Report to the host."""
        self.post(self._target.nacked, channel, tag, multiple)

    def returned(self, channel: int, returned: Returned) -> None:
        """Report to the host."""
        self.post(self._target.returned, channel, returned)

    def blocked(self, reason: str) -> None:
        """Report to the host."""
        self.post(self._target.blocked, reason)

    def unblocked(self) -> None:
        """Report to the host."""
        self.post(self._target.unblocked)

    def writable(self) -> None:
        """Report to the host."""
        self.post(self._target.writable)

    def pull(self) -> None:
        """Report to the host."""
        self.post(self._target.pull)


class _Bridge:
    """The thread, its event loop and the engine in it. The host calls the methods, unless they say otherwise."""

    def __init__(self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> None:
        self._endpoint = endpoint
        self._options = options
        self.inward = _Inward(current_token().native_token.run_sync_soon)  # type: ignore[attr-defined]
        self.link = AiormqLink(wake=self._wake, soon=self._soon, call=self._call, fail=self.fail, pull=listener.pull)
        self.inward.task_endpoint = TaskEndpoint(self.link, listener)
        self.inward.soon = self._soon
        self.body = anyio.CancelScope()
        self.fault: Fault | None = None
        #: The thread runs.
        self.runs = anyio.Event()
        #: The engine answered: it is open, or it has failed.
        self.answered = anyio.Event()
        #: The thread has nothing left to do.
        self.ended = anyio.Event()
        self._waking = False
        # Set by the thread before it answers.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | None = None
        self._leave: asyncio.Event | None = None
        self._graceful = False
        self._left = False

    def start(self) -> None:
        """Start the thread; raises RuntimeError. It may never run."""
        start_thread(self._run)

    def leave(self, *, graceful: bool) -> None:
        """Have the engine stop; `ended` follows."""
        self._graceful = graceful
        # This side sets the flag first and then reads the loop; the thread sets the loop first and then reads the flag.
        # So this side finds the loop, or the thread finds the flag.
        self._left = True
        self._soon(self._leave_if_asked)

    def fail(self, fault: Fault) -> None:
        """End the link because of `fault`, from the host's side."""
        self._note(fault)
        if self._engine is not None:
            self._soon(self._engine.fail, fault)

    def _note(self, fault: Fault) -> None:
        self.fault = self.fault or fault
        self.body.cancel()

    # --- outward ----------------------------------------------------------------------------------------------------

    def _soon(self, function: Callable[..., Any], *args: Any) -> None:
        loop = self._loop
        if loop is not None:
            # RuntimeError: the event loop has ended, and so has the engine.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            self._soon(self._woken)

    def _woken(self) -> None:
        self._waking = False
        if self._engine is not None:
            self._engine.work.set()

    async def _call(self, method: str, *args: Any) -> Any:
        done = anyio.Event()
        tasks: list[asyncio.Task[Any]] = []

        def start() -> None:
            assert self._engine is not None
            task = self._engine.spawn(getattr(self._engine.requests, method)(*args))
            tasks.append(task)
            task.add_done_callback(lambda _: self.inward.post(done.set))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self._soon(start)
        try:
            await done.wait()
        except anyio.get_cancelled_exc_class():
            self._soon(cancel)
            raise
        if tasks[0].cancelled():
            await anyio.sleep_forever()  # The link is ending, and cancels the body.
        return tasks[0].result()

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.inward.post(self.runs.set)
            anyio.run(
                self._main,
                backend="asyncio",
                backend_options={"use_uvloop": _UVLOOP},
            )
        except Exception as error:  # noqa: BLE001 - the thread has no other way to tell its host
            self.inward.post(self._note, fault_of(error, DialPhase.DIALING))
        finally:
            self.inward.post(self.answered.set)
            self.inward.post(self.ended.set)

    async def _main(self) -> None:
        self._leave = asyncio.Event()
        engine = Engine(
            self._endpoint,
            self._options,
            self.inward,
            down=lambda fault: self.inward.post(self._note, fault),
            sent=self._sent,
            room=self.inward.room,
        )
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._leave_if_asked()
        self.link.attach(engine)
        opening = engine.spawn(engine.open())
        leaving = engine.spawn(self._leave.wait())
        await asyncio.wait({opening, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and opening.exception() is None:
            self.inward.post(self._opened, opening.result())
            await asyncio.wait({leaving})
        await engine.stop(graceful=self._graceful)

    def _opened(self, peer: Peer) -> None:
        self.link.peer = peer
        self.answered.set()

    def _leave_if_asked(self) -> None:
        if self._leave is not None and self._left:
            self._leave.set()

    def _sent(self, size: int) -> None:
        if self.link.sent(size):
            self.inward.writable()


@asynccontextmanager
async def open_bridged(endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> AsyncGenerator[Link]:
    """Open a link in an asyncio loop in a thread; see `warrener.drivers.base`."""
    bridge = _Bridge(endpoint, options, listener)
    left = False
    try:
        bridge.start()
    except RuntimeError:
        raise LinkDown(_NO_THREAD) from None
    try:
        with anyio.move_on_after(options.connect_timeout):
            await bridge.runs.wait()
        if not bridge.runs.is_set():
            raise LinkDown(_NO_THREAD)
        await bridge.answered.wait()
        if bridge.fault is None:
            with bridge.body:
                yield bridge.link
                left = True
    finally:
        with anyio.CancelScope(shield=True):
            bridge.leave(graceful=left and bridge.fault is None)
            with anyio.move_on_after(options.close_timeout + options.abort_timeout + _LETTING_GO):
                await bridge.ended.wait()
                bridge.link.ended = True
    if bridge.fault is not None:
        raise LinkDown(bridge.fault) from None
