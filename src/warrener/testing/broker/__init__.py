"""An AMQP 0-9-1 broker inside the process, for tests, demos and simulation. Not for production.

`codec` is strict framing, `timers` time, `confirms` the coalescing of acks, `model` what a broker keeps, `protocol` one
connection without I/O, `server` the whole over TCP or in memory, with the controls.
"""

from warrener.testing.broker.confirms import Coalescing, EveryBatch, RandomCoalescing
from warrener.testing.broker.model import Enqueued
from warrener.testing.broker.protocol import Phase, Tuning, Violation
from warrener.testing.broker.server import Client, EmbeddedBroker, Ended, ProtocolViolated

__all__ = [
    "Client",
    "Coalescing",
    "EmbeddedBroker",
    "Ended",
    "Enqueued",
    "EveryBatch",
    "Phase",
    "ProtocolViolated",
    "RandomCoalescing",
    "Tuning",
    "Violation",
]
