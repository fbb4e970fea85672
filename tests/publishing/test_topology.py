"""Declarations on new and on live links, in virtual time: who may publish, and what the status shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import warrener
from warrener import Binding, ConnectionState, Exchange, Queue, TopologyMismatch, open_producer
from warrener.errors import Fault, FaultKind, SettingsError
from warrener.testing.scripted import ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"
EXCHANGE, BAD, GOOD = Exchange("events", "topic"), Queue("bad"), Queue("good")
BINDING = Binding(source="events", destination="good", routing_key="#")
TOPOLOGY = (EXCHANGE, BAD, GOOD, BINDING)
MISMATCH = Fault(FaultKind.TOPOLOGY, "PRECONDITION_FAILED - inequivalent arg", reply_code=406, entity="queue 'bad'")
UNKNOWN_TYPE = Fault(FaultKind.TOPOLOGY, "unknown exchange type 'topc'", reply_code=503, entity="exchange 'events'")
AWAY = Fault(FaultKind.CHANNEL_CLOSED, "NOT_FOUND - queue 'bad' is down or inaccessible", reply_code=404)


async def test_strict_tells_the_refusal_to_everybody(autojump_clock: MockClock) -> None:
    """Nobody publishes; the status, `wait_connected` and each publish name the declaration; a repair ends it."""
    driver = ScriptedDriver(lives(topology=MISMATCH), lives())
    async with open_producer(URL, driver=driver, topology=TOPOLOGY) as producer:
        with pytest.raises(warrener.NotSent) as told:
            await producer.publish(b"x", routing_key="good")
        assert (type(told.value), told.value.last_fault) == (warrener.NotSent, MISMATCH)
        assert str(told.value).endswith("remove the cause, then publish it again")
        with pytest.raises(TopologyMismatch) as raised:
            await producer.wait_connected()
        assert raised.value.entity == "queue 'bad'"
        status = producer.status()
        assert (status.last_fault, status.topology_fault, status.healthy) == (MISMATCH, MISMATCH, False)
        with pytest.raises(TopologyMismatch):
            await producer.declare(GOOD)
        await trio.sleep(20)
        assert producer.status().topology_fault is None
        await producer.wait_connected()
        assert (await producer.publish(b"x", routing_key="good")).link == 2


async def test_report_lets_everybody_publish_and_shows_the_refusal(autojump_clock: MockClock) -> None:
    """All other declarations are made; the mismatch stands in the status, and `wait_connected` raises it."""
    driver = ScriptedDriver(lives(topology=MISMATCH))
    async with open_producer(URL, driver=driver, topology=TOPOLOGY, topology_errors="report") as producer:
        receipt = await producer.publish(b"x", routing_key="good")
        assert receipt.link == 1
        assert driver.links[0].declared == [EXCHANGE, GOOD, BINDING]
        status = producer.status()
        assert (status.connection_state, status.topology_fault) == (ConnectionState.CONNECTED, MISMATCH)
        with pytest.raises(TopologyMismatch, match="inequivalent"):
            await producer.wait_connected()


async def test_report_asks_again_on_each_link(autojump_clock: MockClock) -> None:
    """What a new link accepts is refused no longer."""
    driver = ScriptedDriver(lives(20.0, topology=MISMATCH), lives())
    async with open_producer(URL, driver=driver, topology=TOPOLOGY, topology_errors="report") as producer:
        await trio.sleep(25)
        await producer.wait_connected()
        assert producer.status().topology_fault is None
        assert driver.links[1].declared == list(TOPOLOGY)


async def test_report_leaves_out_a_declaration_that_ends_the_link(autojump_clock: MockClock) -> None:
    """For an unknown exchange type the broker closes the connection: after one ordinary backoff all others publish."""
    driver = ScriptedDriver(lives(topology=UNKNOWN_TYPE))
    async with open_producer(URL, driver=driver, topology=TOPOLOGY, topology_errors="report") as producer:
        receipt = await producer.publish(b"x", routing_key="good")
        assert (receipt.link, trio.current_time() < 2) == (2, True)
        assert producer.status().topology_fault == UNKNOWN_TYPE
        with pytest.raises(TopologyMismatch):
            await producer.wait_connected()


@pytest.mark.parametrize("errors", ["strict", "report"])
async def test_a_declaration_that_is_away_for_a_moment_has_the_ordinary_backoff(
    errors: str, autojump_clock: MockClock
) -> None:
    """The node that holds a queue starts: the next dial comes after a second, and waiting messages go on waiting."""
    driver = ScriptedDriver(lives(topology=AWAY), lives())
    async with open_producer(URL, driver=driver, topology=TOPOLOGY, topology_errors=errors) as producer:  # type: ignore[arg-type]
        assert (await producer.publish(b"x", routing_key="good")).link == 2
        assert trio.current_time() < 2


async def test_runtime_declarations_are_made_again_on_each_link(autojump_clock: MockClock) -> None:
    """Remembered unless told otherwise; unbinding and deleting forget."""
    driver = ScriptedDriver(lives(20.0), lives(20.0), lives())
    async with open_producer(URL, driver=driver, topology=(EXCHANGE,)) as producer:
        assert await producer.declare(BINDING, GOOD) == ["good"]
        assert driver.links[0].declared == [EXCHANGE, GOOD, BINDING], "a queue before its binding"
        await producer.declare(Queue("once"), remember=False)
        other = Binding(source="events", destination=Exchange("more"))
        await producer.bind(other)
        await producer.declare(Queue("good", durable=False))
        await trio.sleep(25)
        assert driver.links[1].declared == [EXCHANGE, Queue("good", durable=False), BINDING, other]
        await producer.unbind(other)
        assert await producer.purge("good") == 0
        assert await producer.delete_queue("good") == 0
        await trio.sleep(25)
        assert driver.links[2].declared == [EXCHANGE]


async def test_a_refused_runtime_declaration_is_the_callers(autojump_clock: MockClock) -> None:
    """It raises there, is not remembered, and the link and its publishers do not notice."""
    driver = ScriptedDriver(lives(20.0, topology=MISMATCH), lives(topology=MISMATCH))
    async with open_producer(URL, driver=driver) as producer:
        with pytest.raises(TopologyMismatch) as raised:
            await producer.declare(GOOD, BAD)
        assert raised.value.fault is MISMATCH
        assert producer.status().topology_fault is None
        assert (await producer.publish(b"x", routing_key="good")).link == 1
        await trio.sleep(25)
        assert (await producer.publish(b"x", routing_key="good")).link == 2


async def test_a_runtime_declaration_waits_for_the_link(autojump_clock: MockClock) -> None:
    """As long as a publish would: `publish_timeout`."""
    driver = ScriptedDriver(refuses(), lives())
    async with open_producer(URL, driver=driver) as producer:
        assert await producer.declare(GOOD) == ["good"]
        assert driver.links[0].declared == [GOOD]
    async with open_producer(URL, driver=ScriptedDriver(refuses()), publish_timeout=3) as producer:
        began = trio.current_time()
        with pytest.raises(warrener.Unreachable, match="no connection within 3 s"):
            await producer.declare(GOOD)
        assert trio.current_time() - began == 3


async def test_a_repair_at_run_time_ends_the_report(autojump_clock: MockClock) -> None:
    """The declaration that was refused succeeds now."""
    driver = ScriptedDriver(lives(topology=MISMATCH))
    async with open_producer(URL, driver=driver, topology=TOPOLOGY, topology_errors="report") as producer:
        with pytest.raises(TopologyMismatch):
            await producer.wait_connected()
        driver.links[0].life = lives()
        await producer.declare(BAD)
        await producer.wait_connected()
        assert producer.status().topology_fault is None


async def test_one_server_named_queue_is_remembered(autojump_clock: MockClock) -> None:
    """A second one is the caller's to keep."""
    async with open_producer(URL, driver=ScriptedDriver(lives()), topology=(Queue.server_named(),)) as producer:
        with pytest.raises(SettingsError, match="remember=False"):
            await producer.declare(Queue.server_named())
        await producer.declare(Queue.server_named(), remember=False)


async def test_before_and_after_its_life_a_producer_declares_nothing(autojump_clock: MockClock) -> None:
    """The same errors as for a publish."""
    producer = warrener.Producer(URL, driver=ScriptedDriver(lives()))
    with pytest.raises(RuntimeError, match="not running"):
        await producer.declare(GOOD)
    async with producer:
        pass
    with pytest.raises(warrener.ProducerClosed):
        await producer.declare(GOOD)
