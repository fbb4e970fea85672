"""Any bytes of HTTP clients, in any pieces and at any pace: whole answers, bounded memory, nothing raised, nobody else hurt.

The server's own protocol and app run on an event loop whose clock is the check's. Each transport of it is a list of bytes.
The loop, the transports and the clock are made anew for each input.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from uvicorn.server import ServerState

from tests.ml.conftest import FakeProducer
from tests.ml.http_inputs import illegal
from warrener.ml import MLProducer, MLSettings, http_server, task_endpoint
from warrener.ml.app import ml_app
from warrener.ml.guard import Guard
from warrener.ml.http_server import READ_SIZE, ServerCounters, connection_type

#: Ends a turn of a client. The first byte of a turn says what the client does.
TURN = b"\x00\xff\xfeTURN"
#: Small bounds are reached by short inputs.
SETTINGS = MLSettings(
    max_header=1024, max_fields=20, max_body=2048, max_held=4096, max_parsed=20_000, max_connections=4
)
#: Nothing of the service waits for longer.
LONGEST = 60.0
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
STATUSES = {100, 200, 202, 400, 403, 404, 405, 408, 413, 415, 421, 422, 431, 501, 503, 505}

# A body within max_parsed is parsed in the event loop: a thread would have a time of its own.
assert SETTINGS.max_parsed <= task_endpoint.AT_ONCE

_PRODUCER: Any = FakeProducer()
#: One app for all inputs: what an input leaves behind in it is seen.
_ENDPOINTS: list[task_endpoint.TaskEndpoint] = []
_INIT = task_endpoint.TaskEndpoint.__init__


def _kept(endpoint: task_endpoint.TaskEndpoint, ml: MLProducer) -> None:
    _ENDPOINTS.append(endpoint)
    _INIT(endpoint, ml)


task_endpoint.TaskEndpoint.__init__ = _kept  # type: ignore[method-assign]
_APP = Guard(ml_app(MLProducer(SETTINGS, producer=_PRODUCER)), SETTINGS, token=None)
task_endpoint.TaskEndpoint.__init__ = _INIT  # type: ignore[method-assign]


class Records(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


_RECORDS = Records()


@contextmanager
def recorded() -> Iterator[None]:
    """Record the errors that are logged, without limits, and leave the loggers as they were."""
    root, loggers = logging.getLogger(), [logging.getLogger(name) for name in ("warrener.http", "warrener.tasks")]
    before = [(each, each.level, each.filters[:]) for each in loggers]
    root.addHandler(_RECORDS)
    for each in loggers:
        each.setLevel(logging.ERROR)
        each.filters.clear()
    try:
        yield
    finally:
        root.removeHandler(_RECORDS)
        for each, level, filters in before:
            each.setLevel(level)
            each.filters[:] = filters


class Loop(asyncio.SelectorEventLoop):
    """An event loop that the check turns, with a clock that the check moves."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """Run until nothing is left to do at this time."""
        for _ in range(10_000):
            self.call_soon(self.stop)
            self.run_forever()
            if not cast("Any", self)._ready:
                return
        raise AssertionError("the event loop never rests")

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 4.0)
            self.turn()


class Wire:
    """A transport that keeps what is written; and the client's end of it."""

    def __init__(self, loop: Loop, protocol: Any) -> None:
        self._loop = loop
        self.protocol = protocol
        self.sent = bytearray()
        self._reading = True
        self._closing = self.lost = False
        self._coming = bytearray()
        self._ended = False
        protocol.connection_made(self)

    # --- the transport

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 4), "sockname": ("127.0.0.1", 3), "socket": self}.get(name, default)

    def fileno(self) -> int:
        return 7

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 4)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 3)

    def write(self, data: bytes) -> None:
        if not self._closing:
            self.sent += data

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.lose, None)

    abort = close

    # --- the client

    def lose(self, error: Exception | None) -> None:
        self._closing = True
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(error)

    def come(self, data: bytes, piece: int) -> None:
        """Let the bytes arrive in pieces, as fast as the server reads."""
        self._coming += data
        for _ in range(2 * len(data) // piece + 40):
            if self._closing or not self._coming:
                break
            if self._reading:
                part = bytes(self._coming[: min(piece, READ_SIZE)])
                del self._coming[: len(part)]
                self.protocol.data_received(part)
                self._judge()
            self._loop.turn()

    def end(self) -> None:
        """End the client's direction."""
        if not self._closing and not self._ended:
            self._ended = True
            if not self.protocol.eof_received():
                self.close()

    def _judge(self) -> None:
        protocol = self.protocol
        held = len(protocol.conn.trailing_data[0]) + (len(protocol.cycle.body) if protocol.cycle else 0)
        assert held <= SETTINGS.max_header + 3 * READ_SIZE + 65536, "a connection holds more than its bounds"


_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[!-9;-~]+: ?[^\r\n]*\r\n)*)\r\n")


def answers(sent: bytes, *, cut: bool, head_asked: bool) -> list[int]:
    """Return the statuses of the answers; each of them is whole, the last one unless the client was cut off.

    `head_asked`: an answer may have no body, though its head names a length.
    """
    found = []
    at = 0
    while at < len(sent):
        head = _HEAD.match(sent, at)
        assert head is not None, f"no head of an answer: {sent[at : at + 100]!r}"
        status, at = int(head[1]), head.end()
        assert status in STATUSES, f"an answer of status {status}"
        found.append(status)
        length = re.search(rb"(?im)^content-length: (\d+)\r$", head[2])
        if length is not None:
            bodiless = head_asked and (at == len(sent) or sent.startswith(b"HTTP/1.1 ", at))
            at += 0 if bodiless else int(length[1])
        elif status >= 200:
            at = len(sent)  # a stream, or the answer to HTTP/1.0
    assert at == len(sent) or cut, "an answer is torn"
    return found


class Driven(random.Random):
    """Choices that the bytes of the input make."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data

    def random(self) -> float:
        return self.getrandbits(8) / 256

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        part, self._data = self._data[:size], self._data[size:]
        return int.from_bytes(part, "little") & ((1 << k) - 1)


def made(data: bytes) -> bytes:
    """Return the bytes of one turn: as they are, or as the generator makes them."""
    return illegal(Driven(data[1:])) if data[:1] == b"\x00" else data


@recorded()
def check(data: bytes) -> None:
    """Three clients; each turn of the input is one client's."""
    del _RECORDS.texts[:]
    del _PRODUCER.published[:]
    loop = Loop()
    asyncio.set_event_loop(loop)
    try:
        counters = ServerCounters()
        protocol = connection_type(SETTINGS, counters, loop)
        config = http_server.config(_APP, protocol, SETTINGS)
        config.load()
        state = ServerState()

        def connect() -> Wire:
            return Wire(loop, cast("Callable[..., Any]", protocol)(config, state, {}, loop))

        wires = [connect() for _ in range(3)]
        cut: set[Wire] = set()
        head_asked = False
        for turn in data.split(TURN)[:12]:
            act, said = (turn[0] if turn else 0), made(turn[1:])
            head_asked |= b"HEAD" in said
            wire = wires[act % 3]
            if wire.lost:
                wire = wires[act % 3] = connect()
            wire.come(said, 1 if act & 4 else READ_SIZE)
            if act & 8:
                wire.end()
            if act & 16 and not wire.lost:
                cut.add(wire)
                wire.lose(ConnectionResetError())
            if act & 32:
                wire.protocol.pause_writing()
            loop.turn()
            if act & 64:
                loop.sleep(1.0)
            if act & 128:
                loop.sleep(11.0)
            answers(bytes(wire.sent), cut=wire in cut or act & 32 != 0, head_asked=head_asked)
        honest = connect()
        honest.come(LIVEZ, READ_SIZE)
        loop.turn()
        assert honest.sent.startswith(b"HTTP/1.1 200 "), f"liveness: {bytes(honest.sent[:100])!r}"
        for wire in wires:
            wire.protocol.resume_writing()
        loop.sleep(LONGEST)
        for wire in wires:
            statuses = answers(bytes(wire.sent), cut=wire in cut, head_asked=head_asked)
            stream = b"text/event-stream" in wire.sent
            assert wire.lost or stream, f"a connection is never closed: {statuses}"
            wire.lose(None)
        loop.turn()
        (endpoint,) = _ENDPOINTS
        left = (endpoint._open, endpoint._whole, endpoint._budget.held)
        assert left == (0, 0, 0), f"requests or bytes are still counted: {left}"
        assert counters.broken == 0, "the handling of a connection failed"
        assert not loop.errors, f"the event loop was told of {loop.errors[0]}"
        assert not _RECORDS.texts, _RECORDS.texts[0]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.turn()
        loop.close()
        asyncio.set_event_loop(None)
