"""A refusal that time does not end: who is told, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import warrener
from warrener import Queue, open_producer
from warrener.errors import Fault, FaultKind
from warrener.testing.scripted import ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)
MISMATCH = Fault(FaultKind.TOPOLOGY, "PRECONDITION_FAILED", reply_code=406, entity="queue 'tasks'")


async def test_a_wrong_password_at_the_start_ends_what_waits_at_once(autojump_clock: MockClock) -> None:
    """Waiting and new publishes get the refusal and not a deadline; a dial that succeeds lets messages in again."""
    driver = ScriptedDriver(refuses(PASSWORD, dialing=0.5), lives())
    async with open_producer(URL, driver=driver) as producer:
        began = trio.current_time()
        for instant in (0.5, 0.5):
            with pytest.raises(warrener.NotSent) as caught:
                await producer.publish(b"x", routing_key="tasks")
            assert (type(caught.value), caught.value.last_fault) == (warrener.NotSent, PASSWORD)
            assert not caught.value.may_have_been_delivered
            assert trio.current_time() - began == instant
        await trio.sleep(70)
        receipt = await producer.publish(b"x", routing_key="tasks")
        assert receipt.link == 2


async def test_a_wrong_password_after_a_connection_lets_messages_wait(autojump_clock: MockClock) -> None:
    """A producer that was connected before keeps what it accepted until the deadline or the next connection."""
    driver = ScriptedDriver(lives(20.0), refuses(PASSWORD), lives())
    async with open_producer(URL, driver=driver) as producer:
        await trio.sleep(21)
        receipt = await producer.publish(b"x", routing_key="tasks", timeout=200)
        assert receipt.link == 3


async def test_a_refused_declaration_ends_what_waits_also_after_a_reconnect(autojump_clock: MockClock) -> None:
    """Nothing can be published while a declaration is refused, whether or not the producer was connected before."""
    driver = ScriptedDriver(lives(20.0), lives(topology=MISMATCH), lives())
    async with open_producer(URL, driver=driver, topology=(Queue("tasks"),)) as producer:
        await trio.sleep(20.1)
        with pytest.raises(warrener.NotSent) as caught:
            await producer.publish(b"x", routing_key="tasks")
        assert (type(caught.value), caught.value.last_fault) == (warrener.NotSent, MISMATCH)
        assert trio.current_time() < 22
        await trio.sleep(70)
        assert (await producer.publish(b"x", routing_key="tasks")).link == 3


async def test_a_refusal_gives_way_to_giving_up_and_to_closing(autojump_clock: MockClock) -> None:
    """With the last attempt the answer is `GaveUp`; a closing producer answers `ProducerClosed`."""
    backoff = warrener.Backoff(attempts=1)
    async with open_producer(URL, driver=ScriptedDriver(refuses(PASSWORD)), backoff=backoff) as producer:
        with pytest.raises(warrener.NotSent):
            await producer.publish(b"x", routing_key="tasks")
        await trio.sleep(100)
        with pytest.raises(warrener.GaveUp):
            await producer.publish(b"x", routing_key="tasks")
        await producer.aclose()
        with pytest.raises(warrener.ProducerClosed):
            await producer.publish(b"x", routing_key="tasks")
