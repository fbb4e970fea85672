"""One direction of a connection through the `FaultProxy`: a reader and a writer with a short queue between them."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable

import anyio
from attrs import define, field

from warrener.testing._streams import CHUNK, MemoryStream, SocketStream

__all__ = ["Line", "Pace", "Signal", "Way"]

#: Seconds that the longest piece takes, so that a slow line is even.
PIECE = 0.01
#: Seconds: how far the writer may run ahead of its pace before it sleeps. A sleep for each piece would cost a fast line
#: more than the piece itself.
AHEAD = 0.005
#: Seconds: how far the writer may lag behind its pace and still catch up. Sleeps end late, and an idle line saves nothing
#: beyond this.
BEHIND = 0.05


class Signal:
    """Wakes the tasks that wait until something is true."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def change(self) -> None:
        """Have every waiting task look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready` says True."""
        while not ready():
            await self._changed.wait()


class Pace:
    """A token bucket on the clock: says until when the writer has to wait after each piece."""

    def __init__(self) -> None:
        self._free_at = -math.inf

    def after(self, size: int, bandwidth: float, now: float) -> float | None:
        """Count `size` bytes that were sent at `now`; return the instant to sleep until, or None to go on."""
        self._free_at = max(self._free_at, now - BEHIND) + size / bandwidth
        return self._free_at if self._free_at > now + AHEAD else None


@define(eq=False)
class Way:
    """The faults of one direction, over all connections."""

    latency: float = 0.0
    #: Bytes per second, for each connection.
    bandwidth: float = math.inf
    slice: int | None = None
    frozen: bool = False
    black_hole: bool = False
    #: Bytes still to forward before the cut, or the corruption; None: none is due.
    until_cut: int | None = None
    until_corruption: int | None = None
    cut_by_reset: bool = True
    #: Seconds that the end of a stream is held back.
    late_close: float = 0.0
    #: Bytes forwarded, and swallowed instead, since the proxy was made.
    forwarded: int = 0
    swallowed: int = 0

    def piece_size(self, rest: int) -> int:
        """Return how many of the `rest` bytes go out in the next write."""
        size = self.slice or rest
        if self.bandwidth != math.inf:
            size = min(size, max(1, int(self.bandwidth * PIECE)))
        if self.until_cut is not None:
            size = min(size, self.until_cut)
        return min(size, rest)


@define(eq=False)
class Line:
    """Carries bytes from `source` to `sink` with the faults of `way`; holds at most `window` bytes."""

    way: Way
    source: SocketStream | MemoryStream
    sink: SocketStream | MemoryStream
    window: int
    #: Ends the whole connection when the cut is reached; True: by a reset.
    end: Callable[[bool], None]
    signal: Signal = field(factory=Signal)
    #: (when the bytes are due, the bytes); b"" is the end of the stream.
    _queue: deque[tuple[float, bytes]] = field(factory=deque[tuple[float, bytes]])
    _held: int = 0
    _pace: Pace = field(factory=Pace)

    async def read(self) -> None:
        """Take bytes from the source until it ends."""
        way, data = self.way, None
        while data != b"":
            # Half the window at least: otherwise the pieces that are read and sent become ever smaller.
            await self.signal.until(lambda: not way.frozen and self._held <= self.window // 2)
            try:
                data = await self.source.receive(min(CHUNK, self.window - self._held))
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                data = b""
            except anyio.BrokenResourceError:
                self.sink.close_now(reset=True)
                data = b""
            delay = way.latency if data else max(way.latency, way.late_close)
            self._queue.append((anyio.current_time() + delay, data))
            self._held += len(data)
            self.signal.change()

    async def write(self) -> None:
        """Forward the bytes, each piece when it is due, until the end of the stream or of the connection."""
        way = self.way
        while True:
            await self.signal.until(lambda: bool(self._queue) and not way.frozen)
            due, data = self._queue[0]
            await anyio.sleep_until(due)
            await self.signal.until(lambda: not way.frozen)
            self._queue.popleft()
            if not data:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await self.sink.send_eof()
                return
            if not await self._forward(data):
                return
            self._held -= len(data)
            self.signal.change()

    async def _forward(self, data: bytes) -> bool:
        """Send bytes on; say whether the stream goes on."""
        way, rest = self.way, data
        while rest:
            await self.signal.until(lambda: not way.frozen)
            size = way.piece_size(len(rest))
            piece, rest = rest[:size], rest[size:]
            if way.black_hole:
                way.swallowed += size
            elif not await self._send(piece):
                return False
            if way.until_cut is not None:
                way.until_cut -= size
                if way.until_cut == 0:
                    way.until_cut = None
                    self.end(way.cut_by_reset)
                    return False
            if way.bandwidth != math.inf:
                free_at = self._pace.after(size, way.bandwidth, anyio.current_time())
                if free_at is not None:
                    await anyio.sleep_until(free_at)
        return True

    async def _send(self, piece: bytes) -> bool:
        way = self.way
        if way.until_corruption is not None:
            at = way.until_corruption
            way.until_corruption = None if at < len(piece) else at - len(piece)
            if at < len(piece):
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        try:
            await self.sink.send(piece)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.source.close_now(reset=True)
            return False
        way.forwarded += len(piece)
        return True
