"""Bad messages beside good ones through a broker's own texts, on both drivers: no link is lost, and nothing good fails."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest

import warrener
from warrener import Binding, Exchange, Producer, PublishRefused, Queue, Receipt, open_producer
from warrener.testing import EmbeddedBroker, FaultProxy

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

GOOD: dict[str, Any] = {"exchange": "work", "routing_key": "q"}
TOPOLOGY = (Exchange("work"), Queue("q"), Binding(source="work", destination="q", routing_key="q"))


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker.in_thread(delayed_messages=True) as broker:
        yield broker


@pytest.fixture(params=["native", "aiormq"])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


async def outcome(producer: Producer, into: list[Any], **fields: Any) -> None:
    """Publish one message, and note how it ended."""
    try:
        into.append(await producer.publish(b"x", **fields))
    except warrener.PublishError as error:
        into.append(error)


@pytest.mark.parametrize(
    "kind", ["missing", "each another", "forbidden", "default exchange", "user_id", "each another user_id"]
)
async def test_bad_ones_beside_good_ones(broker: EmbeddedBroker, driver: Any, kind: str) -> None:
    """Two hundred bad messages, two at a time: each is refused by name, and no good one is written more than three times."""
    fields: dict[str, dict[str, Any]] = {
        "missing": {"exchange": "missing", "routing_key": "q"},
        "each another": {"exchange": "missing-{}", "routing_key": "q"},
        "forbidden": {"exchange": "forbidden", "routing_key": "q"},
        "default exchange": {"routing_key": "q"},
        "user_id": {**GOOD, "user_id": "mallory"},
        "each another user_id": {**GOOD, "user_id": "mallory-{}"},
    }
    broker.declare_exchange("forbidden")
    good: list[Any] = []
    bad: list[Any] = []
    async with open_producer(broker.url, driver=driver, topology=TOPOLOGY) as producer:
        await producer.publish(b"first", **GOOD)
        broker.set_permissions("guest", write="^(?!forbidden$|amq.default$)")
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(partial(outcome, producer, good, **GOOD))
                for half in range(2):
                    filled = {
                        name: value.format(2 * number + half) if name in ("exchange", "user_id") else value
                        for name, value in fields[kind].items()
                    }
                    tasks.start_soon(partial(outcome, producer, bad, **filled))
                await anyio.sleep(0.002)
        assert producer.status().link == 1
        counters = producer.counters
    assert {type(each) for each in good} == {Receipt}
    assert max(each.attempts for each in good) <= 3
    assert {(type(each), each.reply_code) for each in bad} == {
        (
            PublishRefused,
            {"missing": 404, "each another": 404, "forbidden": 403, "default exchange": 403}.get(kind, 406),
        )
    }
    assert counters["accepted"] == counters["confirmed"] + counters["rejected"] + counters["unknown"]


async def test_an_exchange_of_a_plugin_returns_and_delivers_all_the_same(broker: EmbeddedBroker, driver: Any) -> None:
    """Its return is not certain, and the message is in the queue later."""
    arguments = {"x-delayed-type": "direct"}
    later = Exchange("later", "x-delayed-message", arguments=arguments)
    topology = (later, Queue("q"), Binding(source="later", destination="q", routing_key="q"))
    async with open_producer(broker.url, driver=driver, topology=topology) as producer:
        with pytest.raises(warrener.Unroutable) as caught:
            await producer.publish(b"x", exchange="later", routing_key="q", headers={"x-delay": 50})
        assert caught.value.may_have_been_delivered
        with anyio.fail_after(10):
            while not broker.messages("q"):
                await anyio.sleep(0.02)


async def test_a_message_that_takes_longer_than_confirm_timeout_arrives(broker: EmbeddedBroker, driver: Any) -> None:
    """2 MiB at 1 MiB a second with a confirm_timeout of half a second, and a small one behind it: one link, one attempt."""
    async with FaultProxy(broker.url) as proxy:
        url = proxy.url
        async with open_producer(url, driver=driver, topology=TOPOLOGY, confirm_timeout=0.5) as producer:
            await producer.wait_connected()
            proxy.bandwidth(2**20)
            handles = [producer.publish_nowait(body, **GOOD) for body in (bytes(2**21), b"small")]
            receipts = [await handle.wait() for handle in handles]
            assert [(receipt.attempts, receipt.link) for receipt in receipts] == [(1, 1), (1, 1)]
