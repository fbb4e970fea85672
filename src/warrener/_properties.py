"""The AMQP properties of a message, written down once, and the values that a header table may hold.

`Message`, its keywords (`MessageFields`), `Envelope` and the encoders of both drivers carry exactly these properties;
tests/values/test_properties.py compares each of them with this list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias, cast

from attrs import frozen

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "PROPERTIES",
    "SHORT_STRINGS",
    "FieldValue",
    "Property",
    "Unsendable",
    "checked_table",
    "why_not_short",
    "why_not_timestamp",
]

#: What a header table may hold (AMQP 0-9-1, 4.2.5.5 with RabbitMQ's field types). No other type is converted.
FieldValue: TypeAlias = (
    "None | bool | int | float | Decimal | str | bytes | datetime | list[FieldValue] | Mapping[str, FieldValue]"
)

#: Deepest nesting of tables and arrays: RabbitMQ's own limit.
MAX_DEPTH = 32
#: Values in one table, nested ones included.
MAX_ENTRIES = 16_384


@frozen
class Property:
    """One property of basic content (AMQP 0-9-1, 1.8.3)."""

    #: The field of `Message`.
    field: str
    #: Short strings hold at most 255 bytes of UTF-8; an octet is a number from 0 to 255.
    type: Literal["shortstr", "table", "octet", "timestamp"]
    #: The name in the specification, where it is another one.
    amqp: str = ""


#: In the order of the wire. `persistent` is the delivery mode, `expiration` is sent as whole milliseconds in text.
PROPERTIES = (
    Property("content_type", "shortstr"),
    Property("content_encoding", "shortstr"),
    Property("headers", "table"),
    Property("persistent", "octet", "delivery_mode"),
    Property("priority", "octet"),
    Property("correlation_id", "shortstr"),
    Property("reply_to", "shortstr"),
    Property("expiration", "shortstr"),
    Property("message_id", "shortstr"),
    Property("timestamp", "timestamp"),
    Property("type", "shortstr", "message_type"),
    Property("user_id", "shortstr"),
    Property("app_id", "shortstr"),
)

#: Fields that are short strings on the wire and in `Message`: two arguments of basic.publish, and properties.
SHORT_STRINGS = (
    "exchange",
    "routing_key",
    *(each.field for each in PROPERTIES if each.type == "shortstr" and each.field != "expiration"),
)


class Unsendable(ValueError):
    """The value cannot be put into AMQP bytes."""


def why_not_short(text: str) -> str | None:
    """Return why the text is no short string of AMQP, or None."""
    if len(text) <= 255 and text.isascii():
        return None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "cannot be encoded as UTF-8"
    return f"is {size} bytes long; AMQP short strings hold at most 255" if size > 255 else None


def checked_table(table: object, name: str = "headers") -> dict[str, FieldValue]:
    """Return a copy of the table that shares nothing mutable with it. `Unsendable` for a value that AMQP cannot carry."""
    return _checked_table(table, name, 1, [MAX_ENTRIES])


def why_not_timestamp(value: datetime) -> str | None:
    """Return why AMQP cannot carry the time, or None. It carries whole seconds since 1970, in UTC."""
    if value.utcoffset() is None:
        return "is a datetime without a time zone, so its instant is unknown; use datetime.now(UTC)"
    if value.timestamp() < 0:
        return "lies before 1970, and AMQP has no such times"
    return None


def _checked_table(table: object, path: str, depth: int, left: list[int]) -> dict[str, FieldValue]:
    if not isinstance(table, Mapping):
        raise Unsendable(f"{path} must be a mapping, not {type(table).__name__}")
    copy: dict[str, FieldValue] = {}
    entries: Mapping[Any, Any] = table  # pyright: ignore[reportUnknownVariableType]
    for key, value in entries.items():
        # A plain entry cannot fail, so its path for the error text is not made: that costs more than these checks.
        if key.__class__ is str and len(key) <= 255 and key.isascii() and _is_plain(value) and left[0] > 0:
            left[0] -= 1
            copy[key] = value
            continue
        if not isinstance(key, str):
            raise Unsendable(f"{path} has a name that is {type(key).__name__}, not str")
        if why_not := why_not_short(key):
            raise Unsendable(f"{path} has a name that {why_not}")
        copy[key] = _checked(value, f"{path}[{key!r:.60}]", depth, left)
    return copy


def _is_plain(value: Any) -> bool:
    kind = value.__class__
    if kind is str:
        plain: bool = value.isascii()
        return plain
    return value is None or kind is bool or (kind is int and -(1 << 31) <= value < 1 << 31)


def _checked(value: Any, path: str, depth: int, left: list[int]) -> FieldValue:
    left[0] -= 1
    if left[0] < 0:
        raise Unsendable(f"{path.partition('[')[0]} holds more than {MAX_ENTRIES:,} values")
    match value:
        case None | bool() | bytes():
            return value
        case str():
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise Unsendable(f"{path} cannot be encoded as UTF-8") from None
            return value
        case int():
            if not -(1 << 63) <= value < 1 << 63:
                raise Unsendable(f"{path} is an integer of more than 64 bits")
            return value
        case float():
            # RabbitMQ's runtime has no such numbers and would close the connection.
            if not math.isfinite(value):
                raise Unsendable(f"{path} is {value}; AMQP brokers take finite numbers only")
            return value
        case bytearray() | memoryview():
            return bytes(cast("bytearray", value))
        case datetime():
            if why_not := why_not_timestamp(value):
                raise Unsendable(f"{path} {why_not}")
            return value
        case Decimal():
            _check_decimal(value, path)
            return value
        case _:
            return _checked_nested(value, path, depth, left)


def _checked_nested(value: object, path: str, depth: int, left: list[int]) -> FieldValue:
    if depth >= MAX_DEPTH and isinstance(value, list | Mapping):
        raise Unsendable(f"{path.partition('[')[0]} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return [_checked(item, f"{path}[{index}]", depth + 1, left) for index, item in enumerate(items)]
    if isinstance(value, Mapping):
        return _checked_table(cast("object", value), path, depth + 1, left)
    raise Unsendable(f"{path} is {type(value).__name__}, which AMQP tables cannot hold")


def _check_decimal(value: Decimal, path: str) -> None:
    sign, digits, exponent = value.as_tuple()
    # Sizes first: Decimal("1E+1000000") must not become an integer of a million digits.
    if not isinstance(exponent, int) or len(digits) + max(exponent, 0) > 12:
        raise Unsendable(f"{path} is a Decimal outside AMQP's 32 bits")
    mantissa = int("".join(map(str, digits)) or "0") * 10 ** max(exponent, 0) * (-1 if sign else 1)
    if not (-(1 << 31) <= mantissa < 1 << 31 and -exponent <= 255):
        raise Unsendable(f"{path} is a Decimal outside AMQP's 32 bits and 255 decimal places")
