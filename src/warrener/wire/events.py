"""The events of a session, in the order in which they happened; confirms and returns are calls of a `ConfirmHandler`."""

from __future__ import annotations

import enum
from typing import Protocol, TypeAlias

from attrs import field, frozen

from warrener.records import Returned

__all__ = [
    "Blocked",
    "ChannelClosed",
    "ChannelOpened",
    "CloseReceived",
    "Closed",
    "ConfirmHandler",
    "Event",
    "GetResult",
    "Opened",
    "ProtocolError",
    "ProtocolErrorKind",
    "Refused",
    "Replied",
    "SecretUpdated",
    "SessionPhase",
    "Tuned",
    "Tuning",
    "Unblocked",
]


class SessionPhase(enum.Enum):
    """How far a session has come."""

    STARTING = "starting"
    """The protocol header is out; connection.start is due."""
    AUTHENTICATING = "authenticating"
    """connection.start-ok is out; connection.tune is due, or a refusal of the credentials."""
    OPENING = "opening"
    """connection.open is out; open-ok is due, or a refusal of the virtual host."""
    OPEN = "open"
    CLOSING = "closing"
    """Our connection.close is out; close-ok is due."""
    OVER = "over"
    """Closed by either side, or broken. Only a close-ok that already waits to be sent may follow."""


class ConfirmHandler(Protocol):
    """Takes confirms and returns: at once, in wire order, by plain calls that neither block nor raise."""

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.ack; 0 < tag <= the last tag assigned on the channel."""

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.nack, with the same bounds."""

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return, when its content is complete."""


@frozen
class Tuning:
    """What both sides agreed on."""

    product: str
    version: str
    mechanism: str
    #: Seconds; 0 is off.
    heartbeat: int
    frame_max: int
    channel_max: int


@frozen
class Tuned:
    """connection.tune-ok is on its way: heartbeats are due from now on."""

    tuning: Tuning


@frozen
class Opened:
    """The virtual host is open."""


@frozen
class ChannelOpened:
    """A publishing channel is in confirm mode."""

    channel: int


@frozen
class ChannelClosed:
    """The broker closed a publishing channel; close-ok is on its way."""

    channel: int
    reply_code: int
    reply_text: str
    #: The highest tag that was written, and the highest that was begun.
    written: int
    begun: int


@frozen
class Replied:
    """The broker has carried out a request: the oldest one that had no answer."""

    #: The queue's name, where a queue was declared.
    queue: str = ""
    #: How many messages a purge or a deletion removed.
    messages: int = 0


@frozen
class GetResult:
    """basic.get answered: a body, or None where the queue was empty or the body beyond `max_inbound_body`."""

    body: bytes | None = field(repr=False)
    #: The bytes of the body; None where the queue was empty.
    size: int | None


@frozen
class Refused:
    """The broker closed the control channel because of the first request without an answer; no other is answered."""

    reply_code: int
    reply_text: str


@frozen
class Blocked:
    """The broker asks not to publish, on the whole connection or on a publishing channel."""

    reason: str


@frozen
class Unblocked:
    """Publishing is allowed again: each request to stop was taken back, or its channel was closed."""


@frozen
class SecretUpdated:
    """The broker took the new secret."""


@frozen
class CloseReceived:
    """The broker closed the connection; close-ok is on its way, and nothing after it."""

    reply_code: int
    reply_text: str
    #: When it came: a 403 while AUTHENTICATING is about the credentials.
    phase: SessionPhase
    #: The method that the broker blames, as class and method id in one number; 0 for none.
    method: int = 0


@frozen
class Closed:
    """Our own close is complete."""


class ProtocolErrorKind(enum.Enum):
    """Why a peer cannot be talked to any more."""

    NOT_AMQP = "not amqp"
    """Its first bytes are not a frame; `ProtocolError.bytes` has up to eight of them."""
    NO_MECHANISM = "no mechanism"
    """It offers no login mechanism that is allowed; `ProtocolError.text` lists those that it offers."""
    UNUSABLE = "unusable"
    """It keeps to the protocol, and asks for something that this client cannot do."""
    ILLEGAL = "illegal"
    """It broke the protocol."""


@frozen
class ProtocolError:
    """The peer cannot be talked to any more; not one byte follows."""

    kind: ProtocolErrorKind
    text: str
    data: bytes = b""


Event: TypeAlias = (
    Tuned | Opened | ChannelOpened | ChannelClosed | Replied | GetResult | Refused | Blocked | Unblocked | SecretUpdated
    | CloseReceived | Closed | ProtocolError
)  # fmt: skip
