"""AMQP 0-9-1 from the client's side without I/O: bytes in, events out, bytes to send.

`Session` is the way in; `events` says what it reports. Nothing here awaits, logs, reads a clock or draws a random number.
"""

from warrener.wire import events, requests
from warrener.wire.codec import Malformed, Unsendable
from warrener.wire.events import ConfirmHandler, Event, ProtocolErrorKind, SessionPhase, Tuning
from warrener.wire.session import MECHANISMS, Session, negotiate_heartbeat, negotiate_limit

__all__ = [
    "MECHANISMS",
    "ConfirmHandler",
    "Event",
    "Malformed",
    "ProtocolErrorKind",
    "Session",
    "SessionPhase",
    "Tuning",
    "Unsendable",
    "events",
    "negotiate_heartbeat",
    "negotiate_limit",
    "requests",
]
