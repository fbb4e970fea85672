"""Cancellation at every step that a publish takes, and of ten thousand at once; plain functions, for want of time limits."""

from __future__ import annotations

import random

import trio
import trio.testing
from trio.testing import MockClock

from warrener import Producer, Receipt, open_producer
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
            assert driver.links[0].reports is driver.link.reports
        return instrument.steps

    for room in (True, False):
        steps = trio.run(lambda room=room: steps_of_publish(0, room=room), clock=MockClock(autojump_threshold=0))
        assert steps >= 2
        for cancel_at in range(1, steps + 1):
            trio.run(
                lambda at=cancel_at, room=room: steps_of_publish(at, room=room), clock=MockClock(autojump_threshold=0)
            )


def test_ten_thousand_publishers_cancelled_at_random_leave_nothing() -> None:
    """Of 10,000 publishers in flight half are cancelled; every slot comes back, and the count is right."""

    async def main() -> None:
        chance = random.Random(4)
        driver = ScriptedDriver(lives(answer=silence))
        async with open_producer(URL, driver=driver) as producer, trio.open_nursery() as nursery:
            await producer.wait_connected()
            scopes = [trio.CancelScope() for _ in range(10_000)]

            async def publish(scope: trio.CancelScope) -> None:
                with scope:
                    await producer.publish(b"x", routing_key="tasks")

            for scope in scopes:
                nursery.start_soon(publish, scope)
            await trio.testing.wait_all_tasks_blocked()
            assert producer.status().in_flight == 10_000
            for scope in chance.sample(scopes, 5_000):
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert producer.status().in_flight == 10_000  # abandoned, and tracked to their outcome
            driver.link.reports.confirmed(1, 10_000, True)
            assert accounted(producer)
            assert producer.counters["confirmed"] == 10_000

    trio.run(main, clock=MockClock(autojump_threshold=0))
