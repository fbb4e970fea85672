"""From the arguments of a publish to the `Delivery` that the ledger takes: fields, envelope, body, id, deadline.

A message is sent as it was when it was accepted. So nothing mutable of the caller's is kept: `Message` copies a body that
can change, and `Envelope.of` copies the headers, at every depth. Equal plain fields share one `Envelope`, which drivers use to cache frames.
Headers are never compared: `{"x": 1}` equals `{"x": True}` in Python and differs on the wire.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar, cast

from warrener._publishing.ledger import Delivery
from warrener.errors import InvalidMessage
from warrener.records import Body, Envelope, Message, MessageFields, TargetFields

__all__ = [
    "PUBLISH_TIMEOUT",
    "Envelopes",
    "has_destination",
    "message_of",
    "require_destination",
    "seconds",
    "with_message_fields",
    "with_target_fields",
]

#: Means the producer's `publish_timeout` where a call names no timeout. Only this very object means that; another NaN is
#: an error. None is an error too: it could be read as "no deadline", and that is `math.inf`.
PUBLISH_TIMEOUT: Final = float("nan")
#: Number of envelopes that a producer keeps; then it begins anew.
CACHE_LIMIT = 1024

#: The fields of a message that make its envelope, except headers.
_plain_fields = attrgetter(
    "exchange", "routing_key", "content_type", "content_encoding", "priority", "expiration", "correlation_id",
    "reply_to", "type", "app_id", "user_id", "timestamp", "persistent", "mandatory",
)  # fmt: skip


#: The fields that are True or False.
_FLAGS: Final = frozenset({"mandatory", "persistent"})


def _are_flags(fields: MessageFields) -> bool:
    """Whether the flags are True or False. The number 1 equals True, but is no valid flag."""
    named: Mapping[str, object] = fields
    return all(type(named.get(name, True)) is bool for name in _FLAGS)


class Envelopes:
    """Makes deliveries for one producer, and keeps the envelopes of plain fields."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        #: Envelopes by the items of the keywords. Text equals only the same text; `_are_flags` checks the two flags.
        self._by_text: dict[tuple[Any, ...], Envelope] = {}
        #: The fields that were found last, which nobody changes, and their envelope.
        self._last_fields: MessageFields | None = None
        self._last_flags: tuple[object, object] = (None, None)
        self._last: Envelope | None = None
        #: By the types and values of plain fields: 1, 1.0 and True are equal and are not the same field.
        self._by_fields: dict[tuple[Any, ...], Envelope] = {}

    def delivery(self, body: Body | Message, deadline: float, fields: MessageFields) -> Delivery:
        """Return the delivery of one message. Raises `InvalidMessage`, or TypeError for fields beside a `Message`."""
        if type(body) is bytes and "message_id" not in fields:
            if "headers" in fields:
                return Delivery(self._of_message(Message(b"", **fields)), body, self._new_id(), deadline)
            envelope = self.known(fields) or self._of_fields(fields)
            return Delivery(envelope, body, self._new_id(), deadline)
        if isinstance(body, Message):
            if fields:
                raise TypeError(f"publish(message) takes no other fields; set them in the Message: {', '.join(fields)}")
            message = body
        else:
            message = Message(body, **fields)
            if "message_id" not in fields:
                return Delivery(self._of_message(message), message.body, self._new_id(), deadline)
        # Another message in flight may have the same message_id, so a return of this one is matched by its token.
        return Delivery(self._of_message(message), message.body, message.message_id, deadline, self._new_id())

    def known(self, fields: MessageFields) -> Envelope | None:
        """Return the envelope of these fields, if one was made of equal ones before; never for headers or a message_id."""
        flags = fields.get("mandatory"), fields.get("persistent")
        try:
            # Most messages have the fields of the message before them: 0.2 us in place of 0.6. True equals 1, and is another flag.
            if fields == self._last_fields and flags[0] is self._last_flags[0] and flags[1] is self._last_flags[1]:
                return self._last
            envelope = self._by_text.get(tuple(fields.items()))
        except (TypeError, ValueError):  # a value that cannot be hashed or compared is no valid field either
            return None
        if envelope is None or not _are_flags(fields):
            return None
        self._last, self._last_fields, self._last_flags = envelope, fields, flags
        return envelope

    def shared(self, fields: MessageFields) -> Envelope:
        """Return the envelope of messages with these fields, which have no message_id. Raises `InvalidMessage`."""
        if fields.get("headers"):
            return self._of_message(Message(b"", **fields))
        return self.known(fields) or self._of_fields(fields)

    def few(self, messages: Sequence[Message], most: int) -> list[Envelope] | None:
        """Return the envelopes of messages; None if there are more than `most` different ones, or one is refused."""
        envelopes: list[Envelope] = []
        kinds: set[Envelope] = set()
        try:
            for message in messages:
                envelope = self._of_message(message)
                envelopes.append(envelope)
                if envelope not in kinds:
                    kinds.add(envelope)
                    if len(kinds) > most:
                        return None
        except InvalidMessage:
            return None
        return envelopes

    def _of_fields(self, fields: MessageFields) -> Envelope:
        envelope = self._of_message(Message(b"", **fields))
        if all(type(value) is str for name, value in fields.items() if name not in _FLAGS):
            _keep(self._by_text, tuple(fields.items()), envelope)
        return envelope

    def _of_message(self, message: Message) -> Envelope:
        if message.headers:
            return Envelope.of(message)
        plain = _plain_fields(message)
        key = (plain, tuple(map(type, plain)))
        return self._by_fields.get(key) or _keep(self._by_fields, key, Envelope.of(message))


def has_destination(fields: MessageFields) -> bool:
    """Whether bodies with these fields can go to a queue: no queue has an empty name, so the default exchange needs a key."""
    return bool(fields.get("routing_key") or fields.get("exchange"))


def require_destination(call: str, fields: MessageFields) -> None:
    """Raise `InvalidMessage` if the fields that bodies share name no destination."""
    if not has_destination(fields):
        Message(b"", **fields)  # a keyword that is misspelt is named first: it may be the routing key
        raise InvalidMessage("", f"{call} of bodies needs a routing_key or an exchange for all of them")


def message_of(body: Body | Message, fields: MessageFields) -> Message:
    """Return the message of a call that takes a body and fields, or a message."""
    if not isinstance(body, Message):
        return Message(body, **fields)
    if fields:
        raise TypeError(f"a call with a Message takes no other fields; set them in the Message: {', '.join(fields)}")
    return body


def seconds(timeout: float, default: float) -> float:
    """Return the seconds that a call's `timeout` means. Raises TypeError or ValueError for an invalid one."""
    if timeout is PUBLISH_TIMEOUT:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be float seconds (math.inf for no deadline), not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be seconds, 0 or more (math.inf allowed), not {timeout!r}")
    return float(timeout)


Function = TypeVar("Function", bound=Callable[..., Any])


def with_message_fields(function: Function) -> Function:
    """Show the message's fields in the signature of a function that takes them as `**fields`."""
    return _with_fields(function, MessageFields)


def with_target_fields(function: Function) -> Function:
    """Show the fields of a `Target` in the signature of a function that takes them as `**fields`."""
    return _with_fields(function, TargetFields)


def _with_fields(function: Function, names: type) -> Function:
    own = inspect.signature(function)
    fields = [
        each
        for each in inspect.signature(Message).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.name in names.__annotations__
    ]
    kept = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    cast("Any", function).__signature__ = own.replace(parameters=[*kept, *fields])
    return function


def _keep(cache: dict[tuple[Any, ...], Envelope], key: tuple[Any, ...], envelope: Envelope) -> Envelope:
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    cache[key] = envelope
    return envelope
