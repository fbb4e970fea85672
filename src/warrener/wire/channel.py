"""Publishing on one channel in confirm mode, and the content of messages that come in.

The hot path is here. Two messages with the same envelope and body size have the same frames, apart from the body, the message id and
the token, if there is one; id and token are mostly 32 bytes wide. So all other bytes are encoded once and kept per
(envelope, size), and a publish is one join and one append. Ids and tokens of other widths, and bodies
larger than a frame, take the general path.

Invariants: the frames of one message are contiguous on their channel, each at most `frame_max`. Tags are 1, 2, 3 … in the
order of the calls. `written` grows in the step that gives out the last byte of a message.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

from attrs import define, field, frozen
from pamqp import commands

from warrener._ids import IdRange
from warrener.records import Envelope, Returned
from warrener.wire.codec import (
    MAX_ENTRIES,
    TOKEN_HEADER,
    ContentHeader,
    Malformed,
    Method,
    Unsendable,
    long_string,
    method_payload,
    short_string,
    table,
    timestamp,
)
from warrener.wire.framing import BODY, FRAME_END, HEADER, METHOD, OVERHEAD, frame

__all__ = ["LARGEST_BODY", "ChannelState", "Content", "Outgoing", "Publisher"]

#: Pending bytes are cut into parcels of about this size: one send each, and one step of `written`.
PARCEL: Final = 64 * 1024
#: RabbitMQ closes the whole connection because of a larger body (501), and so hurts every other message on it.
LARGEST_BODY: Final = 512 * 1024 * 1024
_ID_SIZE: Final = 32
#: What a channel may keep encoded, in bytes of memory. An entry counts for its frames and `_ENTRY` for its objects.
_MAX_KEPT: Final = 4 * 1024 * 1024
_ENTRY: Final = 1024

#: Of a content header frame: type, channel, payload size, class, weight, body size.
_CONTENT = struct.Struct(">BHIHHQ")
_CONTENT_FIXED: Final = 12
_BODY_PREFIX = struct.Struct(">BHI")
_FLAGS: Final = commands.Basic.Properties.flags
_TOKEN_ENTRY: Final = short_string(TOKEN_HEADER) + b"S"


class ChannelState(enum.Enum):
    """How far a channel has come. The first three values name the request that waits for its answer."""

    OPENING = "opening"
    CONFIRMING = "confirming"
    LIMITING = "limiting"
    READY = "ready"
    CLOSING = "closing"
    CLOSED = "closed"


_READY: Final = ChannelState.READY

#: The bytes before the token (without one: before the message id), between the two, behind the id, behind the body.
_Surroundings: TypeAlias = tuple[bytes, bytes, bytes, bytes]
_Known: TypeAlias = dict[Envelope, dict[int, _Surroundings]]
#: Stands for the token of a message that needs none.
_NO_TOKEN: Final = bytes(32)
#: The last three hexadecimal digits of a number, as the bytes of an id; the digits before them change once in 4,096 messages.
_LOW_DIGITS: Final = tuple(b"%03x" % number for number in range(4096))


@frozen
class _Template:
    """The encoded parts of an envelope, in wire order. Between them stand the parts that differ between messages."""

    method: bytes
    #: Property flags without those of a token's table.
    flags: int
    #: Properties before the headers; the entries of the headers; properties up to the message id; those behind it.
    head: bytes
    entries: bytes
    between: bytes
    rest: bytes

    def before_id(self, token: str | None) -> bytes:
        """Return flags and properties up to the message id."""
        flags, entries = self.flags, self.entries
        if token is not None:
            flags |= _FLAGS["headers"]
            entries = _TOKEN_ENTRY + long_string(token.encode()) + entries
        headers = long_string(entries) if flags & _FLAGS["headers"] else b""
        return b"".join((flags.to_bytes(2), self.head, headers, self.between))


@define(eq=False)
class Publisher:
    """One publishing channel, from its opening to its end, with delivery tags of its own."""

    #: AMQP's channel number, and the number under which the session reports it.
    wire_number: int
    number: int
    frame_max: int
    outgoing: Outgoing
    state: ChannelState = ChannelState.OPENING
    #: The last delivery tag assigned.
    last_tag: int = 0
    #: The highest tag that was written: its last byte was given out.
    written: int = 0
    #: The highest tag that was begun: its first byte was given out. At most one more than `written`.
    begun: int = 0
    #: The return that is being received.
    content: Content | None = None
    _templates: dict[Envelope, _Template] = field(factory=dict[Envelope, _Template])
    #: By envelope and body size: the bytes around the message id and the body, and around the token if there is one.
    _plain: _Known = field(factory=dict[Envelope, dict[int, _Surroundings]])
    _with_token: _Known = field(factory=dict[Envelope, dict[int, _Surroundings]])
    #: The bytes of memory that these three dictionaries take, at most `_MAX_KEPT`.
    _kept: int = 0

    def publish(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Append the frames of one message; return its delivery tag.

        On a channel that has ended the message gets its tag and is not sent: the caller may not have heard of the end yet,
        and will find the tag beyond `written`.
        """
        if self.state is not _READY:
            return self._publish_nothing()
        raw_id = message_id.encode()
        raw_token = _NO_TOKEN if token is None else token.encode()
        outgoing = self.outgoing
        if len(raw_id) == _ID_SIZE == len(raw_token) and len(body) <= self.frame_max - OVERHEAD:
            known = self._plain if token is None else self._with_token
            try:
                before, between, after, end = known[envelope][len(body)]
            except KeyError:
                before, between, after, end = self._remember(known, envelope, len(body), token)
            if token is None:
                outgoing.pending += b"".join((before, raw_id, after, body, end))
            else:
                outgoing.pending += b"".join((before, raw_token, between, raw_id, after, body, end))
        else:
            self._publish_in_general(envelope, raw_id, body, token)
        self.last_tag = tag = self.last_tag + 1
        if len(outgoing.pending) >= PARCEL:
            outgoing.cut()
        return tag

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """Append the frames of messages, in order; return the tag of the first."""
        first, count = self.last_tag + 1, len(bodies)
        if self.state is not _READY:
            self._publish_nothing(count)
        elif tokens is not None:
            self._publish_with_tokens(envelopes, message_ids, bodies, tokens[:])
        elif type(message_ids) is IdRange:
            self._publish_range(envelopes, message_ids, bodies)
        else:
            for envelope, message_id, body in zip(envelopes, message_ids, bodies, strict=True):
                self.publish(envelope, message_id, body, None)
        return first

    def _publish_range(self, envelopes: Sequence[Envelope], ids: IdRange, bodies: Sequence[bytes]) -> None:
        """Append messages with consecutive ids: neighbours of one envelope, one size and equal high digits are joined at once."""
        largest, sizes = self.frame_max - OVERHEAD, list(map(len, bodies))
        number, at, count = ids.first, 0, len(bodies)
        while at < count:
            envelope, size, low = envelopes[at], sizes[at], number & 4095
            if size > largest:
                self.publish(envelope, ids[at], bodies[at], None)
                at, number = at + 1, number + 1
                continue
            stop = end = min(count, at + 4096 - low)
            # Usually all messages have one envelope and one size. Two functions in C find that out in 0.02 us a
            # message; the loop below would take 0.12 us.
            if sizes[at:stop].count(size) < stop - at or envelopes[at:stop].count(envelope) < stop - at:
                end = at + 1
                while end < stop and sizes[end] == size and envelopes[end] is envelope:
                    end += 1
            self._publish_alike(envelope, size, f"{ids.prefix}{number >> 12:09x}".encode(), low, bodies[at:end])
            number += end - at
            at = end

    def _publish_alike(
        self, envelope: Envelope, size: int, high_digits: bytes, low: int, bodies: Sequence[bytes]
    ) -> None:
        """Append messages that differ in their bodies and in the low digits of their ids alone."""
        try:
            before, _, after, end = self._plain[envelope][size]
        except KeyError:
            before, _, after, end = self._remember(self._plain, envelope, size, None)
        outgoing, count = self.outgoing, len(bodies)
        head = b"".join((end, before, high_digits))
        # One piece for all bytes from a body to the next message's low digits: 4 pieces for a message, and one join.
        pieces = [head] * (4 * count)
        pieces[0] = head[len(end) :]
        pieces[1::4] = _LOW_DIGITS[low : low + count]
        pieces[2::4] = [after] * count
        pieces[3::4] = bodies
        # In parcels of about the usual size, so that `written` grows in the usual steps.
        each = -(-PARCEL // (len(head) + 3 + len(after) + size))
        for at in range(0, count, each):
            if at:
                pieces[4 * at] = head[len(end) :]
            outgoing.pending += b"".join(pieces[4 * at : 4 * (at + each)])
            outgoing.pending += end
            self.last_tag += min(each, count - at)
            if len(outgoing.pending) >= PARCEL:
                outgoing.cut()

    def _publish_with_tokens(
        self, envelopes: Sequence[Envelope], ids: Sequence[str], bodies: Sequence[bytes], tokens: Sequence[str]
    ) -> None:
        """Append messages with an id and a token each, joined in parcels of about the usual size."""
        largest = self.frame_max - OVERHEAD
        envelope, size = None, -1
        before = between = after = end = b""
        pieces: list[bytes] = []
        length = each = 0
        for its_envelope, message_id, body, token in zip(envelopes, ids, bodies, tokens, strict=True):
            raw_id, raw_token = message_id.encode(), token.encode()
            if not len(raw_id) == _ID_SIZE == len(raw_token) or len(body) > largest:
                self._append_joined(pieces)
                length = 0
                self.publish(its_envelope, message_id, body, token)
                continue
            if its_envelope is not envelope or len(body) != size:
                envelope, size = its_envelope, len(body)
                known = self._with_token.get(envelope, {}).get(size)
                before, between, after, end = known or self._remember(self._with_token, envelope, size, token)
                each = len(before) + len(between) + len(after) + len(end) + 2 * _ID_SIZE + size
            pieces += (before, raw_token, between, raw_id, after, body, end)
            length += each
            if length >= PARCEL:
                self._append_joined(pieces)
                length = 0
        self._append_joined(pieces)

    def _append_joined(self, pieces: list[bytes]) -> None:
        """Append messages, seven pieces each, and clear the list."""
        self.outgoing.pending += b"".join(pieces)
        self.last_tag += len(pieces) // 7
        pieces.clear()
        if len(self.outgoing.pending) >= PARCEL:
            self.outgoing.cut()

    def _publish_nothing(self, count: int = 1) -> int:
        if self.state is not ChannelState.CLOSED:
            raise RuntimeError(f"channel {self.number} is not open for publishing yet ({self.state.value})")
        self.last_tag += count
        return self.last_tag

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Return why the message cannot be sent, or None."""
        known = self._plain if token is None else self._with_token
        if (
            len(body) in known.get(envelope, ())
            and len(message_id) == _ID_SIZE
            and message_id.isascii()
            and (token is None or (len(token) == _ID_SIZE and token.isascii()))
        ):
            return None  # a message of this envelope and size was sent before
        try:
            template = self._templates.get(envelope) or self._template(envelope)
            raw_id = short_string(message_id, "message_id")
            properties = template.before_id(token)
        except (Unsendable, UnicodeEncodeError) as error:
            return str(error)
        size = OVERHEAD + _CONTENT_FIXED + len(properties) + len(raw_id) + len(template.rest)
        if size > self.frame_max:
            return f"the properties and headers take {size:,} bytes; this broker takes {self.frame_max:,} (frame_max)"
        if len(body) > LARGEST_BODY:
            return f"the body has {len(body):,} bytes; RabbitMQ takes {LARGEST_BODY:,} at most"
        return None

    def end(self) -> None:
        """The channel is closed: from now on only its tags are used."""
        self.state = ChannelState.CLOSED
        self.content = None
        self._forget()

    def _forget(self) -> None:
        self._templates.clear()
        self._plain.clear()
        self._with_token.clear()
        self._kept = 0

    def _make_room(self, size: int) -> None:
        """Count an entry of `size` bytes as kept. If there are too many bytes, forget everything that was kept before."""
        cost = size + _ENTRY
        if self._kept + cost > _MAX_KEPT:
            self._forget()
        self._kept += cost

    def _template(self, envelope: Envelope) -> _Template:
        """Encode an envelope and keep it; raises `Unsendable`."""
        headers = envelope.headers or {}
        if TOKEN_HEADER in headers:
            raise Unsendable(f"the header {TOKEN_HEADER} is reserved")
        for name, value in (("priority", envelope.priority or 0), ("delivery_mode", envelope.delivery_mode)):
            if not 0 <= value <= 255:
                raise Unsendable(f"{name} must be an integer from 0 to 255")
        flags = _FLAGS["delivery_mode"] | _FLAGS["message_id"] | (_FLAGS["headers"] if headers else 0)

        def optional(name: str, value: str | None) -> bytes:
            nonlocal flags
            if value is None:
                return b""
            flags |= _FLAGS[name]
            return short_string(value, name.removeprefix("message_"))

        head = optional("content_type", envelope.content_type) + optional("content_encoding", envelope.content_encoding)
        between = b"%c" % envelope.delivery_mode
        if envelope.priority is not None:
            flags |= _FLAGS["priority"]
            between += b"%c" % envelope.priority
        between += optional("correlation_id", envelope.correlation_id)
        between += optional("reply_to", envelope.reply_to)
        between += optional("expiration", envelope.expiration)
        rest = b""
        if envelope.timestamp is not None:
            flags |= _FLAGS["timestamp"]
            rest += timestamp(envelope.timestamp)
        rest += optional("message_type", envelope.type)
        rest += optional("user_id", envelope.user_id)
        rest += optional("app_id", envelope.app_id)
        template = _Template(
            method=frame(
                METHOD,
                self.wire_number,
                method_payload(
                    commands.Basic.Publish,
                    exchange=envelope.exchange,
                    routing_key=envelope.routing_key,
                    mandatory=envelope.mandatory,
                ),
            ),
            flags=flags,
            head=head,
            # One value fewer than the reader takes: a token can be added.
            entries=table(headers, room=MAX_ENTRIES - 1)[4:],
            between=between,
            rest=rest,
        )
        size = len(template.method) + len(template.head) + len(template.entries) + len(between) + len(rest)
        if size <= self.frame_max:  # a larger one cannot be sent
            # The headers are kept twice: encoded, and in the envelope.
            self._make_room(size + len(template.entries))
            self._templates[envelope] = template
        return template

    def _remember(self, known: _Known, envelope: Envelope, size: int, token: str | None) -> _Surroundings:
        """Encode the bytes around a message id of 32 bytes, and around a token of 32 bytes, and keep them."""
        template = self._templates.get(envelope) or self._template(envelope)
        properties = template.before_id(token) + b"%c" % _ID_SIZE
        start = template.method + self._header_start(template, len(properties) + _ID_SIZE, size)
        if token is None:
            before, between = start + properties, b""
        else:
            # The token is the value of the first entry of the first table, behind `head`.
            at = properties.index(token.encode(), 2 + len(template.head))
            before, between = start + properties[:at], properties[at + _ID_SIZE :]
        after, end = template.rest + FRAME_END, b""
        if size:
            after, end = after + _BODY_PREFIX.pack(BODY, self.wire_number, size), FRAME_END
        self._make_room(len(before) + len(between) + len(after))
        known.setdefault(envelope, {})[size] = (before, between, after, end)
        return before, between, after, end

    def _header_start(self, template: _Template, properties: int, body_size: int) -> bytes:
        """Return a header frame up to its flags; `properties` bytes stand between the body size and `template.rest`."""
        payload = _CONTENT_FIXED + properties + len(template.rest)
        return _CONTENT.pack(HEADER, self.wire_number, payload, commands.Basic.frame_id, 0, body_size)

    def _publish_in_general(self, envelope: Envelope, raw_id: bytes, body: bytes, token: str | None) -> None:
        template = self._templates.get(envelope) or self._template(envelope)
        properties = template.before_id(token) + b"%c%b" % (len(raw_id), raw_id)
        start = self._header_start(template, len(properties), len(body))
        pending = self.outgoing.pending
        pending += b"".join((template.method, start, properties, template.rest, FRAME_END))
        room = self.frame_max - OVERHEAD
        for at in range(0, len(body), room):
            # The tag is not assigned yet, so a parcel that is cut inside the message does not count it as written. The
            # last frame stays pending until the tag is assigned.
            if len(pending) >= PARCEL:
                self.outgoing.cut(within=self)
            pending += frame(BODY, self.wire_number, body[at : at + room])


#: Bytes; and for each publisher the tags that are written and begun once the bytes are taken.
_Parcel: TypeAlias = "tuple[bytes, tuple[tuple[Publisher, int, int], ...]]"


@define(eq=False)
class Outgoing:
    """The bytes that wait for the socket, as one bytearray with the parcels that were cut off its front."""

    #: Where frames are appended. It is changed in place, because publishers keep a reference to it.
    pending: bytearray = field(factory=bytearray)
    #: The bytes in `_parcels`. `pending` holds less than one parcel beside them.
    backlog: int = 0
    publishers: list[Publisher] = field(factory=list[Publisher])
    _parcels: deque[_Parcel] = field(factory=deque[_Parcel])

    def cut(self, within: Publisher | None = None) -> None:
        """Make a parcel of the pending bytes; when it is taken, the tags assigned so far are written.

        `within`: the cut lies inside the next message of that publisher, which is begun then.
        """
        data = bytes(self.pending)
        self.pending.clear()
        self.backlog += len(data)
        self._parcels.append(
            (
                data,
                tuple(
                    (publisher, publisher.last_tag, publisher.last_tag + (publisher is within))
                    for publisher in self.publishers
                ),
            )
        )

    def take(self) -> bytes:
        """Return the next bytes to send, b"" if there are none; from now on they are written."""
        if not self._parcels:
            if not self.pending:
                return b""
            data = bytes(self.pending)
            # Overwritten, because a SASL response may be among them.
            self.pending[:] = bytes(len(data))
            self.pending.clear()
            for publisher in self.publishers:
                publisher.written = publisher.begun = publisher.last_tag
            return data
        data, tags = self._parcels.popleft()
        self.backlog -= len(data)
        for publisher, written, begun in tags:
            # The broker discards all bytes for a channel that it has closed: `written` stays as it was reported.
            if publisher.state is _READY:
                publisher.written = written
                publisher.begun = begun
        return data

    def clear(self) -> None:
        """Forget everything that was not taken."""
        self.pending.clear()
        self._parcels.clear()
        self.backlog = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.pending or self._parcels)


@define
class Content:
    """A content that is being received: a header frame, then body frames with the number of bytes that it announces."""

    #: basic.return or basic.get-ok.
    method: Method
    #: Where the bytes go; None: they are hashed and dropped.
    kept: bytearray | None
    header: ContentHeader | None = None
    received: int = 0
    _hash: blake2b = field(factory=lambda: blake2b(digest_size=16))

    def begin(self, header: ContentHeader, limit: int) -> None:
        """Take the header; a body larger than `limit` bytes is not kept."""
        if self.header is not None:
            raise Malformed("a second content header came where a body frame was due")
        self.header = header
        if header.body_size > limit:
            self.kept = None

    def extend(self, data: bytes | bytearray) -> None:
        """Take a body frame."""
        if self.header is None:
            raise Malformed("a body frame came where a content header was due")
        self.received += len(data)
        if not data or self.received > self.header.body_size:
            raise Malformed(
                f"after a body frame of {len(data)} bytes the body has {self.received} bytes; its header announced "
                f"{self.header.body_size} bytes"
            )
        self._hash.update(data)
        if self.kept is not None:
            self.kept += data

    @property
    def complete(self) -> ContentHeader | None:
        """The header, when all bytes that it announces have come; None before."""
        return self.header if self.header is not None and self.received == self.header.body_size else None

    def returned(self, header: ContentHeader, text: Callable[[object], str]) -> Returned:
        """Return the message that basic.return brought back; `text` makes texts of the broker safe to show."""
        method = self.method
        assert isinstance(method, commands.Basic.Return)
        exchange, routing_key = method.exchange or "", method.routing_key or ""
        return Returned(
            reply_code=method.reply_code or 0,
            reply_text=text(method.reply_text or ""),
            exchange=exchange,
            routing_key=routing_key,
            message_id=header.message_id,
            token=header.token,
            body_size=header.body_size,
            body_hash=self.digest(),
            shown=f"exchange '{text(exchange)}', routing key '{text(routing_key)}', message {text(header.message_id or '?')}",
        )

    def digest(self) -> bytes:
        """blake2b of the body, in 16 bytes."""
        return self._hash.digest()
