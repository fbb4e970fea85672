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

import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import anyio
import anyio.lowlevel
import outcome
import trio
from sniffio import current_async_library

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

    async def checkpoint_if_cancelled(self) -> None:
        """Raise the backend's cancellation if it is due; otherwise cost next to nothing."""
        ...

    def park(self, what: What, on_cancel: Callable[[What], None], /) -> Awaitable[None]:
        """Leave a ticket in `what.waiter`, then wait until the task is woken.

        When the task is cancelled, `on_cancel(what)` is called before Cancelled is raised: it forgets the ticket.
        """
        ...

    def wake(self, ticket: Any, /) -> None:
        """Let the task that holds the ticket go on; once per ticket."""
        ...

    #: Whether a parked task can be cancelled some time before `on_cancel` is called for it.
    leaves_late: bool

    def leaving(self, ticket: Any, /) -> bool:
        """Whether the task that holds the ticket is cancelled, and `on_cancel` has not been called yet."""
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
        # `wait_task_rescheduled` yields its message to Trio's run loop; here it yields the message to us.
        parking: Any = trio.lowlevel.wait_task_rescheduled(self.abort)  # noqa: ASYNC105 - it is not awaited, see above
        self.message = parking.send(None)
        parking.close()

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        # Trio never calls this once the task was rescheduled, so "woken first" needs no code here.
        self.on_cancel(self.what)
        return trio.lowlevel.Abort.SUCCEEDED


def _ignore(_what: object) -> None: ...


#: At most this number of places is kept for the next tasks: 200 bytes each.
_PLACES_KEPT: Final = 10_000


class _Trio:
    leaves_late = False
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)
    wake = staticmethod(partial(trio.lowlevel.reschedule, next_send=_WOKEN))

    def __init__(self) -> None:
        self.clock = trio.lowlevel.current_clock().current_time

    def leaving(self, _ticket: object) -> bool:
        return False


class _TrioBackend(_Trio):
    """Parks with a message that is used again: see `_Place`."""

    def __init__(self) -> None:
        super().__init__()
        self._free: list[_Place] = []

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
    """Parks with a new message each time: for a Trio whose messages cannot be used again."""

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

    def __init__(self, token: anyio.lowlevel.EventLoopToken) -> None:
        loop = cast("_Loop", token.native_token)
        self.clock = loop.time
        self.checkpoint_if_cancelled = token.backend_class.checkpoint_if_cancelled
        self._create_future = loop.create_future
        self._cancelled = anyio.get_cancelled_exc_class()

    async def park(self, what: What, on_cancel: Callable[[What], None], /) -> None:
        what.waiter = future = self._create_future()
        try:
            await future
        except self._cancelled as cancelled:
            # asyncio may cancel a task whose future is done already. If a cancel scope did it, the wake wins, and anyio
            # delivers the cancellation again at the next checkpoint. A `Task.cancel()` without a cancel scope is
            # delivered once only: without this raise the task would go on, although its owner has cancelled it.
            woken = future.done() and not future.cancelled()
            if woken and str(*cancelled.args[:1]).startswith("Cancelled via cancel scope"):
                return
            on_cancel(what)
            raise

    def leaving(self, ticket: _Future | None) -> bool:
        return ticket is not None and ticket.cancelled()

    def wake(self, ticket: _Future) -> None:
        # A cancelled task keeps its ticket until it runs again and raises. Its future is done, so a wake does nothing.
        if not ticket.done():
            ticket.set_result(None)


def backend() -> Backend:
    """Return the parking of the running backend."""
    if current_async_library() != "trio":
        return _AsyncioBackend(anyio.lowlevel.current_token())
    return _TrioBackend() if messages_can_be_reused() else _PublicTrioBackend()
