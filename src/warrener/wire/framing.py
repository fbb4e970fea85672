"""From pieces of any size to whole frames (AMQP 0-9-1, 2.3.5); confirms are taken directly from the buffer.

One bytearray holds the residue: at most one unfinished frame of at most `cap` bytes. The seven bytes of a frame's
header are judged as soon as they are there, before any other byte of the frame is kept. basic.ack and basic.nack have
one layout of 21 bytes; they are taken out with a single unpack and no object of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from attrs import define, field
from pamqp import commands

from warrener.wire.codec import Malformed

__all__ = ["BODY", "FLOOR", "FRAME_END", "HEADER", "HEARTBEAT", "METHOD", "OVERHEAD", "Parser", "frame"]

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
_HEARTBEAT_TYPE: Final = 8
_TYPES: Final = frozenset({METHOD, HEADER, BODY, _HEARTBEAT_TYPE})

FRAME_END: Final = b"\xce"
#: The bytes of a frame around its payload: type, channel, size; and the end byte.
OVERHEAD: Final = 8
#: No frame may be larger before the tuning (RabbitMQ from 4.1 on; AMQP itself says 4096).
FLOOR: Final = 8192

_PREFIX = struct.Struct(">BHI")
#: type, channel, size, class and method, delivery tag, bits, end byte.
_CONFIRM = struct.Struct(">BHIIQBB")
_CONFIRM_SIZE: Final = 13
_ACK: Final = commands.Basic.Ack.index
_NACK: Final = commands.Basic.Nack.index

HEARTBEAT: Final = _PREFIX.pack(_HEARTBEAT_TYPE, 0, 0) + FRAME_END


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return b"%b%b\xce" % (_PREFIX.pack(kind, channel, len(payload)), payload)


@define
class Parser:
    """Cuts frames. `feed` calls back for each in wire order and raises `Malformed` at the first illegal bytes."""

    #: ``(channel, tag, multiple)``
    _on_ack: Callable[[int, int, bool], None]
    _on_nack: Callable[[int, int, bool], None]
    #: ``(type, channel, payload)`` for method, header and body frames that are not confirms.
    _on_frame: Callable[[int, int, bytearray], None]
    #: The largest legal frame, its overhead included.
    cap: int = FLOOR
    #: How many times `feed` has seen the end of a frame. The deadline of a frame is measured by it.
    completions: int = 0
    _buffer: bytearray = field(factory=bytearray)

    @property
    def residue(self) -> int:
        """How many bytes of an unfinished frame are held; never more than `cap`."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream."""
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        try:
            while end - at >= _PREFIX.size:
                if end - at >= _CONFIRM.size:
                    kind, channel, size, index, tag, bits, last = _CONFIRM.unpack_from(buffer, at)
                    if size == _CONFIRM_SIZE and kind == METHOD and last == FRAME_END[0]:
                        if index == _ACK:
                            at += 21
                            self._on_ack(channel, tag, bits & 1 == 1)
                            continue
                        if index == _NACK:
                            at += 21
                            self._on_nack(channel, tag, bits & 1 == 1)
                            continue
                else:
                    kind, channel, size = _PREFIX.unpack_from(buffer, at)
                self._judge(kind, channel, size)
                if end - at < size + OVERHEAD:
                    break
                start = at + _PREFIX.size
                at += size + OVERHEAD
                if buffer[at - 1] != FRAME_END[0]:
                    raise Malformed(f"a frame ends with {buffer[at - 1]:#04x} in place of 0xce")
                if kind != _HEARTBEAT_TYPE:
                    self._on_frame(kind, channel, buffer[start : at - 1])
        except BaseException:
            at = end  # from here on the stream cannot be understood; nothing of it is kept
            raise
        finally:
            if at:
                del buffer[:at]
                self.completions += 1

    def _judge(self, kind: int, channel: int, size: int) -> None:
        """Judge a frame by its first seven bytes."""
        if kind not in _TYPES:
            raise Malformed(f"a frame has the unknown type {kind}")
        if size > self.cap - OVERHEAD:
            raise Malformed(f"a frame of {size + OVERHEAD} bytes is larger than the limit of {self.cap} bytes")
        if kind == _HEARTBEAT_TYPE and (channel or size):
            raise Malformed(f"a heartbeat came on channel {channel} with {size} bytes")
        if kind in (HEADER, BODY) and not channel:
            raise Malformed("content came on channel 0")
