"""Several things at one instant: ends of `run()`, waiters that leave, permits that no longer count, readers, entering."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import warrener
from warrener import Backoff, Breaker, ConnectionState, Producer, open_producer
from warrener.machine import events
from warrener.testing.scripted import Published, ScriptedDriver, lives, refuses

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"


def silence(_message: Published) -> str:
    """A broker that never answers."""
    return "silence"


# --- however run() ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [refuses(), lives()])
async def test_a_cancelled_run_reaches_closed_whatever_its_tasks_post_last(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, script: warrener.testing.scripted.Life
) -> None:
    """The retry timer fires when the loop of `run()` has ended already, and begins a link that no task will run."""
    producer = Producer(URL, driver=ScriptedDriver(script), backoff=Backoff(initial=10, jitter=0))
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await trio.testing.wait_all_tasks_blocked()
        supervisor = producer._supervisor
        assert supervisor is not None
        leave = supervisor._end_time

        def fire() -> None:
            leave()
            supervisor.post(events.RetryTimerFired(supervisor.record.link, at=trio.current_time()))

        monkeypatch.setattr(supervisor, "_end_time", fire)
        nursery.cancel_scope.cancel()
    assert producer.connection_state is ConnectionState.CLOSED
    assert (await producer.aclose()).unconfirmed == ()


# --- capacity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", ["cancelled", "deadline"])
async def test_a_waiter_that_leaves_lets_in_the_one_behind_it(autojump_clock: MockClock, leaving: str) -> None:
    """60 of 100 bytes are taken: 80 bytes do not fit and wait at the head; 10 bytes behind them do."""
    driver = ScriptedDriver(refuses())
    async with (
        open_producer(URL, driver=driver, max_buffered_bytes=100, breaker=None, max_block=5.0) as producer,
        trio.open_nursery() as nursery,
    ):
        producer.publish_nowait(b"x" * 60, routing_key="q", timeout=1000)
        scope = trio.CancelScope()

        async def large() -> None:
            with scope:
                try:
                    await producer.publish(b"x" * 80, routing_key="q", timeout=1 if leaving == "deadline" else 1000)
                except warrener.DeadlineExceeded:
                    pass

        async def small() -> None:
            with pytest.raises(warrener.ProducerClosed):
                await producer.publish(b"x" * 10, routing_key="q", timeout=1000)

        nursery.start_soon(large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(small)
        await trio.testing.wait_all_tasks_blocked()
        assert producer.status().buffered == 1
        if leaving == "cancelled":
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        else:
            await trio.sleep(1.5)
        assert producer.status().buffered == 2
        producer.publish_nowait(b"x", routing_key="q", timeout=1000)
        producer.abort()


# --- permits ----------------------------------------------------------------------------------------------------------


async def test_a_permit_of_an_old_generation_counts_for_nothing(autojump_clock: MockClock) -> None:
    """A probe whose link dies asks anew on the next link: one probe at a time, and its ack closes the breaker."""
    driver = ScriptedDriver(lives(20.0), lives(5.0, answer=silence), lives(latency=3.0))
    async with open_producer(
        URL, driver=driver, backoff=Backoff(jitter=0), breaker=Breaker(threshold=1, cooldown=300)
    ) as producer:
        await trio.sleep(19.5)
        producer.publish_nowait(b"before", routing_key="q")
        await trio.sleep(0.25)
        driver.link.listener.blocked("memory")
        await trio.testing.wait_all_tasks_blocked()
        handles = [producer.publish_nowait(b"%d" % number, routing_key="q", timeout=600) for number in range(3)]
        await trio.sleep(2)  # link 2 is up, and the breaker half open: the first message is the probe
        assert producer.status().circuit_breaker == "half_open"
        assert [message.body for message in driver.links[1].published] == [b"0"]
        await trio.sleep(7)  # link 2 died under the probe, link 3 is up
        assert (producer.status().link, producer.status().circuit_breaker) == (3, "half_open")
        assert [message.body for message in driver.links[2].published] == [b"0"]
        for handle in handles:
            await handle.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert producer.status().circuit_breaker == "closed"


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aclose", "abort"])
@pytest.mark.parametrize("opened", ["before", "after"])
async def test_changes_of_a_producer_that_never_ran_end_at_closed(
    autojump_clock: MockClock, how: str, opened: str
) -> None:
    """Closed before `run()`: the stream says CLOSED and ends, whenever it was opened."""
    producer = Producer(URL, driver=ScriptedDriver())

    async def close() -> None:
        if how == "aclose":
            await producer.aclose()
        else:
            producer.abort()

    if opened == "after":
        await close()
    with trio.fail_after(10):
        async with producer.changes() as changes, producer.outcomes() as outcomes:
            if opened == "before":
                await close()
            states = [status.connection_state.value async for status in changes]
            assert [outcome async for outcome in outcomes] == []
    assert states == (["DISCONNECTED", "CLOSED"] if opened == "before" else ["CLOSED"])


async def test_an_aborted_producer_does_not_run(autojump_clock: MockClock) -> None:
    """`abort()` before `run()` closes it for good, as `aclose()` does."""
    producer = Producer(URL, driver=ScriptedDriver())
    producer.abort()
    assert producer.connection_state is ConnectionState.CLOSED
    with pytest.raises(RuntimeError, match="closed before it ran"):
        await producer.run()


@pytest.mark.parametrize("name", ["changes", "outcomes"])
async def test_a_second_reader_of_one_stream_is_refused(autojump_clock: MockClock, name: str) -> None:
    """One of two readers would starve."""
    async with (
        open_producer(URL, driver=ScriptedDriver(lives())) as producer,
        getattr(producer, name)() as stream,
        trio.open_nursery() as nursery,
    ):
        await producer.wait_connected()

        async def read() -> None:
            async for _ in stream:
                pass

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another task reads this stream"):
            await anext(stream)
        nursery.cancel_scope.cancel()


# --- waiting for the link ---------------------------------------------------------------------------------------------


async def test_wait_connected_waits_until_the_broker_takes_publishes(autojump_clock: MockClock) -> None:
    """Up but blocked is not enough."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        driver.link.listener.blocked("memory")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(warrener.Unreachable, match="blocked publishers for 5 s"):
            await producer.wait_connected(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(producer.wait_connected)
            await trio.testing.wait_all_tasks_blocked()
            driver.link.listener.unblocked()


# --- entering ---------------------------------------------------------------------------------------------------------


async def test_a_producer_runs_around_a_body_by_itself(autojump_clock: MockClock) -> None:
    """`async with Producer(url)` is what `open_producer` is the short form of: it drains, and raises without a group."""
    async with Producer(URL, driver=ScriptedDriver(lives(latency=1.0))) as producer:
        handle = producer.publish_nowait(b"x", routing_key="q")
    assert handle.settled
    assert producer.connection_state is ConnectionState.CLOSED
    with pytest.raises(KeyError, match="mine"):
        async with Producer(URL, driver=ScriptedDriver()):
            raise KeyError("mine")


async def test_entering_twice_is_a_runtime_error(autojump_clock: MockClock) -> None:
    """While the first body runs, after it, and beside a `run()` of its own."""
    producer = Producer(URL, driver=ScriptedDriver())
    async with producer:
        with pytest.raises(RuntimeError, match=r"make (another|a new) Producer"):
            async with producer:
                pytest.fail("entered twice")
        await producer.publish(b"x", routing_key="q")
    with pytest.raises(RuntimeError, match=r"make (another|a new) Producer"):
        async with producer:
            pytest.fail("entered twice")
    other = Producer(URL, driver=ScriptedDriver())
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run)
        with pytest.raises(RuntimeError, match=r"make (another|a new) Producer"):
            async with other:
                pytest.fail("entered beside run()")
        await other.aclose()


async def test_an_error_of_run_before_it_started_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    """No group, and nothing about task_status."""

    class Broken(ScriptedDriver):
        def open(self, *_arguments: object) -> object:  # type: ignore[override]
            raise OSError("no file descriptor is free")

    with pytest.raises(OSError, match="no file descriptor"):
        async with open_producer(URL, driver=Broken()):
            await trio.sleep(math.inf)
