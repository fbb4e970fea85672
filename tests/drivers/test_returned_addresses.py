"""A message that the broker returned is `Unroutable`, whatever characters its address and its id have."""

from __future__ import annotations

import logging

import anyio
import pytest

import warrener
from warrener import open_producer
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.anyio

#: The password of the embedded broker's user is among them: texts of the broker are masked, addresses are compared as they are.
_ODD = ("no-guest-here", "guest", "\n", "\0", "a\x1b[2Jb", "\u202e", "ü" * 127, "\U0001f40d")


@pytest.mark.parametrize("driver", ["aiormq", "native"])
async def test_odd_routing_keys_and_ids(driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """A Receipt for it would be a lie; what the log shows of it is one safe line without the password."""
    caplog.set_level(logging.WARNING, "warrener")
    with anyio.fail_after(60):
        async with (
            EmbeddedBroker() as broker,
            open_producer(broker.url.replace("127.0.0.1", "localhost"), driver=driver) as producer,
        ):
            for odd in _ODD:
                with pytest.raises(warrener.Unroutable) as caught:
                    await producer.publish(b"x", routing_key=odd)
                assert caught.value.routing_key == odd
                with pytest.raises(warrener.Unroutable):
                    await producer.publish(b"x", routing_key="nowhere", message_id=odd)
    assert "exchange '', routing key 'no-***-here'" in caplog.text
    for record in caplog.records:
        assert not set("\n\0\x1b\u202e") & set(record.getMessage())
        assert "guest" not in record.getMessage()
