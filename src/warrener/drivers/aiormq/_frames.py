"""The frames of the inbound stream: cut, judged by their limits, and given to their handlers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Mapping
from typing import TypeVar

from pamqp.exceptions import PAMQPException

from warrener.drivers import _faults
from warrener.drivers.base import LinkDown
from warrener.wire.codec import Malformed, read_method

__all__ = ["UNREADABLE", "FrameFilter", "method_of", "read"]

T = TypeVar("T")

#: AMQP 0-9-1, 4.2.3: type, channel, size; then the payload and the end byte.
_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">I")
_CONFIRM = struct.Struct(">QB")
_OVERHEAD = 8
_END = 0xCE

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8

#: Class and method ids as one number.
START = 10 << 16 | 10
START_OK = 10 << 16 | 11
SECURE = 10 << 16 | 20
TUNE = 10 << 16 | 30
OPEN = 10 << 16 | 40
OPEN_OK = 10 << 16 | 41
CONNECTION_CLOSE = 10 << 16 | 50
CONNECTION_CLOSE_OK = 10 << 16 | 51
BLOCKED = 10 << 16 | 60
SECRET_TAKEN = 10 << 16 | 71
UNBLOCKED = 10 << 16 | 61
CHANNEL_OPEN = 20 << 16 | 10
CHANNEL_OPEN_OK = 20 << 16 | 11
FLOW = 20 << 16 | 20
CHANNEL_CLOSE = 20 << 16 | 40
CHANNEL_CLOSE_OK = 20 << 16 | 41
QOS = 60 << 16 | 10
QOS_OK = 60 << 16 | 11
PUBLISH = 60 << 16 | 40
RETURN = 60 << 16 | 50
ACK = 60 << 16 | 80
NACK = 60 << 16 | 120
CONFIRM_SELECT = 85 << 16 | 10
CONFIRM_SELECT_OK = 85 << 16 | 11
#: The answers to requests: declare-ok, bind-ok and so on of exchange and queue; get-ok and get-empty.
ANSWERS = (
    *(40 << 16 | method for method in (11, 31, 51)),
    *(50 << 16 | method for method in (11, 21, 31, 41, 51)),
    60 << 16 | 71,
    60 << 16 | 72,
)

_CONNECTION = 10

#: No frame may be larger before the tuning (RabbitMQ's own limit there).
UNTUNED_FRAME_MAX = 8192

#: What pamqp raises on values that it cannot encode.
UNREADABLE = (PAMQPException, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, struct.error)

#: Returns the frame to pass on to aiormq, or None.
FrameHandler = Callable[[int, bytes], "bytes | None"]
ConfirmHandler = Callable[[int, int, bool, bool], None]


class FrameFilter:
    """Cuts the inbound stream into frames. Each goes to its handler; a frame that the handler returns comes back from `feed`.

    Raises `LinkDown` for a peer that breaks the protocol; nothing must be sent to it after that.
    """

    def __init__(
        self, methods: Mapping[int, FrameHandler], content: Callable[[int, int, bytes], bool], confirm: ConfirmHandler
    ) -> None:
        self._methods = methods
        self._content = content
        self._confirm = confirm
        #: The channels on which a content is incomplete: no method may come there.
        self.unfinished: Container[int] = ()
        #: The channels that are open.
        self.channels: Container[int] = ()
        #: Our close handshake has begun: a frame that is not legal is dropped.
        self.leaving = False
        self._buffer = bytearray()
        self._greeted = False
        #: The largest frame that is legal now, its eight bytes of overhead included.
        self.frame_max = UNTUNED_FRAME_MAX
        #: How many whole frames have arrived.
        self.frames = 0

    @property
    def in_frame(self) -> bool:
        """Whether a frame has arrived in part only."""
        return bool(self._buffer)

    def _greet(self) -> bool:
        """Whether the first bytes begin a method frame; False while too few have come. Raises `LinkDown` for others."""
        buffer = self._buffer
        if buffer[0] != METHOD:
            # Another AMQP has eight bytes, a TLS alert seven; two bytes of an alert are enough.
            if (len(buffer) < _OVERHEAD and b"AMQP".startswith(buffer[:4])) or bytes(buffer) == b"\x15":
                return False
            raise LinkDown(_faults.not_amqp(bytes(buffer[:_OVERHEAD])))
        self._greeted = True
        return True

    def feed(self, data: bytes) -> bytes:
        """Take bytes in any split; return the whole frames that are for aiormq."""
        try:
            return self._feed(data)
        except Malformed as error:
            raise LinkDown(_faults.illegal_frame(str(error))) from None

    def _feed(self, data: bytes) -> bytes:
        buffer = self._buffer
        buffer += data
        if not self._greeted and not self._greet():
            return b""
        passed: list[bytes] = []
        at, available = 0, len(buffer)
        while available - at >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(buffer, at)
            end = at + size + _OVERHEAD
            if end - at > self.frame_max:
                raise LinkDown(
                    _faults.illegal_frame(f"a frame of {end - at} bytes, over the limit of {self.frame_max}")
                )
            if end > available:
                break
            if buffer[end - 1] != _END:
                raise LinkDown(_faults.illegal_frame("a frame without its end byte"))
            try:
                kept = self._frame(kind, channel, size, bytes(buffer[at:end]))
            except (LinkDown, Malformed):
                if not self.leaving:
                    raise
                kept = None
            if kept is not None:
                passed.append(kept)
            at = end
            self.frames += 1
        del buffer[:at]
        return b"".join(passed)

    def _frame(self, kind: int, channel: int, size: int, frame: bytes) -> bytes | None:
        """Take a whole frame; return it where aiormq waits for it."""
        if kind == METHOD:
            if size < _METHOD.size:
                raise LinkDown(_faults.illegal_frame("a method frame without a method"))
            if channel in self.unfinished:
                raise Malformed(f"a method came on channel {channel} inside a content")
            (method,) = _METHOD.unpack_from(frame, _FRAME.size)
            if method in (ACK, NACK):
                if size != _METHOD.size + _CONFIRM.size:
                    raise LinkDown(_faults.illegal_frame("a confirm of the wrong size"))
                tag, bits = _CONFIRM.unpack_from(frame, _FRAME.size + _METHOD.size)
                self._confirm(channel, tag, bool(bits & 1), method == NACK)
                return None
            if channel not in self.channels:
                raise Malformed(f"a frame came on channel {channel}, which is not open")
            handler = self._methods.get(method)
            # The methods of the connection belong on channel 0, and no others do.
            if handler is None or (method >> 16 == _CONNECTION) is not (channel == 0):
                raise Malformed(f"the method {method >> 16}.{method & 0xFFFF} came on channel {channel}")
            return handler(channel, frame)
        if kind in (HEADER, BODY):
            if not self._content(kind, channel, frame):
                raise Malformed(f"content came on channel {channel} without a method before it")
        elif kind != HEARTBEAT:
            raise LinkDown(_faults.illegal_frame(f"a frame of unknown type {kind}"))
        elif channel or size:
            raise LinkDown(_faults.illegal_frame("a heartbeat with a channel or a payload"))
        return None


def read(data: bytes, kind: type[T]) -> T:
    """Return the method in the frame; raises `LinkDown` for bytes that are not such a frame."""
    method = read_method(payload(data))
    if not isinstance(method, kind):
        raise LinkDown(_faults.illegal_frame(f"a {method.name} where {kind.__name__} was due"))
    return method


def payload(data: bytes) -> bytes:
    """Return the payload of a whole frame."""
    return data[_FRAME.size : -1]


def method_of(data: bytes | bytearray | memoryview) -> int | None:
    """Return class and method of the frame with which the bytes begin, or None where it is no method frame."""
    if len(data) < _FRAME.size + _METHOD.size or data[0] != METHOD:
        return None
    (method,) = _METHOD.unpack_from(data, _FRAME.size)
    return int(method)


def channel_of(data: bytes) -> int:
    """Return the channel number of the frame with which the bytes begin."""
    return int.from_bytes(data[1:3])
