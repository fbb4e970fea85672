"""Publishes that wait together, on asyncio: a task is cancelled some time before it runs again and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from warrener import Outcome, Producer, Receipt, open_producer
from warrener.testing.scripted import Published, ScriptedDriver, lives

URL = "amqp://localhost/"


def silence(_message: Published) -> str:
    """A broker that never answers."""
    return "silence"


def on_asyncio(main: Callable[[Producer, ScriptedDriver], Awaitable[None]], **life: Any) -> ScriptedDriver:
    """Run `main` with a producer whose link asks for messages only when it is told to."""
    driver = ScriptedDriver(lives(**life))
    failed: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failed.append(context))
        async with open_producer(URL, driver=driver) as producer:
            await producer.wait_connected()
            handle = producer.publish_nowait(b"first", routing_key="q")
            driver.link.listener.confirmed(1, 1, False)
            await handle.wait()
            driver.link.holds_pulls = True
            with anyio.fail_after(30):
                await main(producer, driver)

    asyncio.run(run())
    assert not failed  # no callback of the event loop raised
    return driver


async def parked(task: asyncio.Task[Any]) -> None:
    """Let the task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


def test_a_cancelled_publish_is_not_sent() -> None:
    """The link asks after the cancellation and before the task has run."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        task = asyncio.create_task(producer.publish(b"cancelled", routing_key="q"))
        handle = producer.publish_nowait(b"other", routing_key="q")
        await parked(task)
        task.cancel()
        driver.link.listener.pull()
        assert [message.body for message in driver.published] == [b"first", b"other"]
        with pytest.raises(asyncio.CancelledError):
            await task
        assert producer.counters["cancelled"] == 1
        driver.link.listener.confirmed(1, 2, False)
        assert isinstance(await handle.wait(), Receipt)

    on_asyncio(main, answer=silence)


def test_a_handle_whose_wait_is_cancelled_keeps_its_message() -> None:
    """The link asks after the cancellation and before the task has run; a second wait gets the outcome."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        handle = producer.publish_nowait(b"kept", routing_key="q")
        task = asyncio.create_task(handle.wait())
        await parked(task)
        task.cancel()
        driver.link.listener.pull()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.body for message in driver.published] == [b"first", b"kept"]
        assert producer.counters["cancelled"] == 0
        driver.link.listener.confirmed(1, 2, False)
        assert isinstance(await handle.wait(), Receipt)

    on_asyncio(main, answer=silence)


def test_a_publish_that_is_cancelled_in_flight_is_told_later() -> None:
    """Its confirm comes after the cancellation: before the task has run, or after that."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        told: list[Outcome] = []
        tasks = [asyncio.create_task(producer.publish(b"%d" % number, routing_key="q")) for number in range(2)]
        for task in tasks:
            await parked(task)
        driver.link.listener.pull()
        async with producer.outcomes() as outcomes:
            tasks[0].cancel()
            driver.link.listener.confirmed(1, 2, False)
            tasks[1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 2
            driver.link.listener.confirmed(1, 3, False)
            while len(told) < 2:
                told += [await anext(outcomes)]
        assert sorted(outcome.message_id for outcome in told) == sorted(
            message.message_id for message in driver.published[1:]
        )
        assert all(isinstance(outcome.result, Receipt) for outcome in told)
        assert producer.status().in_flight == 0

    on_asyncio(main, answer=silence)


def test_an_answer_between_the_deadline_and_the_cancelled_task_is_the_last_word() -> None:
    """The task is cancelled, and before it runs its deadline passes and the confirm comes: `outcomes()` has the receipt alone."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        task = asyncio.create_task(producer.publish(b"x", routing_key="q", timeout=5.0))
        await parked(task)
        other = asyncio.create_task(producer.publish(b"other", routing_key="q", timeout=600.0))
        await parked(other)
        driver.link.listener.pull()
        sender = producer._sender  # type: ignore[attr-defined]
        async with producer.outcomes() as outcomes:
            task.cancel()
            sender.look(sender.backend.clock() + 6.0)
            driver.link.listener.confirmed(1, 2, False)
            with pytest.raises(asyncio.CancelledError):
                await task
            other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await other
            driver.link.listener.confirmed(1, 3, False)
            told = [await anext(outcomes) for _ in range(2)]
        assert [outcome.message_id for outcome in told] == [message.message_id for message in driver.published[1:]]
        assert [type(outcome.result) for outcome in told] == [Receipt, Receipt]

    on_asyncio(main, answer=silence)


class _Closed:
    """Runs a coroutine step by step inside a task, and closes it in place of its last step."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Any:
        try:
            yield self.coroutine.send(None)
        finally:
            self.coroutine.close()


@pytest.mark.parametrize("body", [b"x", bytearray(b"x")])
@pytest.mark.parametrize("confirmed", [False, True])
def test_a_publish_that_its_caller_closes_is_told_later(confirmed: bool, body: bytes | bytearray) -> None:
    """Its confirm comes before that, or after it."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        async def closing() -> None:
            await _Closed(producer.publish(body, routing_key="q"))

        async with producer.outcomes() as outcomes:
            task = asyncio.create_task(closing())
            await parked(task)
            driver.link.listener.pull()
            if confirmed:
                driver.link.listener.confirmed(1, 2, False)
                await task
            else:
                task.cancel()
                await asyncio.wait({task})
                driver.link.listener.confirmed(1, 2, False)
            told = await anext(outcomes)
            assert told.message_id == driver.published[1].message_id
            assert isinstance(told.result, Receipt)
        assert producer.status().in_flight == 0

    on_asyncio(main, answer=silence)


def test_a_scope_that_is_cancelled_after_the_confirm_leaves_the_receipt() -> None:
    """The wake came first: the publish returns, and the cancellation follows at the next checkpoint."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        receipts: list[Receipt] = []
        scope = anyio.CancelScope()

        async def publish() -> None:
            with scope:
                receipts.append(await producer.publish(b"x", routing_key="q"))

        task = asyncio.create_task(publish())
        await parked(task)
        driver.link.listener.pull()
        driver.link.listener.confirmed(1, 2, False)
        scope.cancel()
        await task
        assert [type(receipt) for receipt in receipts] == [Receipt]

    on_asyncio(main, answer=silence)


def test_a_run_on_asyncio_is_written_together() -> None:
    """As on Trio."""

    async def main(producer: Producer, driver: ScriptedDriver) -> None:
        driver.link.holds_pulls = False
        task = asyncio.create_task(producer.publish_many([b"x"] * 500, routing_key="q"))
        await parked(task)
        driver.link.listener.confirmed(1, 501, True)
        outcomes = await task
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        assert driver.link.batches[-1] == 500

    on_asyncio(main, answer=silence)


async def _decided_before_the_publisher_runs(cancel: str) -> tuple[list[Receipt], list[Outcome]]:
    """The publisher waits for room; then it is accepted, sent, confirmed and cancelled in one turn of the event loop."""
    driver = ScriptedDriver(lives(answer=silence))
    receipts: list[Receipt] = []
    told: list[Outcome] = []
    scope = anyio.CancelScope()
    with anyio.fail_after(30):
        async with open_producer(URL, driver=driver, max_buffered=1, max_in_flight=1) as producer:
            await producer.wait_connected()
            handles = [producer.publish_nowait(b"before", routing_key="q") for _ in range(2)]

            async def publish() -> None:
                with scope:
                    receipts.append(await producer.publish(b"x", routing_key="q"))

            async with producer.outcomes() as outcomes, anyio.create_task_group() as group:
                if cancel == "task":
                    task = asyncio.create_task(publish())
                else:
                    group.start_soon(publish)
                await anyio.wait_all_tasks_blocked()
                for tag in (1, 2, 3):
                    driver.link.listener.confirmed(1, tag, False)
                    driver.link.listener.pull()
                if cancel == "task":
                    await asyncio.sleep(0)
                    while not receipts and not task.done():
                        task.cancel()
                        await asyncio.sleep(0)
                else:
                    scope.cancel()
                await anyio.wait_all_tasks_blocked()
                if not receipts:
                    told.append(await anext(outcomes))
            for handle in handles:
                await handle.wait()
            assert producer.status().in_flight == 0
    return receipts, told


@pytest.mark.anyio
async def test_an_outcome_that_is_decided_before_the_publisher_runs_is_returned() -> None:
    """A scope is cancelled behind it: the receipt is returned, and the cancellation follows at the next checkpoint."""
    receipts, told = await _decided_before_the_publisher_runs("scope")
    assert [type(receipt) for receipt in receipts] == [Receipt]
    assert told == []


def test_an_outcome_that_is_decided_before_the_publisher_runs_is_told_once() -> None:
    """The task is cancelled behind it: the outcome is returned, or `outcomes()` tells it."""
    receipts, told = asyncio.run(_decided_before_the_publisher_runs("task"))
    assert len(receipts) + len(told) == 1
