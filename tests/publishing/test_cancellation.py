"""Cancellation at every step that a publish takes, and of ten thousand at once; plain functions, for want of time limits."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from warrener import DeadlineExceeded, Producer, ProducerClosed, PublishError, Receipt, Unconfirmed, open_producer
from warrener.testing.scripted import Published, ScriptedDriver, lives

URL = "amqp://localhost/"


def silence(_message: Published) -> str:
    """A broker that never answers."""
    return "silence"


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before a task takes its k-th step, and counts the steps that it takes."""

    def __init__(self, name: str, step: int, scope: trio.CancelScope) -> None:
        self.steps = 0
        self._name = name
        self._step = step
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and cancel when it is time."""
        if task.name == self._name:
            self.steps += 1
            if self.steps == self._step:
                self._scope.cancel()


def accounted(producer: Producer) -> bool:
    """Whether everything accepted is settled, and nothing holds a slot."""
    counters, status = producer.counters, producer.status()
    settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
    return counters["accepted"] == settled and status.in_flight == status.buffered == 0


def test_cancelled_before_each_step_of_a_publish() -> None:
    """For every step that a publish takes, with room and without: the account balances and the next publish works."""

    async def steps_of_publish(cancel_at: int, *, room: bool) -> int:
        driver = ScriptedDriver(lives(latency=1.0))
        async with open_producer(URL, driver=driver, max_buffered=1, max_in_flight=1) as producer:
            await producer.wait_connected()
            if not room:
                producer.publish_nowait(b"in flight", routing_key="tasks")
                producer.publish_nowait(b"buffered", routing_key="tasks")
            scope = trio.CancelScope()
            instrument = CancelAtStep("the publisher", cancel_at, scope)
            trio.lowlevel.add_instrument(instrument)

            async def publish() -> None:
                with scope:
                    await producer.publish(b"x", routing_key="tasks")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, name="the publisher")
            trio.lowlevel.remove_instrument(instrument)
            assert isinstance(await producer.publish(b"after", routing_key="tasks"), Receipt)
            assert accounted(producer)
            assert driver.links[0].listener is driver.link.listener
        return instrument.steps

    for room in (True, False):
        steps = trio.run(lambda room=room: steps_of_publish(0, room=room), clock=MockClock(autojump_threshold=0))
        assert steps >= 2
        for cancel_at in range(1, steps + 1):
            trio.run(
                lambda at=cancel_at, room=room: steps_of_publish(at, room=room), clock=MockClock(autojump_threshold=0)
            )


@pytest.mark.slow
def test_ten_thousand_publishers_cancelled_at_random_leave_nothing() -> None:
    """Of 10,000 publishers in flight half are cancelled; every slot comes back, and the count is right."""

    async def main() -> None:
        rng = random.Random(4)
        driver = ScriptedDriver(lives(answer=silence))
        async with open_producer(URL, driver=driver, max_in_flight=12_000) as producer, trio.open_nursery() as nursery:
            await producer.wait_connected()
            scopes = [trio.CancelScope() for _ in range(10_000)]

            async def publish(scope: trio.CancelScope) -> None:
                with scope:
                    await producer.publish(b"x", routing_key="tasks")

            for scope in scopes:
                nursery.start_soon(publish, scope)
            await trio.testing.wait_all_tasks_blocked()
            assert producer.status().in_flight == 10_000
            for scope in rng.sample(scopes, 5_000):
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert producer.status().in_flight == 10_000  # abandoned, and tracked to their outcome
            driver.link.listener.confirmed(1, 10_000, True)
            assert accounted(producer)
            assert producer.counters["confirmed"] == 10_000

    trio.run(main, clock=MockClock(autojump_threshold=0))


class SlowToEnd(ScriptedDriver):
    """A driver whose links take a second to end, cancelled or not, as a socket that nobody reads does."""

    @asynccontextmanager
    async def open(self, *arguments: Any) -> AsyncIterator[Any]:
        async with super().open(*arguments) as link:
            try:
                yield link
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1.0)


def test_deadlines_hold_while_a_cancelled_run_ends() -> None:
    """Until the link of a cancelled producer has ended, deadlines are kept and new publishes are refused at once (R1).

    Found by the simulation, seed 437: outcomes came when the link had ended, up to `abort_timeout` after the deadline.
    """
    ended: dict[bytes, tuple[float, type[PublishError]]] = {}

    async def publish(producer: Producer, body: bytes, timeout: float, at: float = 0.0) -> None:
        await trio.sleep_until(at)
        try:
            await producer.publish(body, routing_key="tasks", timeout=timeout)
        except PublishError as error:
            ended[body] = (trio.current_time(), type(error))

    async def main() -> None:
        driver = SlowToEnd(lives(answer=silence))
        async with trio.open_nursery() as publishers:
            async with trio.open_nursery() as nursery:
                producer = Producer(URL, driver=driver, max_in_flight=1)
                await nursery.start(producer.run)
                await producer.wait_connected()
                for body, timeout in ((b"in flight", 10.25), (b"buffered", 10.5), (b"patient", 60.0)):
                    publishers.start_soon(publish, producer, body, timeout)
                    await trio.testing.wait_all_tasks_blocked()
                await trio.sleep_until(10.0)
                nursery.cancel_scope.cancel()
                publishers.start_soon(publish, producer, b"late", 60.0, 10.125)
            assert trio.current_time() == 11.0

    trio.run(main, clock=MockClock(autojump_threshold=0))

    assert ended == {
        b"late": (10.125, ProducerClosed),
        b"in flight": (10.25, Unconfirmed),
        b"buffered": (10.5, DeadlineExceeded),
        b"patient": (11.0, ProducerClosed),
    }
