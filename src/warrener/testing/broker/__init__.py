"""An AMQP 0-9-1 broker inside the process, for tests, demos and simulation. Not for production.

`codec` is strict framing, `timers` time, `confirms` the coalescing of acks, `model` what a broker keeps, `protocol` one
connection without I/O, `server` the whole over TCP or in memory, with the controls.
"""

from warrener.testing.broker._confirms import Coalescing, EveryBatch, RandomCoalescing
from warrener.testing.broker._model import Enqueued
from warrener.testing.broker._protocol import ConnectionPhase, Tuning, Violation
from warrener.testing.broker._server import Client, EmbeddedBroker, Ended, ProtocolViolated

__all__ = [
    "Client",
    "Coalescing",
    "ConnectionPhase",
    "EmbeddedBroker",
    "Ended",
    "Enqueued",
    "EveryBatch",
    "ProtocolViolated",
    "RandomCoalescing",
    "Tuning",
    "Violation",
]
