"""From bytes to values and back: short strings, field tables, methods and content headers of AMQP 0-9-1.

pamqp describes the methods (which arguments, of which types); this module reads and writes them. pamqp's own reader
does not check its input: a string may be longer than its frame, tables may nest without a limit, bytes may follow the
last value. pamqp's own writer narrows floats to 32 bits, cuts field names, knows no `bytes`, and refuses names that
RabbitMQ accepts.

Invariants:

* Reading raises nothing but `Malformed`, for any bytes; nothing is allocated by a length before that length was compared
  with what is left; tables nest at most `MAX_DEPTH` deep and hold at most `MAX_ENTRIES` values altogether.
* Writing raises nothing but `Unsendable`, and what was written can be read back by `read_table` (same limits).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from attrs import define, frozen
from pamqp import commands
from pamqp.base import Frame as Method

from warrener._properties import MAX_DEPTH, MAX_ENTRIES, FieldValue, Unsendable

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "TOKEN_HEADER",
    "ContentHeader",
    "Malformed",
    "Method",
    "Unsendable",
    "long_string",
    "method_payload",
    "read_content_header",
    "read_method",
    "read_table",
    "short_string",
    "table",
    "timestamp",
]

Buffer: TypeAlias = bytes | bytearray

#: The private header that tells which attempt a returned message belongs to.
TOKEN_HEADER: Final = "x-warrener-token"  # noqa: S105 - a name, not a secret
_LONGEST_TOKEN: Final = 255

_BYTE = struct.Struct(">B")
_SHORT = struct.Struct(">H")
_LONG = struct.Struct(">I")
_LONGLONG = struct.Struct(">Q")
_DECIMAL = struct.Struct(">Bi")

#: Field types of a fixed width (AMQP 0-9-1, 4.2.5.5, in RabbitMQ's reading of the letters).
_FIXED: Final = {
    ord(letter): struct.Struct(layout)
    for letter, layout in {
        "b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">q", "f": ">f", "d": ">d",
    }.items()
}  # fmt: skip
_VOID, _BOOL, _TIME, _DEC, _TEXT, _BYTES, _TABLE, _ARRAY = b"VtTDSxFA"


class Malformed(Exception):
    """The bytes break the protocol."""


# --- writing ----------------------------------------------------------------------------------------------------


def short_string(value: str, name: str = "value") -> bytes:
    """Return a short string: one byte of length, then at most 255 bytes of UTF-8."""
    if not isinstance(value, str):
        raise Unsendable(f"{name} must be str, not {type(value).__name__}")
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise Unsendable(f"{name} cannot be encoded as UTF-8") from None
    if len(raw) > 255:
        raise Unsendable(f"{name} is {len(raw)} bytes long; AMQP short strings hold at most 255")
    return b"%c%b" % (len(raw), raw)


def long_string(raw: Buffer) -> bytes:
    """Return a long string: four bytes of length, then the bytes."""
    return _LONG.pack(len(raw)) + raw


def timestamp(value: datetime, name: str = "timestamp") -> bytes:
    """Return whole seconds since 1970 in eight bytes; a datetime without a zone counts as UTC."""
    if not isinstance(value, datetime):
        raise Unsendable(f"{name} must be a datetime, not {type(value).__name__}")
    aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
    seconds = math.floor(aware.timestamp())
    if seconds < 0:
        raise Unsendable(f"{name} lies before 1970, which AMQP cannot express")
    return _LONGLONG.pack(seconds)


def table(fields: Mapping[str, FieldValue] | None, name: str = "headers", room: int = MAX_ENTRIES) -> bytes:
    """Return a field table of at most `room` values, with its four bytes of length."""
    return long_string(_entries(fields or {}, name, 1, [room]))


def _entries(fields: Mapping[str, FieldValue], path: str, depth: int, budget: list[int]) -> bytes:
    if not isinstance(fields, Mapping):
        raise Unsendable(f"{path} must be a mapping, not {type(fields).__name__}")
    if depth > MAX_DEPTH:
        raise Unsendable(f"{path.partition('[')[0]} is nested more than {MAX_DEPTH} deep")
    parts: list[bytes] = []
    for key, value in fields.items():
        if not isinstance(key, str):
            raise Unsendable(f"{path} has a name that is {type(key).__name__}, not str")
        where = f"{path}[{key!r:.60}]"
        parts.append(short_string(key, f"the name in {where}"))
        parts.append(_value(value, where, depth, budget))
    return b"".join(parts)


def _value(value: FieldValue, path: str, depth: int, budget: list[int]) -> bytes:  # noqa: C901 - one case per type
    budget[0] -= 1
    if budget[0] < 0:
        raise Unsendable(f"{path.partition('[')[0]} holds too many values ({MAX_ENTRIES:,} at most)")
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            # Two widths only: every broker and client knows them.
            if -(1 << 31) <= value < 1 << 31:
                return b"I" + _FIXED[ord("I")].pack(value)
            if -(1 << 63) <= value < 1 << 63:
                return b"l" + _FIXED[ord("l")].pack(value)
            raise Unsendable(f"{path} is an integer of more than 64 bits")
        case float():
            # RabbitMQ's runtime has no such numbers and would close the connection.
            if not math.isfinite(value):
                raise Unsendable(f"{path} is {value}; AMQP brokers take finite numbers only")
            return b"d" + _FIXED[ord("d")].pack(value)
        case str():
            try:
                return b"S" + long_string(value.encode())
            except UnicodeEncodeError:
                raise Unsendable(f"{path} cannot be encoded as UTF-8") from None
        case bytes():
            return b"x" + long_string(value)
        case datetime():
            return b"T" + timestamp(value, path)
        case Decimal():
            return b"D" + _decimal(value, path)
        case list():
            if depth >= MAX_DEPTH:
                raise Unsendable(f"{path.partition('[')[0]} is nested more than {MAX_DEPTH} deep")
            items = (_value(item, f"{path}[{index}]", depth + 1, budget) for index, item in enumerate(value))
            return b"A" + long_string(b"".join(items))
        case Mapping():
            return b"F" + long_string(_entries(value, path, depth + 1, budget))
        case _:
            raise Unsendable(f"{path} is {type(value).__name__}, which AMQP tables cannot hold")


def _decimal(value: Decimal, path: str) -> bytes:
    sign, digits, exponent = value.as_tuple()
    # Sizes first: Decimal("1E+1000000") must not become an integer of a million digits.
    if not isinstance(exponent, int) or len(digits) + max(exponent, 0) > 12:
        raise Unsendable(f"{path} is a Decimal outside AMQP's 32 bits")
    mantissa = int("".join(map(str, digits)) or "0") * 10 ** max(exponent, 0) * (-1 if sign else 1)
    if not (-(1 << 31) <= mantissa < 1 << 31 and -exponent <= 255):
        raise Unsendable(f"{path} is a Decimal outside AMQP's 32 bits and 255 decimal places")
    return _DECIMAL.pack(max(-exponent, 0), mantissa)


def method_payload(kind: type[Method], **arguments: Any) -> bytes:
    """Return the payload of a method frame; an argument that is not given is empty, zero or false."""
    parts = [_LONG.pack(kind.index)]
    bits = width = 0
    for name in kind.attributes():
        value = arguments.pop(name, None)
        argument_type = kind.amqp_type(name)
        if argument_type == "bit":
            bits |= bool(value) << width
            width += 1
            continue
        if width:
            parts.append(_BYTE.pack(bits))
            bits = width = 0
        parts.append(_argument(argument_type, value, name))
    if width:
        parts.append(_BYTE.pack(bits))
    if arguments:
        raise TypeError(f"{kind.name} has no argument {', '.join(arguments)}")
    return b"".join(parts)


def _argument(argument_type: str, value: Any, name: str) -> bytes:
    match argument_type:
        case "shortstr":
            return short_string(value or "", name)
        case "longstr":
            return long_string(value.encode() if isinstance(value, str) else value or b"")
        case "table":
            return table(value, name=name)
        case "octet":
            return _BYTE.pack(value or 0)
        case "short":
            return _SHORT.pack(value or 0)
        case "long":
            return _LONG.pack(value or 0)
        case _:
            return _LONGLONG.pack(value or 0)


# --- reading ----------------------------------------------------------------------------------------------------


@define
class _Cursor:
    """Walks over one payload; every read is compared with what is left."""

    data: Buffer
    at: int = 0
    budget: int = MAX_ENTRIES

    def take(self, size: int) -> Buffer:
        end = self.at + size
        if end > len(self.data):
            raise Malformed(f"a field of {size} bytes is announced, but only {len(self.data) - self.at} bytes are left")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unpack(self, layout: struct.Struct) -> Any:
        if self.at + layout.size > len(self.data):
            raise Malformed("the payload ends inside a number")
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def short_text(self) -> str:
        # RabbitMQ cuts a reply text at 255 bytes, perhaps inside a letter. The rest of the text is still of use.
        return self.take(self.unpack(_BYTE)).decode(errors="backslashreplace")

    def long_bytes(self) -> bytes:
        return bytes(self.take(self.unpack(_LONG)))

    def table(self, depth: int = 1) -> dict[str, Any]:
        end = self._nested_end(depth)
        fields: dict[str, Any] = {}
        while self.at < end:
            name = self.short_text()
            value = self._value(depth)
            fields.setdefault(name, value)
        if self.at != end:
            raise Malformed("the last entry of a table ends after the end of the table")
        return fields

    def _array(self, depth: int) -> list[Any]:
        end = self._nested_end(depth)
        items: list[Any] = []
        while self.at < end:
            items.append(self._value(depth))
        if self.at != end:
            raise Malformed("the last value of an array ends after the end of the array")
        return items

    def _nested_end(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise Malformed(f"a table is nested more than {MAX_DEPTH} deep")
        size: int = self.unpack(_LONG)
        if size > len(self.data) - self.at:
            raise Malformed(
                f"a table or array of {size} bytes is announced, but only {len(self.data) - self.at} bytes are left"
            )
        return self.at + size

    def _value(self, depth: int) -> Any:
        self.budget -= 1
        if self.budget < 0:
            raise Malformed(f"a table holds more than {MAX_ENTRIES} values")
        letter: int = self.unpack(_BYTE)
        fixed = _FIXED.get(letter)
        if fixed is not None:
            return self.unpack(fixed)
        if letter == _TEXT:
            raw = self.long_bytes()
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw
        if letter in (_VOID, 0):  # 0 has been seen from other brokers
            return None
        if letter == _BOOL:
            return self.unpack(_BYTE) != 0
        if letter == _TABLE:
            return self.table(depth + 1)
        if letter == _ARRAY:
            return self._array(depth + 1)
        if letter == _BYTES:
            return self.long_bytes()
        if letter == _TIME:
            return _moment(self.unpack(_LONGLONG))
        if letter == _DEC:
            places, mantissa = _DECIMAL.unpack(self.take(_DECIMAL.size))
            return Decimal(mantissa).scaleb(-places)
        raise Malformed(f"a table holds a value of the unknown type {letter:#04x}")

    def end(self) -> None:
        if self.at != len(self.data):
            raise Malformed(f"{len(self.data) - self.at} bytes follow the last argument")


def _moment(seconds: int) -> datetime | int:
    """Return the time, or the number itself if it lies beyond the year 9999."""
    return datetime.fromtimestamp(seconds, tz=UTC) if seconds < 253_402_300_800 else seconds


def read_table(payload: Buffer) -> dict[str, Any]:
    """Read a whole payload as one field table. If a name comes twice, its first value is taken."""
    cursor = _Cursor(payload)
    fields = cursor.table()
    cursor.end()
    return fields


def read_method(payload: Buffer) -> Method:
    """Read the payload of a method frame."""
    cursor = _Cursor(payload)
    index: int = cursor.unpack(_LONG)
    kind: type[Method] | None = commands.INDEX_MAPPING.get(index)
    if kind is None:
        raise Malformed(f"the method {index >> 16}.{index & 0xFFFF} is unknown")
    method: Method = kind()
    bits = width = 0
    for name in kind.attributes():
        argument_type = kind.amqp_type(name)
        if argument_type == "bit":
            if not width:
                bits = cursor.unpack(_BYTE)
            setattr(method, name, bits >> width & 1 == 1)
            width += 1
            continue
        width = 0
        setattr(method, name, _read_argument(cursor, argument_type))
    cursor.end()
    return method


def _read_argument(cursor: _Cursor, argument_type: str) -> Any:
    match argument_type:
        case "shortstr":
            return cursor.short_text()
        case "longstr":
            return cursor.long_bytes().decode(errors="backslashreplace")
        case "table":
            return cursor.table()
        case "octet":
            return cursor.unpack(_BYTE)
        case "short":
            return cursor.unpack(_SHORT)
        case "long":
            return cursor.unpack(_LONG)
        case _:
            return cursor.unpack(_LONGLONG)


@frozen
class ContentHeader:
    """The parts of a content header that this package uses."""

    body_size: int
    message_id: str | None
    token: str | None


#: Properties in wire order: flag, name and type (AMQP 0-9-1, 4.2.6.1).
_PROPERTIES: Final = tuple(
    (flag, name, commands.Basic.Properties.amqp_type(name)) for name, flag in commands.Basic.Properties.flags.items()
)
_KNOWN_FLAGS: Final = sum(flag for flag, _, _ in _PROPERTIES)


def read_content_header(payload: Buffer) -> ContentHeader:
    """Read the payload of a content header frame of class basic."""
    cursor = _Cursor(payload)
    class_id, weight = cursor.unpack(_SHORT), cursor.unpack(_SHORT)
    if class_id != commands.Basic.Properties.frame_id or weight != 0:
        raise Malformed(f"a content header is of class {class_id} and weight {weight}, not 60 and 0")
    body_size: int = cursor.unpack(_LONGLONG)
    flags: int = cursor.unpack(_SHORT)
    if flags & ~_KNOWN_FLAGS:
        raise Malformed(f"a content header has unknown property flags {flags & ~_KNOWN_FLAGS:#06x}")
    message_id: str | None = None
    token: str | None = None
    for flag, name, property_type in _PROPERTIES:
        if not flags & flag:
            continue
        value = cursor.unpack(_LONGLONG) if property_type == "timestamp" else _read_argument(cursor, property_type)
        if name == "message_id":
            message_id = value
        elif name == "headers":
            found = value.get(TOKEN_HEADER)
            # A longer one is not ours, and would cost memory while the return waits for the ledger.
            token = found if isinstance(found, str) and len(found) <= _LONGEST_TOKEN else None
    cursor.end()
    return ContentHeader(body_size, message_id, token)
