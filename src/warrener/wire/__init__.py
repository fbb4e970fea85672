"""AMQP 0-9-1 from the client's side without I/O: bytes in, facts out, bytes to send.

`Session` is the way in; `facts` says what it tells. Nothing here awaits, logs, reads a clock or draws a random number.
"""

from warrener.wire import events
from warrener.wire.codec import Malformed, Unsendable
from warrener.wire.events import Confirms, Event, Phase, ProtocolErrorKind, Tuning
from warrener.wire.session import MECHANISMS, Session, negotiate_heartbeat, negotiate_limit

__all__ = [
    "MECHANISMS",
    "Confirms",
    "Event",
    "Malformed",
    "Phase",
    "ProtocolErrorKind",
    "Session",
    "Tuning",
    "Unsendable",
    "events",
    "negotiate_heartbeat",
    "negotiate_limit",
]
