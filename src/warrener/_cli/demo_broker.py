"""The demo's broker: a private RabbitMQ where RabbitMQ is installed, else the embedded broker.

The embedded broker dies by a simulated power cut in place of a SIGKILL.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from warrener.testing.broker import EmbeddedBroker
from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQMissing, rabbitmq_bin

__all__ = ["DemoBroker", "open_broker", "rabbitmq_is_missing"]


class DemoBroker(Protocol):
    """The faults that the demo needs; the calls block."""

    @property
    def url(self) -> str:
        """The address, with credentials."""
        ...

    def kill(self) -> None:
        """End the broker without warning."""
        ...

    def start(self) -> None:
        """Start the broker again; return when it accepts connections."""
        ...

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the alarm that blocks publishers."""
        ...


class _Embedded:
    """The embedded broker in a thread of its own."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.url = broker.url

    def kill(self) -> None:
        self._broker.crash()

    def start(self) -> None:
        self._broker.restart()

    def memory_alarm(self, on: bool) -> None:
        self._broker.alarm(on)


def rabbitmq_is_missing() -> bool:
    """Return whether RabbitMQ is not installed here."""
    try:
        rabbitmq_bin()
    except RabbitMQMissing:
        return True
    return False


@contextmanager
def open_broker(*, embedded: bool) -> Iterator[DemoBroker]:
    """Start the broker, and print in one line which broker it is."""
    if embedded:
        # A sync every 0.2 s delays the confirms, as a disk does: some messages must be in flight when the broker dies.
        with EmbeddedBroker.in_thread(rng=random.Random(), sync_interval=0.2) as broker:
            print(f"Broker: the embedded broker of warrener, on port {broker.port}", flush=True)
            yield _Embedded(broker)
    else:
        with PrivateRabbitMQ() as broker:
            print(f"Broker: a private RabbitMQ on port {broker.port}", flush=True)
            yield broker
