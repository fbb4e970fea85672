"""What a producer does by each retry policy is what the policy explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from warrener import Breaker, InvalidMessage, Producer, PublishError, Retry, open_producer
from warrener.errors import Fault, FaultKind
from warrener.retry import Situation
from warrener.testing.scripted import Life, Published, ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"
LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
POLICIES = {
    "at least once": Retry.at_least_once(),
    "at most once": Retry.at_most_once(),
    "persistent": Retry.persistent(),
    "fire and confirm": Retry.fire_and_confirm(),
}


def silence(_message: Published) -> str:
    return "silence"


def nack(_message: Published) -> str:
    return "nack"


def comes_back(_message: Published) -> str:
    return "return"


async def publish(producer: Producer) -> str:
    """Publish with a deadline of 20 s; return the name of the error, or "Receipt"."""
    try:
        await producer.publish(b"x", routing_key="tasks", timeout=20)
    except PublishError as error:
        return type(error).__name__
    return "Receipt"


async def in_situation(situation: Situation, policy: Retry) -> str:
    """Bring one message into the situation; the next link confirms everything."""
    scripts: dict[Situation, tuple[Life, ...]] = {
        Situation.NO_LINK: (refuses(), lives()),
        Situation.BREAKER_OPEN: (refuses(), lives(dialing=5.0)),
        Situation.LOST_AFTER_WRITING: (lives(5.0, answer=silence), lives()),
        Situation.LOST_BEFORE_WRITING: (lives(5.0, answer=silence, unoffered=1), lives()),
        Situation.NACKED: (lives(answer=nack),),
        Situation.RETURNED: (lives(answer=comes_back),),
        Situation.DEADLINE_AFTER_WRITING: (lives(answer=silence),),
        Situation.DEADLINE_BEFORE_WRITING: (lives(),),
        Situation.BLOCKED: (lives(),),
    }
    driver = ScriptedDriver(*scripts[situation])
    breaker = Breaker(threshold=1, cooldown=1000) if situation is Situation.BREAKER_OPEN else None
    async with open_producer(URL, driver=driver, retry=policy, breaker=breaker, backoff_jitter=0) as producer:
        if situation is Situation.NO_LINK:
            await trio.sleep(0.1)
        elif situation is Situation.BREAKER_OPEN:
            await trio.sleep(0.5)
            assert producer.status().circuit_breaker == "open"
        else:
            await producer.wait_connected()
        if situation in (Situation.BLOCKED, Situation.DEADLINE_BEFORE_WRITING):
            if situation is Situation.DEADLINE_BEFORE_WRITING:
                driver.link.congested = True
            else:
                driver.link.listener.blocked("low on disk")
                await trio.sleep(0.1)
        async with trio.open_nursery() as nursery:
            if situation is Situation.BLOCKED:
                nursery.start_soon(unblock, driver)
            return await publish(producer)


async def unblock(driver: ScriptedDriver) -> None:
    await trio.sleep(5)
    driver.link.listener.unblocked()


@pytest.mark.parametrize(
    "situation",
    [each for each in Situation if each not in (Situation.OVERDUE, Situation.REFUSED)],
    ids=lambda each: each.name,
)
@pytest.mark.parametrize("name", POLICIES)
async def test_a_message_meets_the_fate_that_the_policy_explains(
    name: str, situation: Situation, autojump_clock: MockClock
) -> None:
    """The error of the cell, or the next link's confirm."""
    policy = POLICIES[name]
    if situation is Situation.BREAKER_OPEN and name == "fire and confirm":
        policy = Retry.fire_and_confirm()  # there is no link either, and that is asked first
        assert await in_situation(situation, policy) == "NotSent"
        return
    told = await in_situation(situation, policy)
    assert told == (policy.fate(situation).error or "Receipt")


async def test_a_limit_of_attempts_ends_an_unknown_outcome(autojump_clock: MockClock) -> None:
    """Written twice, on two links, and then told as unknown."""
    driver = ScriptedDriver(lives(5.0, answer=silence))
    async with open_producer(URL, driver=driver, retry=Retry(attempts=2), breaker=None) as producer:
        assert await publish(producer) == "Unconfirmed"
        assert len(driver.published) == 2


async def test_a_message_that_is_not_sent_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    """After a loss the buffer is empty, and the next link has nothing to write."""
    driver = ScriptedDriver(lives(5.0), lives())
    async with open_producer(URL, driver=driver, retry=Retry.fire_and_confirm()) as producer:
        await producer.wait_connected()
        driver.link.congested = True
        handles = [producer.publish_nowait(b"x", routing_key="tasks") for _ in range(3)]
        await trio.sleep(20)
        assert [handle.settled for handle in handles] == [True] * 3
        assert producer.status().buffered == 0
        assert driver.published == []
        with pytest.raises(InvalidMessage):
            producer.publish_nowait(b"x", routing_key="tasks", mandatory=None)  # type: ignore[arg-type]
        assert await publish(producer) == "Receipt"
