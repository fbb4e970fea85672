"""Parking: a task goes on once, by its wake or by its cancellation, on each backend; and what it leans on in Trio."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio

from warrener import _backend
from warrener._backend import Backend, backend, cancellation_can_be_asked, messages_can_be_reused
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
            ticket = tickets[name] = parked.ticket()
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
        monkeypatch.setattr(_backend, "scope_states", lambda _token: None)
    parked: Backend = parking()

    async def raises() -> bool:
        if not parked.cancelled():
            return False
        with anyio.CancelScope():
            try:
                await parked.checkpoint_if_cancelled()
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
        assert _backend.scope_states(anyio.lowlevel.current_token()) is not None
