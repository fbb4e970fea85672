"""Strict framing and decoding for the broker's side of AMQP 0-9-1.

The client's own wire code is fast and may be wrong; this one is slow and suspicious, and shares no line with it, so that
a mistake in one is seen by the other. Every frame is checked against the grammar before `pamqp` decodes it, because
pamqp itself is lenient: it takes a short string that runs past the end of its frame, and ignores bytes that are left
over. Here each length is compared with the rest of the frame, no byte may be left over, field tables are walked to
their last byte (field types as RabbitMQ has them, https://www.rabbitmq.com/amqp-0-9-1-errata), and content headers may
set no undefined flag (AMQP 0-9-1, 2.3.5 and 4.2).

Encoding uses pamqp's field encoders but not its method constructors: those refuse names (``exchange='a b'``) that
RabbitMQ itself accepts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

from attrs import frozen
from pamqp import base, commands, common, encode, header

__all__ = [
    "BODY",
    "HEADER",
    "HEARTBEAT",
    "METHOD",
    "OVERHEAD",
    "Content",
    "Framer",
    "IllegalBytes",
    "Method",
    "RawFrame",
    "TypedTable",
    "copy_properties",
    "decode_content_header",
    "decode_method",
    "encode_frame",
    "encode_method",
    "encode_properties",
]

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
#: 7 bytes of frame header and the end byte.
OVERHEAD = 8
MAX_DEPTH = 32

#: A field table with the types that the client chose: name → (RabbitMQ's name of the type, value).
TypedTable: TypeAlias = "dict[str, tuple[str, Any]]"


class IllegalBytes(Exception):
    """The client sent what AMQP 0-9-1 does not allow; `code` is how a broker answers (501, 502, 503, 505)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@frozen
class RawFrame:
    """A frame whose seven header bytes and end byte were right."""

    type: int
    channel: int
    payload: bytes


@frozen
class Method:
    """A decoded method: pamqp's object for the fields, and the field tables with their types."""

    name: str
    fields: Any
    tables: dict[str, TypedTable]


@frozen
class Content:
    """A decoded content header; `raw_properties` are the bytes from the property flags on."""

    body_size: int
    properties: commands.Basic.Properties
    raw_properties: bytes
    #: The header table with its types.
    headers: TypedTable


class Framer:
    """Cuts bytes into frames. `frame_max` is the largest whole frame allowed, 0 for no limit."""

    def __init__(self, frame_max: int) -> None:
        self.frame_max = frame_max
        self._residue = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; `next` returns the frames that they complete."""
        self._residue += data

    @property
    def residue(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._residue)

    def protocol_header(self) -> bytes | None:
        """Take the eight bytes that open a connection (AMQP 0-9-1, 4.2.2), or None until they are there.

        Bytes that do not begin as ``AMQP`` does are returned at once, even fewer than eight: a broker waits for no
        more.
        """
        start = bytes(self._residue[:8])
        if len(start) < 8 and b"AMQP".startswith(start[:4]):
            return None
        del self._residue[:8]
        return start

    def next(self) -> RawFrame | None:
        """Take the next whole frame, or None until it is there; raises `IllegalBytes` as early as it can tell."""
        residue = self._residue
        if len(residue) < 7:
            if residue and residue[0] not in (METHOD, HEADER, BODY, HEARTBEAT):
                raise IllegalBytes(501, f"type {residue[0]}, all octets = <<>>: unknown_frame")
            return None
        kind, channel, size = struct.unpack_from(">BHI", residue)
        if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
            raise IllegalBytes(501, f"type {kind}, all octets = <<>>: unknown_frame")
        if self.frame_max and size + OVERHEAD > self.frame_max:
            limit = self.frame_max - OVERHEAD
            raise IllegalBytes(501, f"type {kind}, all octets = <<>>: {{frame_too_large,{size},{limit}}}")
        if kind == HEARTBEAT and (channel or size):
            raise IllegalBytes(501, f"heartbeat frame on channel {channel} with {size} bytes")
        if len(residue) < size + OVERHEAD:
            return None
        if residue[size + 7] != FRAME_END:
            raise IllegalBytes(501, f"type {kind}, all octets = <<>>: {{invalid_frame_end_marker,{residue[size + 7]}}}")
        payload = bytes(residue[7 : size + 7])
        del residue[: size + OVERHEAD]
        return RawFrame(kind, channel, payload)


class _Reader:
    """Walks bytes; every read is checked against the end of the frame."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data = data
        self.offset = offset
        self.end = len(data)

    def take(self, size: int) -> bytes:
        if size < 0 or self.offset + size > self.end:
            raise IllegalBytes(502, f"a field of {size} bytes runs past the end of its frame")
        taken = self.data[self.offset : self.offset + size]
        self.offset += size
        return taken

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(">" + code, self.take(struct.calcsize(code)))
        return value

    def short_string(self) -> str:
        raw = self.take(self.number("B"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise IllegalBytes(502, "a short string is not UTF-8") from None

    def long_string(self) -> bytes:
        return self.take(self.number("I"))

    def finish(self, what: str) -> None:
        if self.offset != self.end:
            raise IllegalBytes(502, f"{self.end - self.offset} bytes are left over after {what}")

    def table(self, depth: int = 0) -> TypedTable:
        fields: TypedTable = {}
        for inner in self._nested(depth):
            name = inner.short_string()
            value = inner.value(depth + 1)
            fields.setdefault(name, value)
        return fields

    def array(self, depth: int) -> list[tuple[str, Any]]:
        return [inner.value(depth + 1) for inner in self._nested(depth)]

    def _nested(self, depth: int) -> Iterator[_Reader]:
        if depth > MAX_DEPTH:
            raise IllegalBytes(502, f"field tables are nested more than {MAX_DEPTH} deep")
        inner = _Reader(self.long_string())
        while inner.offset < inner.end:
            yield inner

    def value(self, depth: int) -> tuple[str, Any]:
        kind = self.take(1)
        if kind in _NUMBERS:
            name, code = _NUMBERS[kind]
            return name, self.number(code)
        match kind:
            case b"S":
                raw = self.long_string()
                try:
                    return "longstr", raw.decode()
                except UnicodeDecodeError:
                    return "longstr", raw
            case b"t":
                return "bool", self.number("B") != 0
            case b"D":
                return "decimal", (self.number("B"), self.number("i"))
            case b"x":
                return "binary", self.long_string()
            case b"F":
                return "table", self.table(depth)
            case b"A":
                return "array", self.array(depth)
            case b"V":
                return "void", None
            case _:
                raise IllegalBytes(502, f"unknown field type {kind!r}")


_NUMBERS = {
    b"b": ("byte", "b"),
    b"B": ("unsignedbyte", "B"),
    b"s": ("short", "h"),
    b"u": ("unsignedshort", "H"),
    b"I": ("signedint", "i"),
    b"i": ("unsignedint", "I"),
    b"l": ("long", "q"),
    b"L": ("long", "q"),
    b"T": ("timestamp", "Q"),
    b"f": ("float", "f"),
    b"d": ("double", "d"),
}
_FIXED = {"octet": 1, "short": 2, "long": 4, "longlong": 8, "timestamp": 8}

_METHODS: dict[int, type[base.Frame]] = dict(commands.INDEX_MAPPING)


def _name(cls: type[base.Frame]) -> str:
    """Return the name of a method in this package, such as `exchange.declare_ok`; pamqp says `Exchange.DeclareOk`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.name).lower()


_NAMES = {index: _name(cls) for index, cls in _METHODS.items()}
_CLASSES = {_NAMES[index]: cls for index, cls in _METHODS.items()}
_LAYOUT = {index: tuple((name, cls.amqp_type(name)) for name in cls.attributes()) for index, cls in _METHODS.items()}
_PROPERTIES = tuple(
    (field, commands.Basic.Properties.amqp_type(field), commands.Basic.Properties.flags[field])
    for field in commands.Basic.Properties.attributes()
)
_KNOWN_FLAGS = sum(flag for _, _, flag in _PROPERTIES)


def decode_method(payload: bytes) -> Method:
    """Decode the payload of a method frame; raises `IllegalBytes`."""
    reader = _Reader(payload)
    index = reader.number("I")
    cls = _METHODS.get(index)
    if cls is None:
        raise IllegalBytes(503, f"unknown method {index >> 16}.{index & 0xFFFF}")
    tables: dict[str, TypedTable] = {}
    bits = 0
    for field, kind in _LAYOUT[index]:
        if kind == "bit":
            if bits % 8 == 0:
                reader.take(1)
            bits += 1
            continue
        bits = 0
        if kind == "shortstr":
            reader.short_string()
        elif kind == "longstr":
            reader.long_string()
        elif kind == "table":
            tables[field] = reader.table()
        else:
            reader.take(_FIXED[kind])
    reader.finish(_NAMES[index])
    fields = cls()
    try:
        fields.unmarshal(payload[4:])
    except (ValueError, struct.error, OverflowError) as error:
        raise IllegalBytes(502, f"{_NAMES[index]} cannot be decoded: {error}") from None
    return Method(_NAMES[index], fields, tables)


def decode_login_table(response: bytes) -> tuple[str, str] | None:
    """Return user and password of an AMQPLAIN response, a field table without its length; None where it has not both."""
    reader = _Reader(len(response).to_bytes(4) + response)
    table = reader.table()
    login, password = (table.get(name, (None, None))[1] for name in ("LOGIN", "PASSWORD"))
    return (login, password) if isinstance(login, str) and isinstance(password, str) else None


def decode_content_header(payload: bytes) -> Content:
    """Decode the payload of a content header frame (AMQP 0-9-1, 4.2.6.1); raises `IllegalBytes`."""
    reader = _Reader(payload)
    class_id, weight, size = reader.number("H"), reader.number("H"), reader.number("Q")
    if class_id != 60:
        raise IllegalBytes(505, f"expected content header for class 60, got one for class {class_id} instead")
    if weight:
        raise IllegalBytes(502, f"the weight of a content header must be 0, not {weight}")
    flags = reader.number("H")
    if flags & ~_KNOWN_FLAGS:
        raise IllegalBytes(502, f"a content header sets undefined property flags: {flags:#06x}")
    headers: TypedTable = {}
    for _, kind, flag in _PROPERTIES:
        if not flags & flag:
            continue
        if kind == "shortstr":
            reader.short_string()
        elif kind == "table":
            headers = reader.table()
        else:
            reader.take(_FIXED[kind])
    reader.finish("the content header")
    decoded = header.ContentHeader()
    try:
        decoded.unmarshal(payload)
    except (ValueError, struct.error, OverflowError) as error:
        raise IllegalBytes(502, f"a content header cannot be decoded: {error}") from None
    return Content(size, decoded.properties, payload[12:], headers)


def encode_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return one frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([FRAME_END])


def encode_method(channel: int, name: str, /, **fields: common.FieldValue) -> bytes:
    """Return the frame of a method, e.g. ``encode_method(1, "basic.ack", delivery_tag=3, multiple=True)``."""
    cls = _CLASSES[name]
    given = dict(fields)
    parts = [struct.pack(">I", cls.index)]
    packed, bits = 0, 0
    for field, kind in _LAYOUT[cls.index]:
        value = given.pop(field, None)
        if kind == "bit":
            packed |= bool(value) << bits
            bits += 1
            if bits == 8:
                parts.append(bytes([packed]))
                packed = bits = 0
            continue
        if bits:
            parts.append(bytes([packed]))
            packed = bits = 0
        parts.append(encode.by_type(_EMPTY[kind] if value is None else value, kind))
    if bits:
        parts.append(bytes([packed]))
    if given:
        raise TypeError(f"{name} has no field {', '.join(given)}")
    return encode_frame(METHOD, channel, b"".join(parts))


_EMPTY: dict[str, common.FieldValue] = {
    "octet": 0, "short": 0, "long": 0, "longlong": 0, "shortstr": "", "longstr": "", "table": {}, "timestamp": 0,
}  # fmt: skip


def copy_properties(properties: commands.Basic.Properties) -> commands.Basic.Properties:
    """Return properties that can be changed without changing the message they came from."""
    copy = commands.Basic.Properties()
    for name in commands.Basic.Properties.attributes():
        setattr(copy, name, getattr(properties, name))
    return copy


def encode_properties(properties: commands.Basic.Properties) -> bytes:
    """Return property flags and properties as a content header holds them; "" and None both mean absent."""
    return properties.marshal()
