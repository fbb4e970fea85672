"""A message as columns, and back. The format is documented in docs/outbox.md, because other programs write it too."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from operator import attrgetter
from typing import Any, Final, cast

from warrener._properties import PROPERTIES, SHORT_STRINGS, FieldValue
from warrener.errors import InvalidMessage, printable
from warrener.outbox.records import NewRow
from warrener.records import Message

__all__ = ["DUPLICATE_HEADER", "decode", "encode", "flagged"]

#: A row that may be in a queue already is published with this header, so that a consumer knows it.
DUPLICATE_HEADER: Final = "x-warrener-possible-duplicate"

#: Properties of `Message` that the column `properties` holds unchanged, each with its default, which is not written.
_PLAIN: Final[Mapping[str, object]] = {
    **{each.field: None for each in PROPERTIES if each.field not in ("headers", "timestamp", "message_id")},
    "persistent": True,
    "mandatory": True,
}
_KNOWN: Final = frozenset({*_PLAIN, "headers", "timestamp"})
_TEXTS: Final = tuple(name for name in SHORT_STRINGS if name in _KNOWN)
_plain_values = attrgetter(*_PLAIN, "timestamp")
_DEFAULTS: Final = (*_PLAIN.values(), None)


def encode(message: Message, key: str | None = None) -> NewRow:
    """Return the row of a message. Raises TypeError or `InvalidMessage` for a key, an id or an address that cannot be kept."""
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be str or None, not {type(key).__name__}")
    texts = f"{message.message_id}{message.exchange}{message.routing_key}{key or ''}"
    if not texts.isascii() or "\0" in texts:
        _check_texts(message, key)
    # Most messages have a routing key, a body and nothing else.
    if not message.headers and _plain_values(message) == _DEFAULTS:
        return NewRow(message.message_id, key, message.exchange, message.routing_key, "{}", message.body)
    properties: dict[str, object] = {
        name: value for name, default in _PLAIN.items() if (value := getattr(message, name)) != default
    }
    if message.timestamp is not None:
        properties["timestamp"] = _utc(message.timestamp).isoformat()
    if message.headers:
        properties["headers"] = {name: _to_json(value) for name, value in message.headers.items()}
    text = json.dumps(properties, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return NewRow(message.message_id, key, message.exchange, message.routing_key, text, message.body)


def _check_texts(message: Message, key: str | None) -> None:
    for name in ("message_id", "exchange", "routing_key", "key"):
        text = (key or "") if name == "key" else getattr(message, name)
        if "\0" in text:
            raise InvalidMessage(message.message_id, f"{name} contains a NUL character, which PostgreSQL cannot keep")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidMessage(message.message_id, f"{name} cannot be encoded as UTF-8") from None


def decode(message_id: object, exchange: object, routing_key: object, properties: object, body: object) -> Message:
    """Return the message of a row's columns. Raises ValueError, with the column's name, for other columns."""
    if isinstance(body, str):  # plain SQL may have stored the body as text, and SQLite keeps it so
        body = body.encode()
    elif isinstance(body, memoryview):
        body = body.tobytes()
    if not isinstance(body, bytes):
        raise ValueError(f"column body holds {_kind(body)}; it must hold text or a blob of bytes")  # noqa: TRY004 - it is a row's content, not an argument
    for name, value in (("message_id", message_id), ("exchange", exchange), ("routing_key", routing_key)):
        if not isinstance(value, str):
            raise ValueError(f"column {name} holds {_kind(value)}; it must hold text")  # noqa: TRY004 - it is a row's content, not an argument
    if not message_id:
        raise ValueError("column message_id is empty")
    fields = _fields(properties)
    try:
        return Message(body, message_id=message_id, exchange=exchange, routing_key=routing_key, **fields)  # type: ignore[arg-type]
    except InvalidMessage as error:  # its text also has the message's id, which the row shows already
        raise ValueError(error.reason) from None


def _kind(value: object) -> str:
    """What a column holds, in the words of the database."""
    if value is None:
        return "NULL"
    return "a number" if isinstance(value, int | float) else "a blob" if isinstance(value, bytes) else "another type"


def flagged(message: Message) -> Message:
    """Return the same message with the header that says: a queue may hold it already."""
    values = {name: getattr(message, name) for name in _KNOWN}
    values["headers"] = {**message.headers, DUPLICATE_HEADER: True}
    return Message(
        message.body,
        message_id=message.message_id,
        exchange=message.exchange,
        routing_key=message.routing_key,
        **values,
    )


def _fields(properties: object) -> dict[str, Any]:
    if properties == "{}":
        return {}
    if not isinstance(properties, str):
        raise ValueError(f"column properties holds {_kind(properties)}; it must hold JSON text")  # noqa: TRY004 - it is a row's content, not an argument
    try:
        found = json.loads(properties)
    except ValueError as error:
        raise ValueError(f"column properties is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("column properties is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("column properties must hold a JSON object")  # noqa: TRY004 - it is a row's content, not an argument
    fields = cast("dict[str, Any]", found)
    unknown = sorted(set(fields) - _KNOWN)
    if unknown:
        raise ValueError(f"column properties has the unknown name {printable(unknown[0], 60)!r}")
    for name in ("persistent", "mandatory"):
        if not isinstance(fields.get(name, True), bool):
            raise ValueError(f"column properties: {name} must be true or false")  # noqa: TRY004 - it is a row's content, not an argument
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str | None):
            raise ValueError(f"column properties: {name} must be text, not {printable(fields[name], 60)}")  # noqa: TRY004 - it is a row's content, not an argument
    if fields.get("timestamp") is not None:
        try:
            fields["timestamp"] = _utc(datetime.fromisoformat(fields["timestamp"]))
        except (TypeError, ValueError):
            raise ValueError("column properties: timestamp must be text in ISO 8601") from None
    headers = fields.get("headers")
    if headers is not None:
        if not isinstance(headers, dict):
            raise ValueError("column properties: headers must be a JSON object")
        fields["headers"] = {name: _from_json(value) for name, value in cast("dict[str, Any]", headers).items()}
    return fields


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


# --- header values that JSON does not have ------------------------------------------------------------------------
# {"!bytes": base64}, {"!decimal": text}, {"!timestamp": ISO 8601}; a table with one name that begins with "!" is
# wrapped as {"!table": {...}}, so that every table comes back as it was.


def _to_json(value: FieldValue) -> object:
    match value:
        case bytes():
            return {"!bytes": base64.b64encode(value).decode()}
        case Decimal():
            return {"!decimal": str(value)}
        case datetime():
            return {"!timestamp": _utc(value).isoformat()}
        case list():
            return [_to_json(item) for item in value]
        case Mapping():
            table = {name: _to_json(item) for name, item in value.items()}
            return {"!table": table} if len(table) == 1 and next(iter(table)).startswith("!") else table
        case _:
            return value


#: How each is read, and what its text has to be.
_SPECIAL: Final[Mapping[str, tuple[Callable[[Any], FieldValue], str]]] = {
    "!bytes": (lambda text: base64.b64decode(text, validate=True), "text in base64"),
    "!decimal": (Decimal, "a decimal number as text"),
    "!timestamp": (lambda text: _utc(datetime.fromisoformat(text)), "text in ISO 8601"),
}


def _from_json(value: Any) -> FieldValue:
    if isinstance(value, list):
        return [_from_json(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        if len(table) == 1:
            ((name, inner),) = table.items()
            if name == "!table" and isinstance(inner, dict):
                return {name: _from_json(item) for name, item in cast("dict[str, Any]", inner).items()}
            if name.startswith("!"):
                if name not in _SPECIAL:
                    raise ValueError(f"column properties: headers hold the unknown type {printable(name, 60)!r}")
                convert, form = _SPECIAL[name]
                try:
                    return convert(inner)
                except (TypeError, ValueError, InvalidOperation, binascii.Error):
                    raise ValueError(
                        f"column properties: {name} in headers must be {form}, not {printable(inner, 60)!r}"
                    ) from None
        return {name: _from_json(item) for name, item in table.items()}
    return value  # type: ignore[no-any-return]
