"""The whole reconnect sequence, in virtual time: script in, history out."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import warrener
from warrener import Backoff, Breaker, ConnectionState, Producer
from warrener.errors import Fault, FaultKind
from warrener.machine import events
from warrener.testing.scripted import ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"
WRONG_PASSWORD = Fault(FaultKind.AUTHENTICATION, "the broker refused the password", reply_code=403)
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "the broker shuts down", reply_code=320)


def steady(**settings: object) -> dict[str, object]:
    """Settings of a producer that draws its delays without rng."""
    return {"backoff": Backoff(jitter=0.0, cap=60, attempts=10), **settings}


async def dials_until(driver: ScriptedDriver, seconds: float, **settings: object) -> list[float]:
    """Run a producer for so many virtual seconds; return when it dialed, counted from the start."""
    start = trio.current_time()
    with trio.move_on_after(seconds):
        await Producer(URL, driver=driver, **settings).run()
    return [round(at - start, 6) for at in driver.dials]


async def test_a_broker_that_is_absent_at_start_is_dialed_by_the_documented_sequence(autojump_clock: MockClock) -> None:
    """Eleven dials: at once, then after 1, 2, 4, 8, 16, 32 and four times 60 s; then none."""
    dials = await dials_until(ScriptedDriver(refuses()), 2000.0, **steady())

    assert dials == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0, 303.0]


async def test_after_a_loss_there_are_ten_dials(autojump_clock: MockClock) -> None:
    """A link that was proven healthy and is lost is dialed ten times before the producer gives up."""
    dials = await dials_until(ScriptedDriver(lives(20.0), refuses()), 2000.0, **steady())

    assert dials == [0.0] + [20.0 + after for after in (1, 3, 7, 15, 31, 63, 123, 183, 243, 303)]


async def test_accept_then_drop_does_not_spin(autojump_clock: MockClock) -> None:
    """A broker that accepts each dial and drops it before health was proven gets the backoff of a failed dial."""
    dials = await dials_until(ScriptedDriver(lives(0.5)), 60.0, **steady())

    assert dials == [0.0, 1.5, 4.0, 8.5, 17.0, 33.5]


async def test_giving_up_fails_what_waits_and_says_why(autojump_clock: MockClock) -> None:
    """When the attempts are used up, a waiting publish ends GaveUp at once, and health names the fault."""
    producer = Producer(URL, driver=ScriptedDriver(refuses()), **steady(breaker=None, publish_timeout=math.inf))
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        start = trio.current_time()
        with pytest.raises(warrener.GaveUp) as caught:
            await producer.publish(b"x", routing_key="tasks")
        assert round(trio.current_time() - start, 6) == 303.0
        assert caught.value.last_fault is not None
        status = producer.status()
        assert (status.connection_state, status.reconnect_attempts) == (ConnectionState.DISCONNECTED, 10)
        with pytest.raises(warrener.GaveUp):
            await producer.publish(b"y", routing_key="tasks")
        await producer.aclose()


async def test_a_hint_revives_a_producer_that_gave_up(autojump_clock: MockClock) -> None:
    """`reconnect()` dials at once after giving up, is heeded once a second, and does nothing on a live link."""
    driver = ScriptedDriver(*[refuses()] * 2, lives())
    producer = Producer(URL, driver=driver, backoff=Backoff(jitter=0.0, attempts=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await trio.sleep(5)
        assert producer.status().connection_state is ConnectionState.DISCONNECTED
        assert producer.reconnect()
        assert not producer.reconnect()
        await producer.wait_connected()
        assert not producer.reconnect()
        receipt = await producer.publish(b"x", routing_key="tasks")
        assert receipt.link == 3
        await producer.aclose()


async def test_when_exhausted_raise_ends_run_with_a_bare_connect_error(autojump_clock: MockClock) -> None:
    """With ``when_exhausted="raise"`` run() raises the last fault's error, not a group."""
    producer = Producer(
        URL, driver=ScriptedDriver(refuses()), backoff=Backoff(jitter=0, attempts=2), when_exhausted="raise"
    )

    with pytest.raises(warrener.Unreachable):
        await producer.run()
    assert producer.connection_state is ConnectionState.CLOSED


async def test_a_refusal_that_time_does_not_mend_is_surfaced_at_once_and_dialed_slowly(
    autojump_clock: MockClock,
) -> None:
    """A wrong password: `wait_connected` raises at once, and the next dial comes after the cap."""
    driver = ScriptedDriver(refuses(WRONG_PASSWORD))
    producer = Producer(URL, driver=driver, **steady())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        with pytest.raises(warrener.AuthenticationRefused):
            await producer.wait_connected()
        start = driver.dials[0]
        await trio.sleep(130)
        assert [round(at - start, 6) for at in driver.dials] == [0.0, 60.0, 120.0]
        nursery.cancel_scope.cancel()


async def test_wait_connected_has_a_deadline(autojump_clock: MockClock) -> None:
    """`wait_connected(timeout)` raises Unreachable quoting the last fault."""
    producer = Producer(URL, driver=ScriptedDriver(refuses()), **steady())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        with pytest.raises(warrener.Unreachable, match=r"within 5 s; last fault: the scripted dial was refused"):
            await producer.wait_connected(timeout=5)
        nursery.cancel_scope.cancel()


async def test_the_breaker_opens_after_five_failures_and_half_opens_after_its_cooldown(
    autojump_clock: MockClock,
) -> None:
    """Five failed dials open it; publishes then fail fast; after 30 s one probe may wait for the link."""
    driver = ScriptedDriver(*[refuses()] * 8, lives())
    producer = Producer(URL, driver=driver, backoff=Backoff(jitter=0.0, factor=1.0), breaker=Breaker(cooldown=2.5))
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await trio.sleep(4.5)
        assert producer.status().circuit_breaker == "open"
        before = trio.current_time()
        with pytest.raises(warrener.CircuitOpen) as caught:
            await producer.publish(b"x", routing_key="tasks")
        assert trio.current_time() == before
        assert 0 < caught.value.retry_after <= 2.5
        await producer.wait_connected()
        receipt = await producer.publish(b"probe", routing_key="tasks")
        assert receipt.attempts == 1
        await trio.testing.wait_all_tasks_blocked()  # the supervisor is told in the same tick as the publisher
        assert producer.status().circuit_breaker == "closed"
        await producer.aclose()


async def test_an_orderly_shutdown_of_the_broker_is_no_failure(autojump_clock: MockClock) -> None:
    """A 320 from the broker reconnects with backoff but does not count in the breaker."""
    producer = Producer(URL, driver=ScriptedDriver(lives(20.0, end=SHUTDOWN), lives()), **steady())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await trio.sleep(20.5)
        assert producer.status().consecutive_failures == 0
        await producer.wait_connected()
        await producer.aclose()


async def test_a_link_lost_in_the_step_that_brought_it_up_is_told_in_order(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What the opened sender writes asks the breaker, and so empties the mailbox: after the step, not in its middle."""
    caplog.set_level(logging.INFO, "warrener")
    driver = ScriptedDriver(refuses(), lives())
    producer = Producer(URL, name="p", driver=driver, breaker=Breaker(threshold=1, cooldown=1000), **steady())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        supervisor = producer._supervisor
        assert supervisor is not None
        post = supervisor.post

        def post_a_loss_right_behind(event: events.Event) -> None:
            post(event)
            if isinstance(event, events.TopologyRestored):
                post(events.LinkLost(event.link, Fault(FaultKind.CONNECTION_LOST, "gone"), at=event.at))

        supervisor.post = post_a_loss_right_behind  # type: ignore[method-assign]
        producer.publish_nowait(b"x", routing_key="tasks")
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()

    told = [record.getMessage() for record in caplog.records]
    up, lost = "p: restoring -> up (link 2)", "p: up -> waiting (link 2): gone; next attempt in 2 s"
    assert told.index(up) < told.index(lost)


async def test_the_log_tells_a_life(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each change, in words: what was, what is, why, and what comes next."""
    caplog.set_level(logging.INFO, "warrener")
    driver = ScriptedDriver(lives(5.0, end=SHUTDOWN), refuses(), lives(latency=1.0))
    producer = Producer(URL, name="p", driver=driver, **steady())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await trio.sleep(9)
        producer.publish_nowait(b"x", routing_key="tasks")
        driver.link.listener.blocked("memory")
        await trio.testing.wait_all_tasks_blocked()
        driver.link.listener.unblocked()
        await producer.aclose()

    assert [record.getMessage() for record in caplog.records] == [
        "p: idle -> dialing (link 1)",
        "p: dialing -> restoring (link 1)",
        "p: restoring -> up (link 1)",
        "p: up -> waiting (link 1): the broker shuts down [320]; next attempt in 1 s",
        "p: waiting -> dialing (link 2)",
        "p: dialing -> waiting (link 2): the scripted dial was refused; next attempt in 2 s",
        "p: waiting -> dialing (link 3)",
        "p: dialing -> restoring (link 3)",
        "p: restoring -> up (link 3)",
        "p: the broker blocks publishing: memory",
        "p: up -> up (blocked) (link 3)",
        "p: the broker takes publishes again",
        "p: up (blocked) -> up (link 3)",
        "p: up, closing when accepted messages have their outcome (link 3)",
        "p: up -> closing (link 3)",
        "p: closing -> closed (link 3)",
    ]


async def test_the_dials_of_one_process_share_a_limit(autojump_clock: MockClock) -> None:
    """Of twenty producers, eight dial at once; a dial that waits for its turn has all of its `connect_timeout` left."""
    driver = ScriptedDriver(lives(dialing=9.0))
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        producers = [Producer(URL, driver=driver, connect_timeout=10.0) for _ in range(20)]
        for producer in producers:
            await nursery.start(producer.run)
        for producer in producers:
            await producer.wait_connected()
        assert [round(at - began) for at in driver.dials] == [0] * 8 + [9] * 8 + [18] * 4
        assert sum(producer.counters["dials_failed"] for producer in producers) == 0
        nursery.cancel_scope.cancel()


async def test_a_dial_that_waits_for_its_turn_can_be_cancelled(autojump_clock: MockClock) -> None:
    """Closing a producer does not wait for other producers' dials, and gives its place to the next one."""
    driver = ScriptedDriver(lives(dialing=5.0))
    async with trio.open_nursery() as nursery:
        producers = [Producer(URL, driver=driver) for _ in range(10)]
        for producer in producers:
            await nursery.start(producer.run)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await producers[8].aclose()
        assert trio.current_time() == began
        await producers[9].wait_connected()
        assert trio.current_time() - began == 10.0
        nursery.cancel_scope.cancel()
