"""The intake alone, on every backend: each call is answered once, whatever its cancellation crosses."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from warrener import Message
from warrener._backend import backend
from warrener.outbox._intake import Intake
from warrener.outbox._rows import encode
from warrener.outbox.errors import OutboxError

pytestmark = pytest.mark.anyio


class Desk:
    """An intake whose calls are noted: what each returned or raised, and how often the relay was woken."""

    def __init__(self):
        self.woken = 0
        self.results = {}
        self.intake = Intake(self._count)
        self.intake.begin(backend())

    def _count(self):
        self.woken += 1

    async def call(self, number):
        message = Message(b"%d" % number, routing_key="tasks")
        try:
            self.results[number] = (await self.intake.store(encode(message), message)).position
        except OutboxError as error:
            self.results[number] = str(error)


async def test_calls_of_one_turn_wake_the_relay_once_and_return_in_their_order():
    """A call that comes after the rows were taken wakes the relay again."""
    desk = Desk()
    async with anyio.create_task_group() as tasks:
        for number in range(1, 4):
            tasks.start_soon(desk.call, number)
        await anyio.wait_all_tasks_blocked()
        assert desk.woken == 1
        first = desk.intake.take()
        tasks.start_soon(desk.call, 4)
        await anyio.wait_all_tasks_blocked()
        assert desk.woken == 2
        places = {b"1": 11, b"2": 12, b"3": 13}
        desk.intake.answer(first, [places[one.row.body] for one in first])
        await anyio.wait_all_tasks_blocked()
        assert desk.results == {1: 11, 2: 12, 3: 13}
        desk.intake.answer(desk.intake.take(), [14])
    assert desk.results == {1: 11, 2: 12, 3: 13, 4: 14}


async def test_after_a_cancelled_call_the_next_one_wakes_the_relay():
    """The cancelled call left nothing that the relay could take."""
    desk = Desk()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(_cancel_once_blocked, scope)
            await desk.call(1)
        assert scope.cancelled_caught
        assert desk.intake.take() == []
        tasks.start_soon(desk.call, 2)
        await anyio.wait_all_tasks_blocked()
        assert desk.woken == 2
        desk.intake.answer(desk.intake.take(), [2])
    assert desk.results == {2: 2}


async def test_calls_that_are_cancelled_after_their_rows_were_taken_are_answered_together():
    """One is cancelled and already waits for the disk, one is cancelled in the same turn as the answer, one is not."""
    desk, early, late = Desk(), anyio.CancelScope(), anyio.CancelScope()

    async def within(scope, number):
        with scope:
            await desk.call(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(within, early, 1)
        tasks.start_soon(within, late, 2)
        tasks.start_soon(desk.call, 3)
        await anyio.wait_all_tasks_blocked()
        taken = desk.intake.take()
        early.cancel()
        await anyio.wait_all_tasks_blocked()
        late.cancel()
        desk.intake.answer(taken, [int(one.row.body) for one in taken])
    assert desk.results == {1: 1, 2: 2, 3: 3}


async def test_a_call_that_is_cancelled_as_the_intake_ends_raises_nothing_else():
    """It was not stored: the cancellation leaves, or the error of the end."""
    desk, scope = Desk(), anyio.CancelScope()

    async def within():
        with scope:
            await desk.call(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(within)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        desk.intake.end()
    assert scope.cancelled_caught or "before the message was stored" in desk.results[1]


@pytest.mark.parametrize("answered", [False, True])
def test_a_task_cancel_behind_the_row_is_raised_by_the_next_call(answered):
    """`Task.cancel()` comes once. The call returns the position; without a next one that raises, the task would run for ever."""

    async def main():
        desk, positions = Desk(), []

        async def without_end():
            message = Message(b"x", routing_key="tasks")
            while True:
                positions.append((await desk.intake.store(encode(message), message)).position)

        task = asyncio.create_task(without_end())
        await anyio.wait_all_tasks_blocked()
        taken = desk.intake.take()
        if answered:
            desk.intake.answer(taken, [1])
            task.cancel()
        else:
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            desk.intake.answer(taken, [1])
        await asyncio.wait({task}, timeout=30)
        assert task.cancelled()
        assert positions == [1]
        assert desk.intake.take() == []

    asyncio.run(main())


@pytest.mark.parametrize("scoped", [False, True])
def test_a_second_cancellation_behind_the_row_changes_nothing(scoped):
    """The row is stored, so the call returns its position; the call in the cleanup raises the `Task.cancel()`, and the next is stored."""

    async def main():
        desk, scope = Desk(), anyio.CancelScope()
        raised = []

        async def cleaned_up():
            with scope:
                await desk.call(1)
            try:
                await desk.call(2)
            except asyncio.CancelledError:
                raised.append(2)
            await desk.call(3)

        task = asyncio.create_task(cleaned_up())
        await anyio.wait_all_tasks_blocked()
        first = desk.intake.take()
        for cancel in (scope.cancel if scoped else task.cancel, task.cancel):
            cancel()
            await anyio.wait_all_tasks_blocked()
        desk.intake.answer(first, [1])
        await anyio.wait_all_tasks_blocked()
        desk.intake.answer(desk.intake.take(), [3])
        await asyncio.wait({task}, timeout=30)
        assert not task.cancelled()
        assert raised == [2]
        assert desk.results == {1: 1, 3: 3}

    asyncio.run(main())


def test_a_timeout_that_was_taken_back_is_not_raised_by_the_next_call():
    """`asyncio.timeout()` cancels the task and takes that back when its block ends."""

    async def main():
        desk = Desk()

        async def two_calls():
            async with asyncio.timeout(None) as timeout:
                limits.append(timeout)
                await desk.call(1)
            await desk.call(2)

        limits = []
        task = asyncio.create_task(two_calls())
        await anyio.wait_all_tasks_blocked()
        taken = desk.intake.take()
        limits[0].reschedule(0)
        await anyio.wait_all_tasks_blocked()
        desk.intake.answer(taken, [11])
        await anyio.wait_all_tasks_blocked()
        desk.intake.answer(desk.intake.take(), [12])
        await task
        assert desk.results == {1: 11, 2: 12}

    asyncio.run(main())


async def _cancel_once_blocked(scope):
    await anyio.wait_all_tasks_blocked()
    scope.cancel()
