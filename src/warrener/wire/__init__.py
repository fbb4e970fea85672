"""AMQP 0-9-1 from the client's side without I/O: octets in, facts out, octets to send.

`Session` is the way in; `facts` says what it tells. Nothing here awaits, logs, reads a clock or draws a random number.
"""

from warrener.wire import facts
from warrener.wire.codec import Malformed, Unsendable
from warrener.wire.facts import Breach, Confirms, Fact, Phase, Tuning
from warrener.wire.session import MECHANISMS, Session, negotiate_heartbeat, negotiate_limit

__all__ = [
    "MECHANISMS",
    "Breach",
    "Confirms",
    "Fact",
    "Malformed",
    "Phase",
    "Session",
    "Tuning",
    "Unsendable",
    "facts",
    "negotiate_heartbeat",
    "negotiate_limit",
]
