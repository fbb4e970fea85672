"""Where a publisher waits on Trio. See `warrener._backend` for what is guaranteed.

A task parks by yielding a message to Trio's run loop: a record that holds an abort function, and nothing else. Here the message
is made once, and yielded each time: one park and wake costs 1.3 us, with a new message 3.0 us. This depends on details of Trio
that are not public. `messages_can_be_reused` and `cancellation_can_be_asked` ask for them, and where one is missing
`PublicTrioBackend` is used.
"""

from __future__ import annotations

import math
import types
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import outcome
import trio

from warrener._ticket import Parked, Ticket

__all__ = ["PublicTrioBackend", "TrioBackend", "cancellation_can_be_asked", "messages_can_be_reused"]


What = TypeVar("What", bound=Parked)


class _Woken:
    """The outcome None for each rescheduled task: it may be unwrapped many times, an `outcome.Value` only once."""

    __slots__ = ()

    def unwrap(self) -> None:
        return None


_WOKEN = cast("outcome.Outcome[None]", _Woken())


class _Place:
    """Where one task is parked; used again for the next task."""

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

    __slots__ = ("_backend", "message", "task")

    def __init__(self, backend: TrioBackend) -> None:
        super().__init__()
        self._backend = backend
        self.message = _message(self.abort)
        #: The publisher, from `ticket` until it was woken.
        self.task: Any = None

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._backend.leave(self)
        return trio.lowlevel.Abort.SUCCEEDED


def _message(abort: Callable[[Any], trio.lowlevel.Abort]) -> Any:
    """Return the message of a task that parks: `wait_task_rescheduled` yields it, and this function takes it."""
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

    @staticmethod
    async def checked_ticket() -> Ticket:
        await trio.lowlevel.checkpoint_if_cancelled()
        return Ticket()

    wake = staticmethod(partial(trio.lowlevel.reschedule, next_send=_WOKEN))

    def __init__(self) -> None:
        self.leave: Callable[[Ticket], None] = _ignore
        self.clock = trio.lowlevel.current_clock().current_time
        #: Trio's own method, which `trio.lowlevel.reschedule` looks up at each call; this saves 0.15 us.
        runner = getattr(trio.lowlevel.current_task(), "_runner", None)
        self._reschedule = getattr(runner, "reschedule", trio.lowlevel.reschedule)

    def leaving(self, _tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        return ()

    def cancellations(self) -> int:
        return 0

    def withhold(self, _caught: Sequence[BaseException], _before: int, /) -> None: ...

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


class TrioBackend(_Trio):
    """Parks with a message that is used again: see `_Place`."""

    def __init__(self) -> None:
        super().__init__()
        self._free: list[_Place] = []
        self._seats: list[_Seat] = []

    def ticket(self) -> Ticket | None:
        task: Any = trio.lowlevel.current_task()
        if task._cancel_status.effectively_cancelled:  # noqa: SLF001 - see `cancellation_can_be_asked`
            return None
        seats = self._seats
        if seats:
            seat = seats.pop()
            seat.code = 0
            seat.delivery = None
        else:
            seat = _Seat(self)
        seat.task = task
        return seat

    @trio.lowlevel.enable_ki_protection
    @types.coroutine
    def wait(self, seat: _Seat, /) -> Generator[object, outcome.Outcome[None], None]:
        seat.waiter = seat.task
        woken = yield seat.message
        seat.task = None
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


class PublicTrioBackend(_Trio):
    """Parks with a new message each time: for a Trio that is not built as `TrioBackend` takes it to be."""

    def ticket(self) -> Ticket | None:
        return None if trio.current_effective_deadline() == -math.inf else Ticket()

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
    """Whether this Trio's running task has the private flag for its cancellation that `TrioBackend` reads."""
    status = getattr(trio.lowlevel.current_task(), "_cancel_status", None)
    return isinstance(getattr(status, "effectively_cancelled", None), bool)
