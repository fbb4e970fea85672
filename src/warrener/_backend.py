"""Where a publisher waits for its outcome, and the clock it waits by.

One of two library modules that know Trio; the other is the transport of the native driver. A publisher that waits for its
confirm is parked and rescheduled directly (`trio.lowlevel`): one publish costs one park and one wake, without an event
object or a cancel scope. This depends on a detail of Trio that `_Place` describes; where Trio lacks the detail,
`_PublicTrioBackend` is used. On asyncio a task waits for a future of the running loop. All give the same guarantees:

* a parked task goes on exactly once: by `wake`, or by cancellation, never by both;
* when cancellation comes first, the task raises it, whether or not a `wake` still follows;
* when `wake` comes first, the task returns normally, even if a cancel scope is cancelled before it runs.

anyio's functions look up the running backend at each call, which costs as much as the rest of a publish. So everything a
publisher needs of the backend is looked up once, when `run()` begins.
"""

from __future__ import annotations

import asyncio
import math
import sys
import types
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast
from weakref import ref

import anyio
import anyio.lowlevel
import outcome
import trio
from sniffio import current_async_library

from warrener._ticket import Ticket

__all__ = ["Backend", "Parked", "backend"]


class Parked(Protocol):
    """An object that a task waits for; it keeps the task's ticket."""

    #: The ticket to `Backend.wake` the task with; None while no task waits.
    waiter: Any


What = TypeVar("What", bound=Parked)


class Backend(Protocol):
    """The backend's way to park; chosen once per `run()`."""

    def clock(self) -> float:
        """The monotonic clock of the running loop, in seconds."""
        ...

    def cancelled(self) -> bool:
        """Whether the task that runs may be cancelled, so that `checkpoint_if_cancelled` has to say so."""
        ...

    async def checkpoint_if_cancelled(self) -> None:
        """Raise the backend's cancellation if it is due."""
        ...

    def park(self, what: What, on_cancel: Callable[[What], None], /) -> Awaitable[None]:
        """Leave a ticket in `what.waiter`, then wait until the task is woken.

        When the task is cancelled, `on_cancel(what)` is called before Cancelled is raised: it forgets the ticket.
        """
        ...

    def wake(self, ticket: Any, /) -> None:
        """Let the task that holds the ticket go on; once per ticket."""
        ...

    # --- publishers: the same at the price of one message among many

    #: Called with the ticket of a publisher that is cancelled.
    leave: Callable[[Ticket], None]

    def ticket(self) -> Ticket:
        """Return a ticket for one message. It is used again once its publisher was woken."""
        ...

    def wait(self, ticket: Any, /) -> Awaitable[None]:
        """Park a publisher with the ticket that `ticket` returned; `leave` is called when Cancelled is about to leave."""
        ...

    def land(self, tickets: Sequence[Ticket], code: int, /) -> None:
        """Give the messages of these tickets consecutive codes from `code` on, and let the publishers go on that wait."""
        ...

    #: Whether a parked publisher can be cancelled some time before `leave` is called for it.
    leaves_late: bool

    def leaving(self, tickets: Sequence[Ticket], /) -> Sequence[Ticket]:
        """Return the tickets whose publishers are cancelled, and for which `leave` was not called yet."""
        ...


class _Woken:
    """The outcome None for each rescheduled task: it may be unwrapped many times, an `outcome.Value` only once."""

    __slots__ = ()

    def unwrap(self) -> None:
        return None


_WOKEN = cast("outcome.Outcome[None]", _Woken())


class _Place:
    """Where one task of Trio is parked; used again for the next task.

    A task parks by yielding a message to Trio's run loop: a record that holds an abort function, and nothing else. Here the
    message is made once, and yielded each time. This costs 1.3 us for one park and wake, a new message 3.0 us.
    """

    __slots__ = ("message", "on_cancel", "what")

    def __init__(self) -> None:
        self.what: Any = None
        self.on_cancel: Callable[[Any], None] = _ignore
        self.message = _message(self.abort)

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        # Trio never calls this once the task was rescheduled, so "woken first" needs no code here.
        self.on_cancel(self.what)
        return trio.lowlevel.Abort.SUCCEEDED


class _Seat(Ticket):
    """The place of one publisher, which is its ticket too."""

    __slots__ = ("_backend", "message")

    def __init__(self, backend: _TrioBackend) -> None:
        super().__init__()
        self._backend = backend
        self.message = _message(self.abort)

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._backend.leave(self)
        return trio.lowlevel.Abort.SUCCEEDED


def _message(abort: Callable[[Any], trio.lowlevel.Abort]) -> Any:
    """Return the message of a task that parks: `wait_task_rescheduled` yields it to Trio's run loop, and here to us."""
    parking: Any = trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105 - it is not awaited, see above
    message = parking.send(None)
    parking.close()
    return message


def _ignore(_what: object) -> None: ...


#: At most this number of places is kept for the next tasks: 200 bytes each.
_PLACES_KEPT: Final = 10_000


class _Trio:
    leaves_late = False
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)
    wake = staticmethod(partial(trio.lowlevel.reschedule, next_send=_WOKEN))

    def __init__(self) -> None:
        self.leave: Callable[[Ticket], None] = _ignore
        self.clock = trio.lowlevel.current_clock().current_time
        #: Without the detour of the public function, which finds the same method: 0.15 us.
        runner = getattr(trio.lowlevel.current_task(), "_runner", None)
        self._reschedule = getattr(runner, "reschedule", trio.lowlevel.reschedule)

    def leaving(self, _tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        return ()

    @trio.lowlevel.enable_ki_protection
    def land(self, tickets: Sequence[Ticket], code: int) -> None:
        reschedule = self._reschedule
        for ticket in tickets:
            ticket.code = code
            code += 1
            task = ticket.waiter
            if task is not None:
                ticket.waiter = None
                reschedule(task, _WOKEN)


class _TrioBackend(_Trio):
    """Parks with a message that is used again: see `_Place`."""

    def __init__(self) -> None:
        super().__init__()
        self._free: list[_Place] = []
        self._seats: list[_Seat] = []

    def cancelled(self) -> bool:
        task: Any = trio.lowlevel.current_task()
        return bool(task._cancel_status.effectively_cancelled)  # noqa: SLF001 - see `backend`

    def ticket(self) -> Ticket:
        seats = self._seats
        if not seats:
            return _Seat(self)
        seat = seats.pop()
        seat.code = 0
        seat.delivery = None
        return seat

    @trio.lowlevel.enable_ki_protection
    @types.coroutine
    def wait(self, seat: _Seat, /) -> Generator[object, outcome.Outcome[None], None]:
        seat.waiter = trio.lowlevel.current_task()
        woken = yield seat.message
        if woken is not _WOKEN:
            woken.unwrap()  # raises Cancelled; the seat is not used again
        if len(self._seats) < _PLACES_KEPT:
            self._seats.append(seat)

    # Ctrl-C between the ticket and the park would leave the ticket of a task that does not wait for us.
    @trio.lowlevel.enable_ki_protection
    @types.coroutine
    def park(self, what: What, on_cancel: Callable[[What], None], /) -> Generator[object, outcome.Outcome[None], None]:
        what.waiter = trio.lowlevel.current_task()
        free = self._free
        place = free.pop() if free else _Place()
        place.what, place.on_cancel = what, on_cancel
        try:
            (yield place.message).unwrap()
        finally:
            place.what = None
            if len(free) < _PLACES_KEPT:
                free.append(place)


class _PublicTrioBackend(_Trio):
    """Parks with a new message each time: for a Trio that is not built as `_TrioBackend` takes it to be."""

    ticket = Ticket

    def cancelled(self) -> bool:
        return trio.current_effective_deadline() == -math.inf

    def wait(self, ticket: Ticket, /) -> Awaitable[None]:
        return self.park(ticket, self.leave)

    @trio.lowlevel.enable_ki_protection
    async def park(self, what: What, on_cancel: Callable[[What], None], /) -> None:
        what.waiter = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            on_cancel(what)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


def messages_can_be_reused() -> bool:
    """Whether this Trio's message of a parked task is a record of one abort function, as `_Place` takes it to be."""
    try:
        place = _Place()
        fields = cast("dict[str, object]", vars(place.message))
    except Exception:  # noqa: BLE001 - another Trio may raise anything here
        return False
    return list(fields.values()) == [place.abort]


def cancellation_can_be_asked() -> bool:
    """Whether this Trio keeps with the running task whether it is cancelled, as `_TrioBackend` takes it to do."""
    status = getattr(trio.lowlevel.current_task(), "_cancel_status", None)
    return isinstance(getattr(status, "effectively_cancelled", None), bool)


class _Future(Awaitable[None], Protocol):
    """The methods of an asyncio future that are used here."""

    def done(self) -> bool: ...

    def cancelled(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class _Loop(Protocol):
    """The methods of an asyncio event loop (uvloop's too) that are used here."""

    def time(self) -> float: ...

    def create_future(self) -> _Future: ...


class _AsyncioBackend:
    leaves_late = True
    ticket = Ticket

    def __init__(self, token: anyio.lowlevel.EventLoopToken) -> None:
        loop = cast("_Loop", token.native_token)
        self.leave: Callable[[Ticket], None] = _ignore
        self.clock = loop.time
        self.checkpoint_if_cancelled = token.backend_class.checkpoint_if_cancelled
        self._create_future = loop.create_future
        self._cancelled = anyio.get_cancelled_exc_class()
        self._loop: Any = token.native_token
        self._current_task = asyncio.current_task
        self._states = scope_states(token)

    def cancelled(self) -> bool:
        # The question of `checkpoint_if_cancelled`, without a coroutine and without calls: 0.3 us in place of 1.0.
        states = self._states
        if states is None:
            return True
        state = states.get(ref(self._current_task(self._loop)))
        scope = None if state is None else state.cancel_scope
        while scope is not None:
            if scope._cancel_called:  # noqa: SLF001 - here and below: see `scope_states`
                return True
            if scope._shield:  # noqa: SLF001
                return False
            scope = scope._parent_scope  # noqa: SLF001
        return False

    async def wait(self, ticket: Ticket, /) -> None:
        ticket.waiter = future = self._create_future()
        try:
            await future
        except self._cancelled as cancelled:
            if not _woken(future, cancelled):
                self.leave(ticket)
                raise

    async def park(self, what: What, on_cancel: Callable[[What], None], /) -> None:
        what.waiter = future = self._create_future()
        try:
            await future
        except self._cancelled as cancelled:
            if not _woken(future, cancelled):
                on_cancel(what)
                raise

    def leaving(self, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        return [each for each in tickets if each.waiter is not None and each.waiter.cancelled()]

    def land(self, tickets: Sequence[Ticket], code: int) -> None:
        for ticket in tickets:
            ticket.code = code
            code += 1
            future = ticket.waiter
            if future is not None:
                ticket.waiter = None
                if not future.done():  # as in `wake`
                    future.set_result(None)

    def wake(self, ticket: _Future) -> None:
        # A cancelled task keeps its ticket until it runs again and raises. Its future is done, so a wake does nothing.
        if not ticket.done():
            ticket.set_result(None)


def _woken(future: _Future, cancelled: BaseException) -> bool:
    """Whether the task was woken before a cancel scope cancelled it, so that the wake wins.

    asyncio may cancel a task whose future is done already. If a cancel scope did it, anyio delivers the cancellation again at
    the next checkpoint. A `Task.cancel()` without a cancel scope is delivered once only: it is raised, because otherwise the
    task would go on, although its owner has cancelled it.
    """
    woken = future.done() and not future.cancelled()
    return woken and str(*cancelled.args[:1]).startswith("Cancelled via cancel scope")


def _anyio_on_asyncio(token: anyio.lowlevel.EventLoopToken) -> Any:
    """Return anyio's module for asyncio, which runs already."""
    return sys.modules[token.backend_class.__module__]


def scope_states(token: anyio.lowlevel.EventLoopToken) -> Any:
    """Return what anyio keeps of each task, by a weak reference to it; None for an anyio that is built in another way."""
    states = getattr(_anyio_on_asyncio(token), "_task_states", None)
    known = {"_cancel_called", "_shield", "_parent_scope"} <= set(dir(anyio.CancelScope()))
    return getattr(states, "data", None) if known else None


def backend() -> Backend:
    """Return the parking of the running backend."""
    if current_async_library() != "trio":
        return _AsyncioBackend(anyio.lowlevel.current_token())
    known = messages_can_be_reused() and cancellation_can_be_asked()
    return _TrioBackend() if known else _PublicTrioBackend()
