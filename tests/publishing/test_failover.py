"""Several endpoints: failing over, going back, and handing over, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import warrener
from warrener import open_producer
from warrener.errors import Fault, FaultKind
from warrener.testing.scripted import Published, ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URLS = ["amqp://localhost:1/", "amqp://localhost:2/", "amqp://localhost:3/"]
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)


def ports(driver: ScriptedDriver) -> list[int]:
    return [endpoint.port for endpoint in driver.endpoints]


def silence(_message: Published) -> str:
    return "silence"


async def test_a_pass_tries_every_endpoint_before_it_waits(autojump_clock: MockClock) -> None:
    """Three dials at once, and the first delay comes only after the third."""
    driver = ScriptedDriver(refuses(), refuses(), refuses(), lives())
    async with open_producer(URLS, driver=driver, endpoint_order="ordered") as producer:
        await producer.wait_connected()
        assert ports(driver) == [1, 2, 3, 1]
        assert driver.dials[0] == driver.dials[2] < driver.dials[3]
        assert producer.status().endpoint == "amqp://localhost:1/"


async def test_a_message_goes_to_the_next_endpoint(autojump_clock: MockClock) -> None:
    """What was unknown when a broker died is sent again at another one, and the status names that one."""
    driver = ScriptedDriver(lives(20.0, answer=silence), lives())
    async with open_producer(URLS, driver=driver, endpoint_order="ordered") as producer:
        receipt = await producer.publish(b"x", routing_key="tasks")
        assert (receipt.link, receipt.possible_duplicate) == (2, True)
        assert ports(driver) == [1, 2]
        assert producer.status().endpoint == "amqp://localhost:2/"


async def test_a_shutdown_costs_no_delay(autojump_clock: MockClock) -> None:
    """320 leads to another endpoint in the same instant."""
    driver = ScriptedDriver(lives(20.0, end=SHUTDOWN), lives())
    async with open_producer(URLS, driver=driver, endpoint_order="ordered") as producer:
        await producer.publish(b"x", routing_key="tasks")
        await trio.sleep(20)
        await trio.testing.wait_all_tasks_blocked()
        assert ports(driver) == [1, 2]
        assert driver.dials[1] - driver.dials[0] == 20.0


async def test_one_refusal_for_good_does_not_hide_the_other_endpoints(autojump_clock: MockClock) -> None:
    """Publishes wait while one endpoint may still answer, and fail when every endpoint refuses the password."""
    mixed = ScriptedDriver(refuses(PASSWORD), refuses(), lives())
    async with open_producer(URLS[:2], driver=mixed, endpoint_order="ordered") as producer:
        assert (await producer.publish(b"x", routing_key="tasks")).link == 3
    async with open_producer(URLS[:2], driver=ScriptedDriver(refuses(PASSWORD))) as producer:
        with pytest.raises(warrener.AuthenticationRefused):
            await producer.wait_connected()
        with pytest.raises(warrener.NotSent):
            await producer.publish(b"x", routing_key="tasks")


async def test_a_hand_over_makes_nothing_unknown(autojump_clock: MockClock) -> None:
    """What is in flight is confirmed on the old link, what comes meanwhile is written on the new one, nothing twice."""
    driver = ScriptedDriver(lives(latency=3.0), lives())
    async with open_producer(URLS, driver=driver, endpoint_order="ordered") as producer, trio.open_nursery() as nursery:
        await producer.wait_connected()
        receipts: list[warrener.Receipt] = []

        async def publish() -> None:
            receipts.append(await producer.publish(b"x", routing_key="tasks"))

        nursery.start_soon(publish)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        nursery.start_soon(producer.hand_over)
        await trio.testing.wait_all_tasks_blocked()
        await publish()
        assert trio.current_time() - began == 3.0
        assert [(receipt.link, receipt.attempts) for receipt in receipts] == [(1, 1), (2, 1)]
        assert ports(driver) == [1, 2]


async def test_a_hand_over_waits_no_longer_than_the_drain(autojump_clock: MockClock) -> None:
    """A message without a confirm by then is sent again at the next endpoint, flagged."""
    driver = ScriptedDriver(lives(answer=silence), lives())
    async with open_producer(URLS, driver=driver, endpoint_order="ordered") as producer, trio.open_nursery() as nursery:
        await producer.wait_connected()
        began = trio.current_time()

        @nursery.start_soon
        async def publish() -> None:
            receipt = await producer.publish(b"x", routing_key="tasks")
            assert (receipt.link, receipt.possible_duplicate) == (2, True)

        await trio.testing.wait_all_tasks_blocked()
        assert await producer.hand_over(2)
        assert trio.current_time() - began == 10.0
        assert ports(driver) == [1, 3]


async def test_a_hand_over_is_ignored_where_it_makes_no_sense(autojump_clock: MockClock) -> None:
    """An endpoint that is not in the list, a producer without a link, one that does not run."""
    async with open_producer(URLS, driver=ScriptedDriver(lives())) as producer:
        await producer.wait_connected()
        assert not await producer.hand_over(3)
    async with open_producer(URLS, driver=ScriptedDriver(refuses())) as producer:
        assert not await producer.hand_over()
    with pytest.raises(RuntimeError):
        await warrener.Producer(URLS[0]).hand_over()


async def test_the_first_endpoint_is_preferred_again(autojump_clock: MockClock) -> None:
    """With ``prefer="first"`` the producer goes back after `stable_for`, doubled for each failure of the first one."""
    driver = ScriptedDriver(refuses(), lives(), refuses(), lives(), lives())
    async with open_producer(URLS[:2], driver=driver, endpoint_order="ordered", prefer="first") as producer:
        for _ in range(70):
            await producer.publish(b"x", routing_key="tasks")
            await trio.sleep(1)
        assert ports(driver) == [1, 2, 1, 2, 1]
        assert [round(at - driver.dials[0]) for at in driver.dials] == [0, 0, 20, 20, 60]
        assert len(driver.published) == 70
