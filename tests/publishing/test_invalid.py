"""A message that can never be sent is refused when it is made or published, whatever the connection does."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio

import warrener
from warrener import InvalidMessage, open_producer
from warrener.testing.scripted import ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"


@pytest.mark.parametrize("driver", [ScriptedDriver(refuses()), ScriptedDriver(lives())], ids=["away", "up"])
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"x", {"headers": {"a": object()}}),
        (b"x", {"headers": {"a": {1: 2}}}),
        (b"x", {"mandatory": None}),
        (b"x" * 2000, {}),
    ],
    ids=["header", "nested header", "flag", "body that never fits"],
)
async def test_it_is_invalid_at_once(
    driver: ScriptedDriver, body: bytes, fields: dict[str, Any], autojump_clock: MockClock
) -> None:
    """InvalidMessage in the same instant, from each way of publishing, and no fault of the link is quoted."""
    async with open_producer(URL, driver=driver, max_buffered_bytes=1000) as producer:
        await trio.sleep(0.5)
        called = trio.current_time()
        with pytest.raises(InvalidMessage) as caught:
            await producer.publish(body, routing_key="tasks", **fields)
        assert caught.value.last_fault is None
        assert not caught.value.may_have_been_delivered
        with pytest.raises(InvalidMessage):
            producer.publish_nowait(body, routing_key="tasks", **fields)
        (outcome,) = await producer.publish_many([body], routing_key="tasks", **fields)
        assert isinstance(outcome, InvalidMessage)
        assert trio.current_time() == called


async def test_a_uuid_is_welcome_as_an_id(autojump_clock: MockClock) -> None:
    """The receipt has it as text, and so has the wire."""
    key = uuid.uuid4()
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver) as producer:
        receipt = await producer.publish(memoryview(b"x"), routing_key="tasks", message_id=key, correlation_id=key)
    assert receipt.message_id == str(key) == driver.published[0].message_id
    assert driver.published[0].envelope.correlation_id == str(key)


async def test_gave_up_is_caught_as_a_connect_error(autojump_clock: MockClock) -> None:
    """Who waits for the connection needs one `except`."""
    async with open_producer(URL, driver=ScriptedDriver(refuses()), backoff_attempts=1) as producer:
        with pytest.raises(warrener.ConnectError) as caught:
            await producer.wait_connected()
    assert isinstance(caught.value, warrener.GaveUp)
    assert caught.value.fault.kind is warrener.FaultKind.UNREACHABLE
