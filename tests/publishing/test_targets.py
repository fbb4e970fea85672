"""`Producer.to`: a destination and fields that many messages share."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from trio.testing import MockClock

import warrener
from warrener import InvalidMessage, Message, Producer, Receipt, Target, open_producer
from warrener.testing.scripted import ScriptedDriver

URL = "amqp://localhost/"

pytestmark = pytest.mark.trio


async def test_a_target_publishes_in_each_way(autojump_clock: MockClock) -> None:
    """One body, without waiting, and many: all to its destination, with its fields, each with an id of its own."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        target = producer.to(routing_key="q", type="t", headers={"a": 1})
        receipts = [await target.publish(b"0"), await target.publish_nowait(bytearray(b"1")).wait()]
        receipts += await target.publish_many([b"2", memoryview(b"3")])
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert [message.body for message in driver.published] == [b"0", b"1", b"2", b"3"]
    assert {message.envelope.routing_key for message in driver.published} == {"q"}
    assert all(message.envelope.type == "t" for message in driver.published)
    assert all(message.envelope.headers == {"a": 1} for message in driver.published)
    assert [message.message_id for message in driver.published] == [receipt.message_id for receipt in receipts]
    assert len({receipt.message_id for receipt in receipts}) == 4


async def test_a_target_keeps_its_fields(autojump_clock: MockClock) -> None:
    """The headers of the caller can change afterwards, at every depth."""
    driver = ScriptedDriver()
    inner: dict[str, Any] = {"a": 1}
    async with open_producer(URL, driver=driver) as producer:
        target = producer.to("", "q", headers={"inner": inner})
        inner["a"] = 2
        await target.publish(b"x")
    assert driver.published[0].envelope.headers == {"inner": {"a": 1}}


async def test_a_target_can_be_made_before_the_producer_runs(autojump_clock: MockClock) -> None:
    """It publishes as soon as the producer does; before that the error is that of `publish`."""
    producer = Producer(URL, driver=ScriptedDriver())
    target = producer.to(routing_key="q")
    with pytest.raises(RuntimeError, match="not running yet"):
        await target.publish(b"x")
    async with producer:
        assert isinstance(await target.publish(b"x"), Receipt)


@pytest.mark.parametrize("timeout", [None, -1.0, "1"])
async def test_a_timeout_is_checked(autojump_clock: MockClock, timeout: Any) -> None:
    """As that of `publish`."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        target = producer.to(routing_key="q")
        with pytest.raises((TypeError, ValueError)):
            await target.publish(b"x", timeout=timeout)
        with pytest.raises(warrener.DeadlineExceeded):
            await target.publish(b"x", timeout=0)


@pytest.mark.parametrize("fields", [{"priority": True}, {"routing_key": "x" * 256}, {"headers": {"a": object()}}])
async def test_the_fields_are_checked_at_once(fields: dict[str, Any]) -> None:
    """Before anything is published."""
    with pytest.raises(InvalidMessage):
        Producer(URL, driver=ScriptedDriver()).to(**fields)


async def test_a_target_takes_no_message_id() -> None:
    """Each message has its own."""
    untyped: Any = Producer(URL, driver=ScriptedDriver())
    with pytest.raises(TypeError, match="each message that is published to it has its own"):
        untyped.to(routing_key="q", message_id="m")


async def test_a_body_is_checked_at_each_publish(autojump_clock: MockClock) -> None:
    """A text is no body, and a `Message` has fields of its own."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        target: Any = producer.to(routing_key="q")
        with pytest.raises(InvalidMessage, match="body must be bytes"):
            await target.publish("text")
        with pytest.raises(TypeError, match="takes no other fields"):
            await target.publish(Message(b"x", routing_key="q"))


async def test_every_field_but_the_id_stands_in_the_signature() -> None:
    """Editors and help() show the keywords."""
    shown = inspect.signature(Producer.to).parameters
    assert set(inspect.signature(Message).parameters) - {"body", "message_id"} == set(shown) - {"self"}


async def test_its_repr_names_the_destination() -> None:
    """And the producer."""
    target = Producer(URL, driver=ScriptedDriver(), name="p").to("e", "k")
    assert repr(target) == "<Target exchange='e' routing_key='k' of 'p'>"
    assert isinstance(target, Target)
