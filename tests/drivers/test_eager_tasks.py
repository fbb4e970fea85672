"""An asyncio program may use `asyncio.eager_task_factory`: each task then begins inside of the call that makes it.

The factory came with Python 3.12. On Python 3.11 the tests run without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from warrener import AuthenticationRefused, Queue, Receipt, open_producer
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.parametrize("driver", ["aiormq", "native"])


def run_eagerly(main: Callable[[EmbeddedBroker], Awaitable[None]]) -> None:
    async def run() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", None))
        with anyio.fail_after(60):
            async with EmbeddedBroker() as broker:
                await main(broker)

    asyncio.run(run())


def test_a_producer_lives_on_a_loop_that_starts_tasks_eagerly(driver: str) -> None:
    """It publishes from tasks of anyio and of asyncio, outlives its connection, and closes in order."""

    async def main(broker: EmbeddedBroker) -> None:
        async with open_producer(broker.url, driver=driver, topology=(Queue("q"),)) as producer:

            async def publish(number: int) -> Any:
                return await producer.publish(b"%d" % number, routing_key="q")

            receipts = await asyncio.gather(*(publish(number) for number in range(20)))
            assert all(isinstance(receipt, Receipt) for receipt in receipts)
            broker.drop_connections()
            async with anyio.create_task_group() as tasks:
                for number in range(20, 40):
                    tasks.start_soon(publish, number)
        assert producer.counters["confirmed"] == 40

    run_eagerly(main)


def test_a_refused_login_is_raised_on_a_loop_that_starts_tasks_eagerly(driver: str) -> None:
    """The link that is not opened leaves no task behind."""

    async def main(broker: EmbeddedBroker) -> None:
        before = asyncio.all_tasks()
        with pytest.raises(AuthenticationRefused):
            async with open_producer(broker.url.replace("guest:guest", "guest:wrong"), driver=driver) as producer:
                await producer.wait_connected()
        while asyncio.all_tasks() != before:  # the broker ends its side
            await asyncio.sleep(0)

    run_eagerly(main)
