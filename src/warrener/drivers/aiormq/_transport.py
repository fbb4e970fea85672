"""The transport: every byte between aiormq and the broker passes here, in both directions.

Why it exists. A driver must report events that aiormq does not report to its user. aiormq overrides the server's
heartbeat, swallows connection.blocked, matches returns by message_id, and drops a multiple ack whose highest tag it no
longer holds. It may answer a close with a close, and keeps credentials in a URL that it logs. All of that is visible on
the wire.
So aiormq gets an asyncio transport of our own (`aiormq.TransportFactory` is public API for that) and the driver reads
the events from the frames themselves:

* *Inbound*, `FrameFilter` cuts the stream into frames. It checks each frame against the limits before it allocates
  memory for the frame. The driver gets the frames that concern it; aiormq gets its own, always as whole frames.
* *Outbound*, `FilteringTransport.write` sees whole messages, as aiormq writes each method with its content in one call. It counts
  publishes, lets the driver rewrite or drop a frame, and gathers everything written in one turn of the loop into one
  send.

Invariants: the tag of a publish is marked as written before the `send` call that holds its last byte. After `seal` no
byte is accepted. Only the two tasks of this class read from the stream and write to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, field

from warrener.drivers import _faults
from warrener.drivers._progress import descriptor_of, unacknowledged
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.aiormq._frames import FrameFilter
from warrener.drivers.base import Lane, LinkDown

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel
    from anyio.abc import ByteStream

__all__ = ["Epoch", "FilteringTransport", "Parcel"]

#: The largest number of bytes of one send. A write is stalled when one send takes longer than the write stall timeout;
#: `bytes_out` grows after each send, so it shows the progress on a slow line.
_LARGEST_SEND = 64 * 1024
_LARGEST_RECEIVE = 65536
#: Bytes that are parsed in one turn of the event loop, so that a fast peer cannot stop the other tasks.
_SLICE = 16 * 1024
#: How many answers may wait for the socket. A broker that sends requests and reads no answer cannot fill our memory.
_ANSWERS = 1000


@define(eq=False)
class Epoch:
    """A publishing channel: its number in the link, and the channel of aiormq that carries it."""

    number: int
    lane: Lane
    channel: AbstractChannel
    #: The last tag that aiormq has given to the transport.
    assigned: int = 0
    #: The highest tag that was written. It stays as it is when the broker closes the channel: the broker discards all
    #: bytes that arrive later.
    written: int = 0
    #: The highest tag that was begun; it stays as it is in the same way.
    begun: int = 0
    closed: bool = False


@define(eq=False)
class Parcel:
    """One publish on its way to the network."""

    epoch: Epoch
    tag: int
    #: Its bytes in the backlog.
    size: int
    #: The positions of its first byte, and of the byte behind its last one, in the outgoing stream.
    start: int = 0
    end: int = 0


@define(eq=False, repr=False)  # pending bytes may hold credentials
class FilteringTransport(asyncio.Transport):
    """An asyncio transport over an anyio byte stream, for aiormq's stream reader and writer.

    `outgoing` sees each method that aiormq writes, except publishes, and returns what is sent in its place, or None.
    `sent` learns the size of the publishes that left the backlog; `failed` learns why the stream ended.
    """

    _stream: ByteStream
    _filter: FrameFilter
    _outgoing: Callable[[int, bytes], bytes | None]
    _sent: Callable[[int], None]
    _failed: Callable[[BaseException], None]
    _write_stall_timeout: float
    _frame_timeout: float
    #: Set while there is room for reports; None: there always is.
    _room: asyncio.Event | None = None
    #: The bytes of all sends that have returned.
    bytes_out: int = 0
    #: When the last byte arrived, on the loop's clock.
    heard_at: float = 0.0
    #: Whether the broker has stopped reading on purpose; a write does not count as stalled then.
    blocked: bool = False
    #: Publishes that were given to aiormq and have not come out of it yet, in order.
    _expected: deque[Parcel] = field(factory=deque[Parcel])
    #: Publishes in `_pending`, in order.
    _parcels: deque[Parcel] = field(factory=deque[Parcel])
    _pending: bytearray = field(factory=bytearray)
    #: How many bytes were taken out of `_pending` since the beginning.
    _taken: int = 0
    #: How many answers were added since a batch was last taken.
    _answers: int = 0
    _sealed: bool = False
    _closing: bool = False
    _lost: bool = False
    _reading: asyncio.Event = field(factory=asyncio.Event)
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _flushed: asyncio.Event = field(factory=asyncio.Event)
    _protocol: asyncio.StreamReaderProtocol | None = None
    _tasks: list[asyncio.Task[None]] = field(factory=list[asyncio.Task[None]])
    _frame_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start reading and writing; return the streams for aiormq."""
        loop = asyncio.get_running_loop()
        self.heard_at = loop.time()
        self._reading.set()
        self._flushed.set()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        self._protocol = protocol
        protocol.connection_made(self)
        self._tasks = [loop.create_task(self._read(protocol)), loop.create_task(self._write())]
        return reader, asyncio.StreamWriter(self, protocol, reader, loop)

    def unacknowledged(self) -> int:
        """Return the bytes that the kernel holds; from any thread."""
        return unacknowledged(descriptor_of(self._stream))

    @property
    def held(self) -> bool:
        """Whether nothing is read because the owner has not taken the earlier reports."""
        return self._room is not None and not self._room.is_set()

    @property
    def backlog(self) -> int:
        """How many bytes wait here for the socket."""
        return len(self._pending)

    # --- inbound ----------------------------------------------------------------------------------------------------

    async def _read(self, protocol: asyncio.StreamReaderProtocol) -> None:
        loop = asyncio.get_running_loop()
        frames = 0
        try:
            while True:
                data = await self._stream.receive(_LARGEST_RECEIVE)
                self.heard_at = loop.time()
                for at in range(0, len(data), _SLICE):
                    if at:
                        await asyncio.sleep(0)
                    passed = self._filter.feed(data[at : at + _SLICE])
                    if passed:
                        protocol.data_received(passed)
                    if self._room is not None and not self._room.is_set():
                        await self._wait_for_room(self._room)
                # The time of a frame begins with its first byte; more bytes of the same frame do not extend it.
                if self._frame_timer is not None and (frames != self._filter.frames or not self._filter.in_frame):
                    self._frame_timer.cancel()
                    self._frame_timer = None
                if self._frame_timer is None and self._filter.in_frame:
                    self._frame_timer = loop.call_later(self._frame_timeout, self._frame_stalled)
                frames = self._filter.frames
                if not self._reading.is_set():
                    await self._reading.wait()
        except LinkDown as down:
            self.seal()
            self._failed(down)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, MemoryError) as error:
            self._failed(error)
            self._lose()

    async def _wait_for_room(self, room: asyncio.Event) -> None:
        """Read nothing until the owner can take reports; this time counts neither as silence nor as a late frame."""
        if self._frame_timer is not None:
            self._frame_timer.cancel()
            self._frame_timer = None
        await room.wait()
        self.heard_at = asyncio.get_running_loop().time()

    def _frame_stalled(self) -> None:
        self._failed(LinkDown(_faults.stalled_frame(self._frame_timeout)))

    def pause_reading(self) -> None:
        """Stop taking bytes from the stream: aiormq has more than it can handle."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """Take bytes from the stream again."""
        self._reading.set()

    # --- outbound ---------------------------------------------------------------------------------------------------

    def expect(self, parcel: Parcel) -> None:
        """Announce the publish that is given to aiormq next."""
        self._expected.append(parcel)

    def forget_last(self) -> None:
        """Take back the last `expect`: aiormq refused the publish."""
        self._sent(self._expected.pop().size)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take one method with its content, or the protocol header."""
        if self._sealed or self._lost:
            return
        method = frames.method_of(data)
        if method is not None:
            if method == frames.PUBLISH:
                parcel = self._expected.popleft()
                if parcel.epoch.closed:
                    self._sent(parcel.size)
                    return
                parcel.epoch.assigned = parcel.tag
                parcel.start = self._taken + len(self._pending)
                parcel.end = parcel.start + len(data)
                self._parcels.append(parcel)
            else:
                kept = self._outgoing(method, bytes(data))
                if kept is None:
                    return
                data = kept
        self.inject(data)
        if method == frames.CONNECTION_CLOSE:
            self.seal()  # nothing may follow it, not even an answer to a method that has crossed it

    def answer(self, data: bytes) -> None:
        """Send an answer to the broker, which may ask without end.

        Raises `LinkDown` when more than `_ANSWERS` answers wait, because the broker does not read them.
        """
        self._answers += 1
        if self._answers > _ANSWERS:
            raise LinkDown(_faults.illegal_frame(f"it sent more than {_ANSWERS} requests and did not read the answers"))
        self.inject(data)

    def inject(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes behind the pending ones."""
        if not self._sealed:
            self._pending += data
            self._flushed.clear()
            self._wake.set()

    def seal(self) -> None:
        """Accept nothing more. Pending bytes still go out, unless the transport is aborted."""
        self._sealed = True

    async def wait_flushed(self) -> None:
        """Wait until nothing is pending."""
        await self._flushed.wait()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        pending, parcels = self._pending, self._parcels
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while pending:
                    batch = bytes(pending[:_LARGEST_SEND])
                    del pending[: len(batch)]
                    self._answers = 0
                    self._taken += len(batch)
                    gone = 0
                    while parcels and parcels[0].end <= self._taken:
                        parcel = parcels.popleft()
                        gone += parcel.size
                        if not parcel.epoch.closed:
                            parcel.epoch.written = parcel.epoch.begun = parcel.tag
                    if parcels and parcels[0].start < self._taken and not parcels[0].epoch.closed:
                        parcels[0].epoch.begun = parcels[0].tag
                    self._stall_timer = loop.call_later(self._write_stall_timeout, self._write_stalled)
                    await self._stream.send(batch)
                    self._stall_timer.cancel()
                    self.bytes_out += len(batch)
                    if gone:
                        self._sent(gone)
                self._flushed.set()
                if self._closing:
                    await self._stream.aclose()
                    self._lose()
                    return
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, MemoryError) as error:
            self._failed(error)
            self._lose()

    def _write_stalled(self) -> None:
        if self.blocked:
            # A blocked broker stops reading: that is no stall. Silence is watched elsewhere.
            self._stall_timer = asyncio.get_running_loop().call_later(self._write_stall_timeout, self._write_stalled)
        else:
            self._failed(LinkDown(_faults.stalled_write(self._write_stall_timeout)))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _lose(self) -> None:
        """Tell aiormq's streams, once, that nothing comes or goes any more."""
        self._sealed = self._closing = True
        if not self._lost:
            self._lost = True
            self._flushed.set()
            if self._protocol is not None:
                self._protocol.connection_lost(None)

    def close(self) -> None:
        """Send the pending bytes, then close."""
        self._closing = self._sealed = True
        self._wake.set()

    def abort(self) -> None:
        """Close at once; pending bytes are dropped."""
        for timer in (self._frame_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._lose()

    async def wait_aborted(self) -> None:
        """Wait until both tasks are gone and close the stream; `abort` comes first."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The link is over already, so an error of the close is ignored.
        with suppress(OSError, MemoryError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await anyio.aclose_forcefully(self._stream)

    def is_closing(self) -> bool:
        """Whether nothing more is accepted."""
        return self._closing

    def can_write_eof(self) -> bool:
        """Half-closing is not supported: TLS has none."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is no extra information for aiormq."""
        return default

    def get_write_buffer_size(self) -> int:
        """Return how many bytes are pending."""
        return len(self._pending)
