"""What a producer does by each retry policy is what the policy explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from attrs import evolve

from warrener import (
    Backoff,
    Breaker,
    Budget,
    CircuitOpen,
    InvalidMessage,
    Nacked,
    Producer,
    PublishError,
    Receipt,
    Retry,
    open_producer,
)
from warrener.errors import Fault, FaultKind
from warrener.retry import Situation
from warrener.testing.scripted import Answer, Life, Published, ScriptedDriver, lives, refuses

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
    "again after a nack": Retry(on={"unknown", "nacked", "not_sent"}, backoff=Backoff(initial=2, jitter=0)),  # type: ignore[arg-type]
    "overdue": Retry(on={"unknown", "overdue", "not_sent"}),  # type: ignore[arg-type]
}


def silence(_message: Published) -> str:
    return "silence"


def nack(_message: Published) -> str:
    return "nack"


def comes_back(_message: Published) -> str:
    return "return"


def nack_once(message: Published) -> str:
    return "nack" if message.tag == 1 else "ack"


def mute(message: Published) -> str:
    return "silence" if message.envelope.routing_key == "tasks" else "ack"


def mute_once() -> Answer:
    """The first message to "tasks" gets no answer."""
    seen: list[Published] = []

    def answer(message: Published) -> str:
        if message.envelope.routing_key == "tasks":
            seen.append(message)
            return "silence" if len(seen) == 1 else "ack"
        return "ack"

    return answer


async def publish(producer: Producer, retry: Retry | None = None) -> str:
    """Publish with a deadline of 20 s; return the name of the error, or "Receipt"; overdue after 5 s."""
    try:
        await producer.publish(b"x", routing_key="tasks", timeout=20, retry=retry)
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
        Situation.NACKED: (lives(answer=nack_once),),
        Situation.SUPPRESSED: (lives(answer=nack),),
        Situation.DEADLINE_AFTER_A_NACK: (lives(answer=nack),),
        Situation.OVERDUE: (lives(answer=mute_once()),),
        Situation.RETURNED: (lives(answer=comes_back),),
        Situation.DEADLINE_AFTER_WRITING: (lives(answer=mute),),
        Situation.DEADLINE_BEFORE_WRITING: (lives(),),
        Situation.BLOCKED: (lives(),),
    }
    driver = ScriptedDriver(*scripts[situation])
    breaker = Breaker(threshold=1, cooldown=1000) if situation is Situation.BREAKER_OPEN else None
    if situation is Situation.SUPPRESSED and "nacked" in policy.on:
        policy = evolve(policy, budget=Budget(ratio=0, floor=0))
    async with open_producer(
        URL, driver=driver, retry=policy, breaker=breaker, backoff_jitter=0, confirm_timeout=5
    ) as producer:
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
            elif situation in (Situation.OVERDUE, Situation.DEADLINE_AFTER_WRITING):
                nursery.start_soon(publish_others, producer)
            told = await publish(producer)
            nursery.cancel_scope.cancel()
            return told


async def publish_others(producer: Producer) -> None:
    """Others are confirmed all the while, so the link is well."""
    while True:
        await trio.sleep(1)
        await producer.publish(b"x", routing_key="others")


async def unblock(driver: ScriptedDriver) -> None:
    await trio.sleep(5)
    driver.link.listener.unblocked()


@pytest.mark.parametrize(
    "situation",
    [each for each in Situation if each is not Situation.REFUSED],
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
    expected = policy.fate(situation).error or "Receipt"
    if situation is Situation.OVERDUE and "overdue" not in policy.on:
        expected = "Unconfirmed"  # at its deadline: this broker never confirms it
    assert told == expected


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


# --- after a nack ------------------------------------------------------------------------------------------------------

AGAIN = POLICIES["again after a nack"]


async def test_a_nacked_message_comes_again_after_its_delay(autojump_clock: MockClock) -> None:
    """Two seconds later, on the same link, and its receipt says that there may be two of it."""
    driver = ScriptedDriver(lives(answer=nack_once))
    async with open_producer(URL, driver=driver, retry=AGAIN) as producer:
        began = trio.current_time()
        receipt = await producer.publish(b"x", routing_key="tasks")

        assert (receipt.attempts, receipt.possible_duplicate, receipt.link) == (2, True, 1)
        assert trio.current_time() - began == pytest.approx(2.0)
        assert [each.message_id for each in driver.published] == [receipt.message_id] * 2
        assert producer.counters["resent"] == 1


async def test_the_policy_of_one_call_replaces_the_producer_s(autojump_clock: MockClock) -> None:
    """In each of the ways to publish; the messages beside it keep the producer's."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.tag in (1, 3, 4) else "ack"))
    async with open_producer(URL, driver=driver) as producer:
        receipt = await producer.publish(b"x", routing_key="tasks", retry=AGAIN)
        assert receipt.attempts == 2
        with pytest.raises(Nacked):
            await producer.publish(b"x", routing_key="tasks")
        (outcome,) = await producer.publish_many([b"x"], routing_key="tasks", retry=AGAIN)
        assert isinstance(outcome, Receipt)
        assert outcome.attempts == 2

    driver = ScriptedDriver(lives(answer=nack_once))
    async with open_producer(URL, driver=driver) as producer:
        handle = producer.publish_nowait(b"x", routing_key="tasks", retry=AGAIN)
        assert (await handle.wait()).attempts == 2
        for wrong in ("persistent", Backoff()):
            with pytest.raises(TypeError, match="retry must be a Retry"):
                await producer.publish(b"x", routing_key="tasks", retry=wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="retry must be a Retry"):
                producer.publish_nowait(b"x", routing_key="tasks", retry=wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="retry must be a Retry"):
                await producer.publish_many([b"x"], routing_key="tasks", retry=wrong)  # type: ignore[arg-type]


async def test_one_call_can_refuse_to_wait_and_another_can_wait(autojump_clock: MockClock) -> None:
    """With no link, and with an open breaker: each by its own policy."""
    driver = ScriptedDriver(refuses(), lives(dialing=3.0))
    breaker = Breaker(threshold=1, cooldown=1000)
    async with open_producer(URL, driver=driver, breaker=breaker, backoff_jitter=0) as producer:
        await trio.sleep(0.5)
        with pytest.raises(CircuitOpen):
            await producer.publish(b"x", routing_key="tasks")
        assert await publish(producer, retry=Retry.fire_and_confirm()) == "NotSent"
        assert await publish(producer, retry=Retry.persistent()) == "Receipt"


async def test_a_message_that_waits_after_a_nack_holds_up_no_other(autojump_clock: MockClock) -> None:
    """Others are written and confirmed at once, also with a window of one."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.envelope.routing_key == "full" else "ack"))
    async with open_producer(URL, driver=driver, retry=AGAIN, max_in_flight=1, breaker=None) as producer:
        producer.publish_nowait(b"x", routing_key="full", timeout=30)
        await trio.lowlevel.checkpoint()
        began = trio.current_time()
        for _ in range(20):
            await producer.publish(b"x", routing_key="tasks")
        assert trio.current_time() == began


async def test_nacks_open_the_breaker_of_the_destination_although_the_messages_wait(autojump_clock: MockClock) -> None:
    """A new message to the full queue is refused at once; the one that waits is written again, and closes it in the end."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.tag <= 3 else "ack"))
    async with open_producer(URL, driver=driver, retry=AGAIN, breaker_threshold=3) as producer:
        handle = producer.publish_nowait(b"x", routing_key="tasks", timeout=30)
        await trio.sleep(7)
        with pytest.raises(CircuitOpen, match="its destination"):
            await producer.publish(b"x", routing_key="tasks")
        assert (await handle.wait()).attempts == 4


async def test_a_probe_that_is_nacked_gives_its_permits_back(autojump_clock: MockClock) -> None:
    """The half-open breaker of the connection does not wait for the delay after a nack."""
    driver = ScriptedDriver(refuses(), lives(answer=lambda message: "nack" if message.tag == 1 else "ack"))
    policy = evolve(AGAIN, backoff=Backoff(initial=15, cap=15, jitter=0))
    breaker = Breaker(threshold=1, cooldown=0.1)
    async with open_producer(URL, driver=driver, retry=policy, breaker=breaker, backoff_jitter=0) as producer:
        await producer.wait_connected()
        assert producer.status().circuit_breaker == "half_open"
        probe = producer.publish_nowait(b"x", routing_key="full", timeout=30)
        await trio.sleep(0.1)
        assert not probe.settled
        assert await publish(producer) == "Receipt"
        await trio.sleep(0.1)
        assert producer.status().circuit_breaker == "closed"


async def test_a_cancelled_caller_hears_of_the_nack_later(autojump_clock: MockClock) -> None:
    """Its message is not written again."""
    driver = ScriptedDriver(lives(answer=nack))
    async with open_producer(URL, driver=driver, retry=AGAIN) as producer, producer.outcomes() as outcomes:
        with trio.move_on_after(1):
            await producer.publish(b"x", routing_key="tasks")
        async for outcome in outcomes:
            assert isinstance(outcome.result, Nacked)
            break
        await trio.sleep(10)
        assert len(driver.published) == 1


async def test_closing_drains_messages_that_wait_after_a_nack(autojump_clock: MockClock) -> None:
    """They have `drain_timeout`; then they end as nacked."""
    for timeout, told in ((10.0, "Receipt"), (1.0, "Nacked")):
        driver = ScriptedDriver(lives(answer=nack_once))
        async with open_producer(URL, driver=driver, retry=AGAIN, drain_timeout=timeout) as producer:
            handle = producer.publish_nowait(b"x", routing_key="tasks")
            await trio.sleep(0.1)
        try:
            outcome: object = await handle.wait()
        except PublishError as error:
            outcome = error
        assert type(outcome).__name__ == told


async def test_a_budget_is_shared_by_producers_and_what_it_forbids_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One token: the first producer spends it. Two nacks of the second one are told, in one line of the log."""
    budget = Budget(ratio=0, floor=0.1)
    policy = evolve(AGAIN, budget=budget)
    async with open_producer(URL, driver=ScriptedDriver(lives(answer=nack_once)), retry=policy) as producer:
        assert await publish(producer) == "Receipt"
    async with open_producer(URL, driver=ScriptedDriver(lives(answer=nack)), breaker=None) as producer:
        for _ in range(2):
            with pytest.raises(Nacked, match="the retry budget allows no further attempt") as caught:
                await producer.publish(b"x", routing_key="tasks", retry=policy)
            assert caught.value.cause == "suppressed"
        assert producer.counters["suppressed"] == 2
    lines = [record.getMessage() for record in caplog.records if "further attempts" in record.getMessage()]
    assert len(lines) == 1
    assert "1 further attempts were not made (1 since the start)" in lines[0]


# --- breakers of destinations ---------------------------------------------------------------------------------------------


async def refused(producer: Producer, routing_key: str, exchange: str = "") -> str:
    try:
        await producer.publish(b"x", exchange=exchange, routing_key=routing_key, timeout=20)
    except PublishError as error:
        return type(error).__name__
    return "Receipt"


async def test_a_rate_of_nacks_opens_a_destination_s_breaker(autojump_clock: MockClock) -> None:
    """Acks between the nacks do not set the count to 0."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.tag % 2 else "ack"))
    settings = {"breaker_threshold": 3, "breaker_rate": 0.5, "breaker_over": 10}
    async with open_producer(URL, driver=driver, **settings) as producer:  # type: ignore[arg-type]
        told = [await refused(producer, "tasks") for _ in range(6)]
        assert told == ["Nacked", "Receipt", "Nacked", "Receipt", "Nacked", "CircuitOpen"]
        assert await refused(producer, "others") != "CircuitOpen"


async def test_slow_confirms_open_a_destination_s_breaker(autojump_clock: MockClock) -> None:
    """Their publishers have their receipts; after the cooldown a probe that is fast again closes it."""
    latency = [3.0]
    driver = ScriptedDriver(lives())
    async with open_producer(
        URL, driver=driver, breaker=Breaker(threshold=2, cooldown=5, slow=1.0), stable_for=1
    ) as producer:
        await producer.wait_connected()
        driver.link.life = evolve(driver.link.life, latency=latency[0])
        assert [await refused(producer, "slow") for _ in range(3)] == ["Receipt", "Receipt", "CircuitOpen"]
        assert producer.status().open_destinations == ("the default exchange, routing key 'slow'",)
        driver.link.life = evolve(driver.link.life, latency=0.0)
        await trio.sleep(6)
        assert await refused(producer, "slow") == "Receipt"
        assert producer.status().open_destinations == ()


async def test_the_scope_of_a_breaker_can_be_the_exchange(autojump_clock: MockClock) -> None:
    """Nacks of all routing keys count together; another exchange goes on."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.envelope.exchange == "bad" else "ack"))
    async with open_producer(URL, driver=driver, breaker_threshold=2, breaker_scope="exchange") as producer:
        told = [await refused(producer, f"key {number}", "bad") for number in range(3)]
        assert told == ["Nacked", "Nacked", "CircuitOpen"]
        assert producer.status().open_destinations == ("exchange 'bad'",)
        assert await refused(producer, "key 0", "good") == "Receipt"
