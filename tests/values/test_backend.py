"""Parking: a task goes on once, by its wake or by its cancellation, on each backend; and what it leans on in Trio."""

from __future__ import annotations

import asyncio
import gc
import io
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from weakref import ref

import anyio
import pytest
import trio

from warrener import _backend, _on_asyncio
from warrener._backend import Backend, backend
from warrener._on_asyncio import scope_states
from warrener._on_trio import cancellation_can_be_asked, messages_can_be_reused
from warrener._ticket import Ticket


@pytest.fixture(params=[True, False], ids=["usual Trio", "another Trio"])
def parking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the backend: the usual one, and the one for a Trio whose messages cannot be used again."""
    monkeypatch.setattr(_backend, "messages_can_be_reused", lambda: request.param)
    return backend


def test_this_trio_lets_a_message_be_used_again() -> None:
    """When this fails, another Trio parks tasks in another way: publishers take the public call then, which costs 1 us."""
    assert messages_can_be_reused()


@pytest.mark.trio
async def test_this_trio_says_whether_a_task_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, another Trio keeps it elsewhere: publishers ask the public function then."""
    assert cancellation_can_be_asked()
    monkeypatch.setattr(trio.lowlevel, "current_task", lambda: SimpleNamespace(_cancel_status=object()))
    assert not cancellation_can_be_asked()


def test_another_trio_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is more than an abort function, or none at all, is not used again."""

    async def with_more(abort: Any) -> None:
        await _yield(SimpleNamespace(abort_func=abort, task=object()))

    async def with_slots(abort: Any) -> None:
        await _yield((abort,))

    for other in (with_more, with_slots):
        monkeypatch.setattr(trio.lowlevel, "wait_task_rescheduled", other)
        assert not messages_can_be_reused()


class _yield:  # noqa: N801 - it is used like a function
    def __init__(self, message: object) -> None:
        self.message = message

    def __await__(self) -> Any:
        yield self.message


class _Tasks:
    """Tasks that park, and a note of how each of them went on."""

    def __init__(self, parked: Backend) -> None:
        self.backend = parked
        self.log: list[tuple[int, str]] = []
        self.places: list[Any] = [SimpleNamespace(waiter=None) for _ in range(6)]

    async def park(self, number: int, scope: anyio.CancelScope | None = None) -> None:
        place = self.places[number]

        def forget(what: Any) -> None:
            assert what is place
            what.waiter = None
            self.log.append((number, "forgotten"))

        with scope or anyio.CancelScope():
            await self.backend.park(place, forget)
            self.log.append((number, "woken"))
            return
        self.log.append((number, "cancelled"))

    def wake(self, number: int) -> None:
        place = self.places[number]
        ticket, place.waiter = place.waiter, None
        self.backend.wake(ticket)


async def _settle() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_a_task_goes_on_once(parking: Any) -> None:
    """By its wake; by its cancellation, which forgets the ticket; and by the wake where that came first."""
    tasks = _Tasks(parking())
    scopes = [anyio.CancelScope() for _ in range(6)]
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(tasks.park, number, scopes[number])
        await _settle()
        tasks.wake(1)
        scopes[2].cancel()
        tasks.wake(3)
        scopes[3].cancel()
        await _settle()
        assert sorted(tasks.log) == [(1, "woken"), (2, "cancelled"), (2, "forgotten"), (3, "woken")]
        tasks.log.clear()
        # Places that were left are used again.
        for number in (4, 5):
            group.start_soon(tasks.park, number, scopes[number])
        await _settle()
        tasks.wake(5)
        scopes[4].cancel()
        tasks.wake(0)
        await _settle()
        assert sorted(tasks.log) == [(0, "woken"), (4, "cancelled"), (4, "forgotten"), (5, "woken")]


@pytest.mark.anyio
async def test_a_cancelled_task_does_not_wait(parking: Any) -> None:
    """A park in a scope that is cancelled already ends at once."""
    tasks = _Tasks(parking())
    scope = anyio.CancelScope()
    scope.cancel()
    with anyio.fail_after(10):
        await tasks.park(0, scope)
    assert tasks.log == [(0, "forgotten"), (0, "cancelled")]


@pytest.mark.anyio
async def test_a_publisher_goes_on_once_and_its_ticket_is_used_again(parking: Any) -> None:
    """By the code of its message, or by its cancellation, of which `leave` is told; with another publisher each time."""
    parked: Backend = parking()
    left: list[Ticket] = []

    def leave(ticket: Ticket) -> None:
        ticket.waiter = None
        left.append(ticket)

    parked.leave = leave
    log: list[tuple[str, int]] = []
    tickets: dict[str, Ticket] = {}

    async def publisher(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            ticket = tickets[name] = parked.ticket() or await parked.checked_ticket()
            assert (ticket.code, ticket.delivery) == (0, None)
            await parked.wait(ticket)
            log.append((name, ticket.code))

    scopes = {name: anyio.CancelScope() for name in "abcd"}
    async with anyio.create_task_group() as group:
        for name in "ab":
            group.start_soon(publisher, name, scopes[name])
        await _settle()
        scopes["a"].cancel()
        await _settle()
        assert left == [tickets["a"]]
        parked.land([tickets["b"]], 7)
        await _settle()
        for name in "cd":
            group.start_soon(publisher, name, scopes[name])
        await _settle()
        assert not parked.leaving(list(tickets.values()))
        parked.land([tickets["c"], tickets["d"]], 8)
        scopes["d"].cancel()
        await _settle()
    assert log[0] == ("b", 7)
    assert sorted(log) == [("b", 7), ("c", 8), ("d", 9)]
    assert left == [tickets["a"]]


@pytest.mark.anyio
@pytest.mark.parametrize("another_anyio", [False, True])
async def test_a_cancelled_task_knows_it(parking: Any, monkeypatch: pytest.MonkeyPatch, another_anyio: bool) -> None:
    """In its own scope and in those around it, up to a shield; an anyio that is built in another way is asked itself."""
    if another_anyio:
        monkeypatch.setattr(_on_asyncio, "scope_states", lambda _token: None)
    parked: Backend = parking()

    async def raises() -> bool:
        if parked.ticket() is not None:
            return False
        with anyio.CancelScope():
            try:
                await parked.checked_ticket()
            except anyio.get_cancelled_exc_class():
                return True
        return False

    assert not await raises()
    with anyio.CancelScope() as outer:
        with anyio.CancelScope():
            assert not await raises()
            outer.cancel()
            with anyio.CancelScope(shield=True):
                assert not await raises()
            assert await raises()


@pytest.mark.anyio
async def test_this_anyio_says_in_which_scope_a_task_is(anyio_backend_name: str) -> None:
    """When this fails, another anyio keeps its scopes elsewhere: each publish asks anyio then, which costs 0.6 us."""
    if anyio_backend_name == "asyncio":
        assert scope_states(anyio.lowlevel.current_token()) is not None


# --- seats on asyncio ----------------------------------------------------------------------------------------------------


class _Publishers:
    """Tasks of asyncio that wait as publishers do, and a note of how each of them went on."""

    def __init__(self) -> None:
        self.backend: Any = backend()
        self.backend.leave = self._leave
        self.tickets: list[Any] = []
        self.log: list[object] = []
        self.mine: ContextVar[str] = ContextVar("mine")

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiter = None
        self.log.append("left")

    async def wait(self, name: str, error: type[BaseException] | None = None) -> None:
        self.mine.set(name)
        ticket = self.backend.ticket() or await self.backend.checked_ticket()
        self.tickets.append(ticket)
        await self.backend.wait(ticket)
        assert self.mine.get() == name
        self.log.append(name)
        if error is not None:
            raise error

    async def start(self, *names: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.wait(name)) for name in names]
        await _settle()
        return tasks


def test_a_seat_is_a_future_to_asyncio() -> None:
    """In the way that `asyncio.isfuture` documents. anyio's test helper, which asks what each task waits for, sees it too."""

    async def main() -> None:
        publishers = _Publishers()
        (task,) = await publishers.start("a")
        await anyio.wait_all_tasks_blocked()
        seat = publishers.tickets[0]
        assert asyncio.isfuture(seat)
        assert not seat.done()
        publishers.backend.land([seat], 1)
        assert seat.done()
        assert not seat.cancelled()
        await task
        assert publishers.log == ["a"]

    asyncio.run(main())


def test_the_tools_of_asyncio_show_where_a_publisher_waits() -> None:
    """The call graph of Python 3.14 follows what a task awaits; before, there is the stack of the task."""
    show: Any = getattr(asyncio, "print_call_graph", asyncio.Task.print_stack)

    async def main() -> None:
        publishers = _Publishers()
        (task,) = await publishers.start("a")
        shown = io.StringIO()
        show(task, file=shown)
        assert __file__ in shown.getvalue()
        publishers.backend.land(publishers.tickets, 1)
        await task

    asyncio.run(main())


@pytest.mark.parametrize("woken", ["land", "wake", None])
def test_a_task_cancel_without_a_scope_is_raised(woken: str | None) -> None:
    """Also if the publisher was woken before: nobody would cancel the task again. Its ticket is left, and not used again."""

    async def main() -> None:
        publishers = _Publishers()
        (task,) = await publishers.start("a")
        (seat,) = publishers.tickets
        if woken == "land":
            publishers.backend.land([seat], 1)
        elif woken == "wake":
            waiter, seat.waiter = seat.waiter, None
            publishers.backend.wake(waiter)
        task.cancel("enough")
        task.cancel("again")
        if woken is None:
            assert publishers.backend.leaving([seat]) == [seat]
            publishers.backend.land([seat], 1)  # the answer comes before the task runs
        with pytest.raises(asyncio.CancelledError):
            await task
        assert publishers.log == ["left"]
        await publishers.start("b")
        assert publishers.tickets[1] is not seat
        publishers.backend.land(publishers.tickets[1:], 2)
        await _settle()
        assert publishers.log == ["left", "b"]

    asyncio.run(main())


def test_all_publishers_of_one_ack_go_on_though_one_ends_the_loop() -> None:
    """KeyboardInterrupt leaves a task at once, and the loop with it. If the loop goes on, so do the other publishers."""
    loop = asyncio.new_event_loop()
    made: list[_Publishers] = []
    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        publishers = _Publishers()
        made.append(publishers)
        for name, error in (("a", None), ("b", KeyboardInterrupt), ("c", None), ("d", None)):
            tasks.append(asyncio.create_task(publishers.wait(name, error)))
        await _settle()
        publishers.backend.land(publishers.tickets, 1)
        await _settle()

    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main())
        assert made[0].log == ["a", "b"]
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(tasks[2], tasks[3]), 30))
        assert made[0].log == ["a", "b", "c", "d"]
        assert isinstance(tasks[1].exception(), KeyboardInterrupt)
    finally:
        loop.close()


def test_a_seat_keeps_no_task_alive() -> None:
    """A program's tasks hold its data: the seat of a task that has ended must not keep them."""

    async def main() -> None:
        publishers = _Publishers()
        (task,) = await publishers.start("a")
        ended = ref(task)
        publishers.backend.land(publishers.tickets, 1)
        await task
        del task
        await _settle()
        gc.collect()
        assert ended() is None
        (again,) = await publishers.start("b")
        assert publishers.tickets[1] is publishers.tickets[0]
        publishers.backend.land(publishers.tickets[1:], 2)
        await again

    asyncio.run(main())


@pytest.mark.trio
async def test_a_seat_on_trio_keeps_no_task_alive() -> None:
    """As on asyncio."""
    publishers: Any = backend()
    tasks: list[Any] = []
    tickets: list[Any] = []

    async def publisher() -> None:
        tasks.append(ref(trio.lowlevel.current_task()))
        tickets.append(publishers.ticket())
        await publishers.wait(tickets[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher)
        await _settle()
        publishers.land(tickets, 1)
    gc.collect()
    assert tasks[0]() is None
