"""What a broker can add to the log is bounded, and the log says how much was left out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from warrener import open_producer
from warrener.records import Returned
from warrener.testing.scripted import ScriptedDriver, lives

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio


async def test_blocked_and_unblocked_thousands_of_times(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ones are logged, the others are counted; the last state is still the true one."""
    caplog.set_level(logging.INFO, "warrener")
    driver = ScriptedDriver(lives())
    async with open_producer("amqp://localhost/", driver=driver) as producer:
        await producer.wait_connected()
        listener = driver.link.listener
        for _ in range(3_000):
            listener.blocked("low on memory")
            await trio.sleep(0.0001)
            listener.unblocked()
            await trio.sleep(0.0001)
        assert len(caplog.records) <= 40
        await trio.sleep(10)
        listener.blocked("low on memory")
        await trio.sleep(1)
        assert producer.status().blocked
        listener.unblocked()
        await trio.sleep(1)
        assert not producer.status().blocked
    assert "the broker blocked publishing 2990 more times" in caplog.text
    assert "blocked and unblocked 5990 more times" in caplog.text


async def test_returned_thousands_of_times(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Ten returned messages are logged in ten seconds, the others are counted."""
    driver = ScriptedDriver(lives())
    async with open_producer("amqp://localhost/", driver=driver) as producer:
        await producer.wait_connected()
        returned = Returned(312, "NO_ROUTE", "", "nowhere", "id", None, 1)
        for _ in range(3_000):
            driver.link.listener.returned(1, returned)
        assert len(caplog.records) <= 10
        await trio.sleep(10)
        driver.link.listener.returned(1, returned)
    assert "2990 more returned messages were not logged one by one" in caplog.text
