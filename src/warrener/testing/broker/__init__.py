"""An AMQP 0-9-1 broker inside the process, for tests, demos and simulation. Not for production.

`_codec` frames strictly, `_timers` keeps time, `_confirms` coalesces acks, `_model` holds queues and exchanges, `_protocol`
is one connection without I/O, `_channel` one channel, `_server` serves all of it over TCP or in memory and has the controls.
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
