"""The values that users give and get: messages, receipts, endpoints, status. Frozen, without I/O, clock or rng."""

from __future__ import annotations

import enum
import ipaddress
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Literal, NoReturn, Self, TypeAlias, TypedDict, cast

from attrs import field, frozen

from warrener._ids import new_message_id
from warrener._properties import (
    SHORT_STRINGS,
    FieldValue,
    Unsendable,
    checked_table,
    why_not_short,
    why_not_timestamp,
)
from warrener.errors import Fault, InvalidMessage, PublishError, printable

__all__ = [
    "Body",
    "ClosingReport",
    "ConnectionState",
    "Credentials",
    "Endpoint",
    "Envelope",
    "FieldValue",
    "Lane",
    "Mechanism",
    "Message",
    "MessageFields",
    "OutboxStatus",
    "Outcome",
    "Receipt",
    "Returned",
    "Status",
    "Stored",
]

#: A body of a message; a mutable one is copied.
Body: TypeAlias = bytes | bytearray | memoryview


class ConnectionState(enum.Enum):
    """The five states that users and the health endpoint see; the machine's own states are finer."""

    DISCONNECTED = "DISCONNECTED"
    CONNECTING = "CONNECTING"
    CONNECTED = "CONNECTED"
    CLOSING = "CLOSING"
    CLOSED = "CLOSED"


#: How a producer logs in: by user and password (PLAIN, AMQPLAIN), or by the client's TLS certificate (EXTERNAL).
Mechanism: TypeAlias = Literal["PLAIN", "AMQPLAIN", "EXTERNAL"]


@frozen
class Credentials:
    """A user and a password or token; neither is ever shown."""

    username: str = field(repr=False)
    password: str = field(repr=False)
    #: Seconds for which the password is valid, from the instant of the answer that holds it; None: without an end.
    expires_in: float | None = field(default=None, eq=False, kw_only=True)


@frozen
class Endpoint:
    """One broker address with its credentials. Its text shows host, port and vhost, and nothing secret."""

    host: str = "localhost"
    port: int = 5672
    vhost: str = "/"
    credentials: Credentials = field(default=Credentials("guest", "guest"), repr=False)
    tls: bool = False
    #: PEM files for `tls`: the authorities to trust instead of the system's, and the client's certificate and key.
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = field(default=None, repr=False)
    #: The passphrase of an encrypted key file.
    keyfile_password: str | None = field(default=None, repr=False)
    #: The name that the broker's certificate must have, where it is not `host`.
    server_hostname: str | None = None
    #: The login mechanism; None: the client's certificate where there is no user name, else user and password.
    mechanism: Mechanism | None = None
    #: A Unix socket to connect to in place of host and port.
    socket_path: str | None = None

    @property
    def local(self) -> bool:
        """Whether the address is on this machine by its very text: a Unix socket, localhost, a loopback address.

        A name is not resolved to find out: what it resolves to may change between the question and the connection.
        """
        if self.socket_path is not None or self.host.lower() in ("localhost", "localhost."):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        where = self.socket_path or (f"[{self.host}]" if ":" in self.host else self.host) + f":{self.port}"
        return f"{'amqps' if self.tls else 'amqp'}://{where}/{'' if self.vhost == '/' else self.vhost}"


@frozen(eq=False)
class Envelope:
    """The fields that many messages share: all but the body, the message_id and the token.

    Compared by identity, so that a driver may keep the marshalled frames of an envelope it has seen; the producer hands
    equal publishes the same envelope.
    """

    exchange: str = ""
    routing_key: str = ""
    mandatory: bool = True
    headers: Mapping[str, FieldValue] | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    delivery_mode: int = 2
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    #: Integer milliseconds as text, as the wire wants them.
    expiration: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None

    @classmethod
    def of(cls, message: Message) -> Self:
        """Return the envelope of a message, with a copy of its headers: those of a message can be changed."""
        return cls(
            exchange=message.exchange,
            routing_key=message.routing_key,
            mandatory=message.mandatory,
            headers=_checked_headers(message.message_id, message.headers) if message.headers else None,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            delivery_mode=2 if message.persistent else 1,
            priority=message.priority,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            expiration=None if message.expiration is None else _milliseconds(message.expiration),
            timestamp=message.timestamp,
            type=message.type,
            user_id=message.user_id,
            app_id=message.app_id,
        )


def _checked_headers(message_id: str, headers: object) -> dict[str, FieldValue]:
    try:
        return checked_table(headers)
    except Unsendable as error:
        raise InvalidMessage(message_id, str(error)) from None


def _milliseconds(seconds: float) -> str:
    # "0" means: drop it unless a consumer is ready. Only 0 itself becomes that.
    return str(max(1, round(seconds * 1000)) if seconds else 0)


class TargetFields(TypedDict, total=False):
    """The fields of `Message` that a `Target` has beside its destination, as keywords of `Producer.to`."""

    headers: Mapping[str, FieldValue] | None
    content_type: str | None
    content_encoding: str | None
    priority: int | None
    expiration: float | None
    correlation_id: str | uuid.UUID | None
    reply_to: str | None
    type: str | None
    app_id: str | None
    user_id: str | None
    timestamp: datetime | None
    persistent: bool
    mandatory: bool


class MessageFields(TargetFields, total=False):
    """The fields of `Message` but its body, as keywords of `Producer.publish`."""

    exchange: str
    routing_key: str
    message_id: str | uuid.UUID | None


def _is_plain(value: object) -> bool:
    """Whether the value is certainly a short string of AMQP; most are."""
    return type(value) is str and len(value) <= 255 and value.isascii()


@frozen(init=False, slots=False)
class Message:
    """One message to publish, checked when it is made: `InvalidMessage` for a value that AMQP cannot carry.

    It keeps nothing mutable of the caller's: a `bytearray` or `memoryview` and the headers are copied.
    """

    body: bytes = field(repr=lambda body: f"<{len(body)} bytes>")
    exchange: str
    routing_key: str
    headers: Mapping[str, FieldValue] = field(repr=lambda headers: f"<{len(headers)}>")
    content_type: str | None
    content_encoding: str | None
    #: 0 to 255; RabbitMQ advises at most 10.
    priority: int | None
    #: Seconds until the broker may drop the message; the wire gets whole milliseconds as text.
    expiration: float | None
    #: Unique unless given; stays the same when a message is sent again.
    message_id: str
    correlation_id: str | None
    reply_to: str | None
    type: str | None
    app_id: str | None
    #: Must equal the user of the connection, or RabbitMQ refuses the message (406).
    user_id: str | None
    timestamp: datetime | None
    #: Kept on disk by durable queues (delivery mode 2).
    persistent: bool
    #: Have the broker return what no queue takes, instead of confirming and dropping it.
    mandatory: bool

    # Written by hand: attrs' `__init__` costs more than twice as much, and `publish_many` of messages needs one each.
    def __init__(
        self,
        body: Body,
        *,
        exchange: str = "",
        routing_key: str = "",
        headers: Mapping[str, FieldValue] | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        priority: int | None = None,
        expiration: float | None = None,
        message_id: str | uuid.UUID | None = None,
        correlation_id: str | uuid.UUID | None = None,
        reply_to: str | None = None,
        type: str | None = None,  # noqa: A002 - the name of the property
        app_id: str | None = None,
        user_id: str | None = None,
        timestamp: datetime | None = None,
        persistent: bool = True,
        mandatory: bool = True,
    ) -> None:
        values: dict[str, object] = {
            "body": body,
            "exchange": exchange,
            "routing_key": routing_key,
            "headers": {},
            "content_type": content_type,
            "content_encoding": content_encoding,
            "priority": priority,
            "expiration": expiration,
            "message_id": new_message_id() if message_id is None else message_id,
            "correlation_id": correlation_id,
            "reply_to": reply_to,
            "type": type,
            "app_id": app_id,
            "user_id": user_id,
            "timestamp": timestamp,
            "persistent": persistent,
            "mandatory": mandatory,
        }
        object.__setattr__(self, "__dict__", values)
        # Most messages have a routing key, a body, perhaps an id, and nothing else; they need no further checks.
        if not (
            body.__class__ is bytes
            and _is_plain(routing_key)
            and (exchange == "" or _is_plain(exchange))
            and (message_id is None or _is_plain(message_id))
            and headers is None
            and content_type is None
            and content_encoding is None
            and priority is None
            and expiration is None
            and correlation_id is None
            and reply_to is None
            and type is None
            and app_id is None
            and user_id is None
            and timestamp is None
            and persistent.__class__ is mandatory.__class__ is bool
        ):
            self._check(values, headers)

    def _check(self, values: dict[str, object], headers: object) -> None:
        for name in ("message_id", "correlation_id"):
            if values[name].__class__ is uuid.UUID:
                values[name] = str(values[name])
        if not isinstance(self.message_id, str):
            raise InvalidMessage("?", f"message_id must be str or UUID, not {type(self.message_id).__name__}")
        if isinstance(values["body"], bytearray | memoryview):
            values["body"] = bytes(cast("bytearray | memoryview", values["body"]))
        if not isinstance(self.body, bytes):
            self._refuse(f"body must be bytes, not {type(self.body).__name__}")
        for name in SHORT_STRINGS:
            value = values[name]
            if not (_is_plain(value) or (value is None and name not in ("exchange", "routing_key"))):
                self._check_short_string(name, value)
        self._check_numbers(values)
        if self.timestamp is not None:
            if not isinstance(self.timestamp, datetime):
                self._refuse(f"timestamp must be a datetime, not {type(self.timestamp).__name__}")
            if why_not := why_not_timestamp(self.timestamp):
                self._refuse(f"timestamp {why_not}")
        if headers is not None:
            values["headers"] = _checked_headers(self.message_id, headers)

    def _check_numbers(self, values: dict[str, object]) -> None:
        for name in ("persistent", "mandatory"):
            if not isinstance(values[name], bool):
                self._refuse(f"{name} must be True or False, not {printable(values[name], 60)}")
        if self.priority is not None and not (type(self.priority) is int and 0 <= self.priority <= 255):
            self._refuse("priority must be an integer from 0 to 255")
        if self.expiration is not None:
            seconds = self.expiration
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                self._refuse(f"expiration must be a number of seconds, not {printable(repr(seconds), 60)}")
            if not (math.isfinite(seconds) and 0 <= seconds <= 4_294_967.295):
                self._refuse("expiration must be between 0 and 4,294,967 seconds (RabbitMQ's 32-bit milliseconds)")

    def _check_short_string(self, name: str, value: object) -> None:
        if not isinstance(value, str):
            self._refuse(f"{name} must be str, not {type(value).__name__}")
        if why_not := why_not_short(value):
            self._refuse(f"{name} {why_not}")

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidMessage(self.message_id, reason)


#: A code has the number of the link above the 48 bits of the id's number.
LINK_SHIFT: Final = 48
_NUMBER: Final = (1 << LINK_SHIFT) - 1


#: Return the number of values that a receipt consists of: 4, or 2 (see `Receipt`).
_length: Callable[[Any], int] = cast("Any", tuple).__len__


class Receipt(tuple[Any, ...]):
    """The broker confirmed the message: its queues store it as safely as their own settings say.

    It cannot be changed. Two receipts are equal if their four fields are.
    """

    # One is made for each confirm, and most ids are never read. So the receipt of a message that was written once, together
    # with others, is the pair of its producer's prefix and a code. This saves 0.6 us of 0.75.
    __slots__ = ()
    __match_args__ = ("message_id", "attempts", "possible_duplicate", "link")

    def __new__(cls, message_id: str, attempts: int, possible_duplicate: bool, link: int) -> Self:
        """Make the receipt of any message."""
        return super().__new__(cls, (message_id, attempts, possible_duplicate, link))

    @property
    def message_id(self) -> str:
        """The id of the message."""
        return self[0] if _length(self) == 4 else f"{self[0]}{self[1] & _NUMBER:012x}"

    @property
    def attempts(self) -> int:
        """How often the message was published on the wire."""
        return self[1] if _length(self) == 4 else 1

    @property
    def possible_duplicate(self) -> bool:
        """Whether more than one of those attempts may have reached the broker."""
        return _length(self) == 4 and self[2]

    @property
    def link(self) -> int:
        """The number of the link on which the confirm arrived."""
        number: int = self[3] if _length(self) == 4 else self[1] >> LINK_SHIFT
        return number

    def _fields(self) -> tuple[str, int, bool, int]:
        return self.message_id, self.attempts, self.possible_duplicate, self.link

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipt) and self._fields() == other._fields()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._fields())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self.__match_args__)

    def __repr__(self) -> str:
        named = zip(self.__match_args__, self._fields(), strict=True)
        return f"Receipt({', '.join(f'{name}={value!r}' for name, value in named)})"

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, bool, int]]:
        return type(self), self._fields()


@frozen
class Outcome:
    """The outcome of a publish that came after its caller was cancelled, or after its deadline."""

    message_id: str
    result: Receipt | PublishError


class Lane(enum.Enum):
    """Which of a link's two publishing channels a message takes."""

    MAIN = "main"
    #: For messages that may have caused a channel close: sent alone, so that the guilty one can be named.
    SUSPECT = "suspect"


@frozen
class Returned:
    """A message that the broker returned, as the driver saw it; the body itself is not kept, only its size and hash."""

    reply_code: int
    #: Safe to show, as `shown` is.
    reply_text: str
    #: These four are as the broker wrote them, because they are compared with those of the messages in flight. They are not
    #: for the log: a broker can write anything there, the password too.
    exchange: str = field(repr=False)
    routing_key: str = field(repr=False)
    message_id: str | None = field(repr=False)
    #: The value of the private header `x-warrener-token`, where present.
    token: str | None = field(repr=False)
    body_size: int
    #: blake2b of the body (16 bytes), or b"" where the driver does not compute it.
    body_hash: bytes = field(default=b"", repr=False)
    #: Exchange, routing key and message id in words, safe to show.
    shown: str = field(default="", kw_only=True)


@frozen
class ClosingReport:
    """What became of the messages when the producer closed."""

    #: How many of them the broker confirmed while closing.
    confirmed: int = 0
    #: message_ids that were written and not confirmed: they may or may not have arrived.
    unconfirmed: tuple[str, ...] = ()
    #: message_ids that were never written.
    not_sent: tuple[str, ...] = ()


@frozen
class Stored:
    """The message is on disk. `position` is its place in the outbox's order."""

    message_id: str
    position: int


@frozen
class OutboxStatus:
    """An outbox at one instant."""

    #: Rows that wait to be published, leased ones not counted.
    waiting: int
    #: Rows that a relay has claimed.
    leased: int
    #: Rows that a person has to look at: `entries(state="set_aside")`.
    set_aside: int
    #: Bytes of the bodies of all three kinds of rows.
    bytes: int
    #: Seconds since the oldest row that is not set aside was stored; None where there is none.
    oldest_age: float | None
    #: Whether the newest message was refused because the outbox was full.
    full: bool = False
    #: When a broker last confirmed a row of this outbox to this process; None before the first.
    last_confirm: datetime | None = None
    #: Rows that this process's relay has published and deleted.
    confirmed: int = 0
    #: How many of those may have reached a queue twice.
    possible_duplicates: int = 0
    #: The newest error of the store; None where the last access succeeded.
    last_error: str | None = None

    @property
    def backlog(self) -> int:
        """Rows stored and not yet confirmed or set aside."""
        return self.waiting + self.leased


@frozen
class Status:
    """A producer at one instant; reading it costs O(1) and changes nothing."""

    connection_state: ConnectionState
    #: Dials made since the connection was last proven healthy, the first one at start not counted.
    reconnect_attempts: int
    #: Failures in a row, as the circuit breaker counts them.
    consecutive_failures: int
    #: "closed", "open" or "half_open"; "closed" where the breaker is turned off.
    circuit_breaker: str
    #: CONNECTED, not blocked, breaker not open, and no publish unconfirmed for longer than `confirm_timeout`.
    healthy: bool
    #: Whether the broker has told us to stop publishing (an alarm).
    blocked: bool
    #: Messages written and not yet confirmed.
    in_flight: int
    #: Messages accepted and not yet written.
    buffered: int
    #: Seconds until the next dial, where one is due.
    retry_in: float | None
    last_fault: Fault | None
    #: The broker's address without credentials.
    endpoint: str
    #: The negotiated heartbeat in seconds; None while there is no link, 0 where it is off.
    heartbeat: float | None
    #: The number of the newest link; 0 before the first.
    link: int
    #: Unhealthy destinations, at most ten: those whose own circuit breaker is open or half open (the last ones that the
    #: broker nacked), and those with an overdue message.
    open_destinations: tuple[str, ...] = ()
    #: The broker's answer to a declaration of the topology that it refuses; None if it refuses none.
    topology_fault: Fault | None = None
    #: The place of `endpoint` in the list of URLs, from 0.
    endpoint_position: int = 0
    #: For each place of that list the failures in a row of its endpoint.
    endpoint_failures: tuple[int, ...] = (0,)
    #: With several `links`, the status of each; the other fields are then about all of them.
    links: tuple[Status, ...] = ()
    #: The outbox of the producer, as it was counted last; None where it has none.
    outbox: OutboxStatus | None = None
