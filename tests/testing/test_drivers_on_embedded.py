"""The conformance suite of the drivers, all of it, with the embedded broker in RabbitMQ's place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.test_conformance import *  # noqa: F403 - every test of it, and its fixtures
from warrener.testing import EmbeddedBroker

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Stand:
    """An embedded broker under the names that `PrivateRabbitMQ` has for its controls."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.port, self.url = broker.port, broker.url
        self.add_user, self.delete_user = broker.add_user, broker.delete_user
        self.add_vhost, self.delete_vhost = broker.add_vhost, broker.delete_vhost
        self.set_permissions, self.clear_permissions = broker.set_permissions, broker.clear_permissions
        self.freeze, self.thaw = broker.freeze, broker.thaw
        self.kill, self.start, self.stop = broker.crash, broker.restart, broker.stop
        self.memory_alarm, self.queues = broker.alarm, broker.queues
        self._broker = broker

    def close_all_connections(self, reason: str) -> None:
        """End every connection with a 320."""
        self._broker.close_all_connections(320, reason)

    def connection_count(self) -> int:
        """How many clients there are."""
        return len(self._broker.clients)


@pytest.fixture
def rabbitmq() -> Iterator[Stand]:
    """What the suite takes for RabbitMQ."""
    with EmbeddedBroker.in_thread() as broker:
        yield Stand(broker)
