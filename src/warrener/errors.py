"""The errors of the library: `Fault`, an error as a record, and the exceptions that users catch.

A *fault* is data: a driver makes it once, where it catches a foreign exception, and it travels as a value through events,
records and status. An *exception* is raised to a caller of the public API. Its text is one line: what happened, whether
the message can have reached a queue, and what to do.

Nothing here holds a password, a URL or a message body; text that came from a broker passes `printable` first.
"""

from __future__ import annotations

import enum
import unicodedata
from typing import Any

from attrs import field, frozen

__all__ = [
    "AuthenticationRefused",
    "BufferFull",
    "CircuitOpen",
    "ConnectError",
    "DeadlineExceeded",
    "Fault",
    "FaultKind",
    "GaveUp",
    "InvalidMessage",
    "Nacked",
    "NotSent",
    "ProducerClosed",
    "ProtocolMismatch",
    "PublishError",
    "PublishRefused",
    "SettingsError",
    "TLSRefused",
    "TopologyMismatch",
    "Unconfirmed",
    "Unreachable",
    "Unroutable",
    "VhostRefused",
    "WarrenerError",
    "connect_error",
    "printable",
]

#: Longest text from a broker that is kept anywhere; AMQP short strings have at most 255 bytes.
MAX_TEXT = 255
#: Replaces our password in a text from a broker.
MASKED = "***"


def printable(text: object, limit: int = MAX_TEXT) -> str:
    """Return text from a peer as one safe line of at most `limit` characters.

    Control, format (bidirectional marks among them), surrogate and unassigned characters are shown as escapes, so that
    a broker cannot forge log lines or move a terminal's cursor (docs/guarantees.md, "Text from the broker").
    """
    raw = text if isinstance(text, str) else repr(text)
    shown = "".join(
        char if unicodedata.category(char)[0] not in "CZ" or char == " " else char.encode("unicode_escape").decode()
        for char in raw[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class FaultKind(enum.Enum):
    """The closed set of causes; also the values of the metrics label `error_type`."""

    UNREACHABLE = "unreachable"
    """No connection: name resolution, refused, no route, timed out."""
    LOOKUP = "lookup"
    """The program's own `credentials` or `endpoints` raised, came too late, or gave an answer that cannot be used."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """The peer accepted and then did not finish the AMQP handshake within `connect_timeout`."""
    AUTHENTICATION = "authentication"
    VHOST = "vhost"
    """530 at connection.open: missing, down, forbidden, or a connection limit; AMQP has one code for all of them."""
    TLS = "tls"
    PROTOCOL = "protocol"
    """The peer does not speak AMQP 0-9-1, or its tuning cannot be used."""
    TOPOLOGY = "topology"
    """A declaration was refused: 403, 404, 405 or 406 while the topology was replayed."""
    CONNECTION_LOST = "connection_lost"
    """Reset, end of file or a write error on a link that had been opened."""
    CLOSED_BY_BROKER = "closed_by_broker"
    """The broker sent connection.close; `reply_code` says why."""
    SILENT = "silent"
    """Nothing was heard for two heartbeat intervals."""
    STALLED = "stalled"
    """A write did not finish within `write_stall_timeout`, or an inbound frame within `frame_timeout`."""
    CONFIRM_OVERDUE = "confirm_overdue"
    """Messages waited on the link, and nothing was confirmed for longer than `confirm_timeout`."""
    CHANNEL_CLOSED = "channel_closed"
    """The broker closed the channel, not the link; `reply_code` says why."""
    CHANNEL_STORM = "channel_storm"
    """The broker closed the main channel more than five times in ten seconds, without a cause that could be named."""
    ILLEGAL_FRAME = "illegal_frame"
    """The peer broke the protocol; nothing more was sent to it."""
    CLOSED = "closed"
    """The producer itself closed the link."""


_PERMANENT = frozenset(
    {FaultKind.AUTHENTICATION, FaultKind.VHOST, FaultKind.TLS, FaultKind.PROTOCOL, FaultKind.TOPOLOGY}
)


@frozen
class Fault:
    """An error as a record: made once, where an exception or a text from outside is caught; safe to log (no secrets, no control characters)."""

    kind: FaultKind
    #: One line, already `printable`: what happened, and what to do if that is known.
    text: str
    #: The AMQP reply code, if the broker gave one.
    reply_code: int | None = field(default=None, kw_only=True)
    #: The exchange, queue or binding that a `TOPOLOGY` fault is about, e.g. ``queue 'ml.embed'``.
    entity: str | None = field(default=None, kw_only=True)

    @property
    def permanent(self) -> bool:
        """Whether waiting does not help: credentials, vhost, TLS, protocol, topology."""
        return self.kind in _PERMANENT

    @property
    def orderly(self) -> bool:
        """Whether the broker announced the end (320 connection-forced: a shutdown or an operator), or we did."""
        return self.kind is FaultKind.CLOSED or (self.kind is FaultKind.CLOSED_BY_BROKER and self.reply_code == 320)

    def __str__(self) -> str:
        return self.text if self.reply_code is None else f"{self.text} [{self.reply_code}]"


class WarrenerError(Exception):
    """The base of every exception that this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args` alone, which a class with keyword arguments refuses.
        return _restored, (type(self), self.args, dict(vars(self)))


def _restored(kind: type[WarrenerError], args: tuple[Any, ...], attributes: dict[str, Any]) -> WarrenerError:
    """Make an exception anew from its parts: for pickle and copy."""
    error: WarrenerError = kind.__new__(kind, *args)
    error.args = args  # a subclass of OSError does not take them in __new__
    vars(error).update(attributes)
    return error


class SettingsError(WarrenerError, ValueError):
    """A setting is missing, unknown, out of range, or contradicts another; the text names it. Never shows a secret."""


# --- connecting -------------------------------------------------------------------------------------------------


class ConnectError(WarrenerError):
    """The broker cannot be reached or refuses this producer; `fault` says why."""

    fault: Fault

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)


class Unreachable(ConnectError):
    """No broker answered: a wrong host or port, a firewall, or a broker that is down. The producer dials again."""


class AuthenticationRefused(ConnectError):
    """The broker refused the credentials (403). Check user and password."""


class VhostRefused(ConnectError):
    """The broker refused the virtual host (530): it is missing, down, forbidden to this user, or at its limit."""


class TLSRefused(ConnectError):
    """The TLS handshake failed: an untrusted certificate, another host name, or no common version."""


class ProtocolMismatch(ConnectError):
    """The peer is not an AMQP 0-9-1 broker, or tunes the connection to values that cannot be used."""


class TopologyMismatch(ConnectError):
    """The broker refused a declaration: it exists with other arguments, or this user may not declare it."""

    @property
    def entity(self) -> str:
        """The exchange, queue or binding that could not be declared, e.g. ``queue 'ml.embed'``."""
        return self.fault.entity or "topology"


_CONNECT_ERRORS = {
    FaultKind.AUTHENTICATION: AuthenticationRefused,
    FaultKind.VHOST: VhostRefused,
    FaultKind.TLS: TLSRefused,
    FaultKind.PROTOCOL: ProtocolMismatch,
    FaultKind.TOPOLOGY: TopologyMismatch,
}


def connect_error(fault: Fault) -> ConnectError:
    """Return the exception that stands for `fault`: the class is chosen by its kind, `Unreachable` for the rest."""
    return _CONNECT_ERRORS.get(fault.kind, Unreachable)(fault)


# --- publishing -------------------------------------------------------------------------------------------------


class PublishError(WarrenerError):
    """A publish that ended without the broker's ack.

    Read `may_have_been_delivered` before you publish the message again: False means that this publish put it into no
    queue, True that a queue may hold it.
    """

    #: Whether a queue may hold the message: one value for each class; an `Unroutable` or `PublishRefused` may differ.
    may_have_been_delivered: bool = True
    #: "suppressed": a retry budget, or the share of the destination, has forbidden another attempt. None: nothing did.
    cause: str | None = None
    #: The end of the text: whether a queue may hold the message, and what to do.
    _advice: str = "a queue may hold it; publish it again only if a duplicate does no harm"

    def __init__(self, message_id: str, reason: str, *, last_fault: Fault | None = None) -> None:
        WarrenerError.__init__(self, message_id, reason)
        self.message_id = message_id
        self.reason = reason
        self.last_fault = last_fault

    def __str__(self) -> str:
        fault = f" (last fault: {self.last_fault})" if self.last_fault is not None else ""
        if not self.message_id:  # raised by `wait_connected`: no message is concerned
            return f"{self.reason}{fault}"
        return f"message {printable(self.message_id)}: {self.reason}{fault}; {self._advice}"


class Unroutable(PublishError):
    """The broker returned the message (`mandatory`), because no queue took it."""

    may_have_been_delivered = False
    _advice = "no queue took it; check the exchange, the routing key and the bindings, then publish it again"

    def __init__(
        self,
        message_id: str,
        reason: str,
        *,
        reply_code: int = 312,
        exchange: str = "",
        routing_key: str = "",
        may_have_been_delivered: bool = False,
    ) -> None:
        super().__init__(message_id, reason)
        self.reply_code = reply_code
        self.exchange = exchange
        self.routing_key = routing_key
        if may_have_been_delivered:  # an exchange of a plugin may return a message and deliver it later
            self.may_have_been_delivered = True
            self._advice = "a queue may hold it later; check the exchange and its type before you publish it again"


class Nacked(PublishError):
    """The broker refused responsibility (basic.nack), e.g. a full queue with ``x-overflow=reject-publish``.

    A refusal does not exclude storage: if the message was routed to several queues, another queue may hold it.
    """

    _advice = "another queue may hold it; publish it again later, with the same message_id"


class PublishRefused(PublishError):
    """The broker refused this message, or refuses its destination: 403, 404, 406 or 311.

    The refused attempt reached no queue. If an earlier attempt got no answer, that attempt may have reached one, and
    `may_have_been_delivered` is True.
    """

    may_have_been_delivered = False
    _advice = "it is in no queue; remove the cause, then publish it again"

    def __init__(
        self,
        message_id: str,
        reason: str,
        *,
        reply_code: int,
        reply_text: str,
        may_have_been_delivered: bool = False,
    ) -> None:
        super().__init__(message_id, reason)
        self.reply_code = reply_code
        self.reply_text = reply_text
        if may_have_been_delivered:
            self.may_have_been_delivered = True
            self._advice = (
                "a queue may hold it because of an earlier attempt; remove the cause, and publish it again only if a "
                "duplicate does no harm"
            )


class Unconfirmed(PublishError):
    """The message was written and no confirm came: it may or may not be in a queue."""


class NotSent(PublishError):
    """This publish did not put the message into any queue, so publishing it again cannot make a duplicate."""

    may_have_been_delivered = False
    _advice = "it was not sent, so no queue holds it; publish it again later"

    def __init__(self, message_id: str, reason: str, *, last_fault: Fault | None = None) -> None:
        super().__init__(message_id, reason, last_fault=last_fault)
        if last_fault is not None and last_fault.permanent and self._advice is NotSent._advice:
            self._advice = "it was not sent, so no queue holds it; remove the cause, then publish it again"


class CircuitOpen(NotSent):
    """The circuit breaker is open, or half-open without a free probe; `retry_after` is seconds."""

    def __init__(self, message_id: str, reason: str, *, retry_after: float, last_fault: Fault | None = None) -> None:
        super().__init__(message_id, reason, last_fault=last_fault)
        self.retry_after = retry_after


class BufferFull(NotSent):
    """The buffer was full, and no room came in time."""


class DeadlineExceeded(NotSent):
    """The deadline passed before the message was written."""


class ProducerClosed(NotSent):
    """The producer is closing or closed."""

    _advice = "it was not sent, so no queue holds it; publish it with another producer"


class GaveUp(NotSent, ConnectError):
    """The reconnect attempts are used up; after `reconnect()` or a restart the producer dials again."""

    _advice = "it was not sent, so no queue holds it; repair the broker, then call reconnect() or restart"

    def __init__(self, message_id: str, reason: str, *, last_fault: Fault | None = None) -> None:
        super().__init__(message_id, reason, last_fault=last_fault)
        self.fault = last_fault or Fault(FaultKind.UNREACHABLE, reason)


class InvalidMessage(NotSent, ValueError):
    """The message cannot be put into AMQP frames, or exceeds a limit; the text names the field."""

    _advice = "it was not sent, so no queue holds it; correct the message"
