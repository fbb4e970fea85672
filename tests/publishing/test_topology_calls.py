"""`declare`, `bind`, `unbind`, `purge` and `delete_queue` of a producer, against a broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from warrener import Binding, Exchange, Queue, TopologyMismatch, Unroutable, open_producer
from warrener.testing import EmbeddedBroker

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker.in_thread() as broker:
        yield broker


@pytest.fixture(params=["native", "aiormq"])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_a_route_is_made_used_and_taken_down(broker: EmbeddedBroker, driver: Any) -> None:
    """Through two exchanges into a queue, on one live link, while messages are published."""
    async with open_producer(broker.url, driver=driver) as producer:
        route = Binding(source="front", destination=Exchange("back"), routing_key="#")
        names = await producer.declare(
            route,
            Binding(source="back", destination="q", routing_key="a.*"),
            Queue("q"),
            Exchange("back", "topic"),
            Exchange("front", "topic"),
        )
        assert names == ["q"]
        await producer.publish(b"1", exchange="front", routing_key="a.b")
        assert await producer.purge("q") == 1
        await producer.publish(b"2", exchange="front", routing_key="a.b")
        await producer.unbind(route)
        with pytest.raises(Unroutable):
            await producer.publish(b"3", exchange="front", routing_key="a.b")
        assert broker.messages("q") == [b"2"]
        assert await producer.delete_queue("q") == 1
        assert producer.status().link == 1


async def test_a_refusal_leaves_the_link_as_it_was(broker: EmbeddedBroker, driver: Any) -> None:
    """The mismatch is the caller's, and names the queue; a publish beside it does not notice."""
    broker.declare_queue("q")
    async with open_producer(broker.url, driver=driver) as producer:
        with pytest.raises(TopologyMismatch) as caught:
            await producer.declare(Queue("new"), Queue("q", durable=False))
        assert caught.value.entity == "queue 'q'"
        receipt = await producer.publish(b"1", routing_key="new")
        assert (receipt.link, receipt.attempts) == (1, 1)
        assert await producer.declare(Queue("q")) == ["q"]


async def test_a_server_named_queue_is_there_while_the_link_lives(broker: EmbeddedBroker, driver: Any) -> None:
    """Its name is returned, a binding in the same call leads to it, and it is gone with the link."""
    queue = Queue.server_named()
    topology = (Exchange("x", "fanout"), queue, Binding(source="x", destination=queue))
    async with open_producer(broker.url, driver=driver, topology=topology) as producer:
        await producer.publish(b"1", exchange="x")
        (name,) = await producer.declare(Queue.server_named(), remember=False)
        assert name
        await producer.publish(b"2", routing_key=name)
        assert len(broker.queues()) == 2
    assert broker.queues() == {}


async def test_report_publishes_beside_a_refused_declaration(broker: EmbeddedBroker, driver: Any) -> None:
    """The declarations behind the refused one are made as well."""
    broker.declare_queue("bad")
    topology = (Queue("before"), Queue("bad", durable=False), Queue("after"))
    async with open_producer(broker.url, driver=driver, topology=topology, topology_errors="report") as producer:
        await producer.publish(b"1", routing_key="before")
        await producer.publish(b"1", routing_key="after")
        with pytest.raises(TopologyMismatch) as caught:
            await producer.wait_connected()
        assert caught.value.entity == "queue 'bad'"
        assert producer.status().link == 1


async def test_report_publishes_beside_an_unknown_type_of_exchange(broker: EmbeddedBroker, driver: Any) -> None:
    """The broker closes the connection because of it: the next link does without that exchange."""
    topology = (Exchange("bad", "no-such-type"), Queue("q"))
    settings: Any = {"topology_errors": "report", "backoff_initial": 0.1, "breaker": None}
    async with open_producer(broker.url, driver=driver, topology=topology, **settings) as producer:
        receipt = await producer.publish(b"1", routing_key="q")
        assert receipt.link == 2
        fault = producer.status().topology_fault
        assert fault is not None
        assert (fault.entity, fault.reply_code) == ("exchange 'bad'", 503)


async def test_a_return_is_matched_although_its_key_holds_the_password(broker: EmbeddedBroker, driver: Any) -> None:
    """Texts of the broker are masked where they are shown; the address of a return is compared as it is."""
    async with open_producer(broker.url, driver=driver) as producer:
        for key in ("guest.nowhere", "line\nend"):
            with pytest.raises(Unroutable):
                await producer.publish(b"x", routing_key=key)
