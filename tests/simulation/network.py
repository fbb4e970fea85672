"""The network between the producer and the brokers: bytes take time, get stuck, are cut off, and come too late.

A name leads to the addresses of one or more brokers, and the real dial (`warrener.drivers._dial`) races them. A connection
(`Wire`) is two pipes in memory with a forwarder between them for each direction. What a forwarder holds is "in the
network"; the pipes' windows are the kernels' buffers, bounded, so that a peer that does not read stops a sender. A client
that closes its end takes nothing back: what is in the network still reaches the broker, perhaps much later, perhaps after
the producer has sent the same message again on another link (F7, the zombie).

Faults are plain functions and act at the instant of the call.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Sequence
from contextvars import ContextVar

import anyio
import trio
from anyio.abc import ByteStream

from tests.simulation.schedule import NetworkPlan
from tests.simulation.trace import DIALED, Trace
from warrener.drivers._dial import Dialed, dial
from warrener.records import Endpoint
from warrener.testing._streams import MemoryStream, memory_stream_pair
from warrener.testing.broker import EmbeddedBroker

__all__ = ["FIRST_PORT", "PROCESS", "Network", "Wire"]

#: With several endpoints, the port of the first one; the usual port leads to all brokers.
FIRST_PORT = 6000

_ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
_ALL = 1 << 30

#: Which process dials, where there are several.
PROCESS: ContextVar[str] = ContextVar("PROCESS", default="")


class FrameCounter:
    """Knows whether a stream of AMQP frames stands between two of them, and since when it does not."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        #: When the unfinished frame began; None between frames.
        self.since: float | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take the next bytes of the stream."""
        at, ended = 0, False
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                ended = ended or not self._left
            else:
                taken = data[at : at + 7 - len(self._head)]
                self._head += taken
                at += len(taken)
                if len(self._head) == 7:
                    self._left = int.from_bytes(self._head[3:]) + 1
                    self._head = b""
        if not (self._head or self._left):
            self.since = None
        elif self.since is None or ended:
            self.since = now


class ClientEnd(ByteStream):
    """The producer's end of a connection; notes what it can be blamed for: silence, stalls, an end that never came."""

    def __init__(self, stream: MemoryStream, wire: Wire, trace: Trace) -> None:
        self._stream = stream
        self._wire = wire
        self._trace = trace
        self._heard_at = trio.current_time()
        self._frames = FrameCounter()
        #: Since when a send has been under way; None: there is none.
        self.sending_since: float | None = None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive(max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            if self._frames.since is not None:
                self._trace.see("partial frame, then the end")
            raise
        self._heard_at = trio.current_time()
        self._frames.feed(data, self._heard_at)
        return data

    async def send(self, item: bytes) -> None:
        self.sending_since = trio.current_time()
        await self._stream.send(item)
        self.sending_since = None

    def send_nowait(self, item: bytes) -> int:
        return self._stream.send_nowait(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def die(self, *, reset: bool) -> None:
        """The process was killed: the kernel resets the connection, or sends what was written and a FIN."""
        if self._wire.client_closed_at is None:
            self._wire.client_closed_at = trio.current_time()
            self._stream.close_now(reset=reset)

    async def aclose(self) -> None:
        wire = self._wire
        if wire.client_closed_at is None:
            now = wire.client_closed_at = trio.current_time()
            wire.silence = now - self._heard_at
            wire.frozen_then = (wire.to_broker.frozen, wire.to_client.frozen)
            wire.unfinished = 0.0 if self._frames.since is None else now - self._frames.since
            wire.stalled = 0.0 if self.sending_since is None else now - self.sending_since
            self._trace.note(f"wire {wire.number}: the client closes its end")
        await self._stream.aclose()


class Way:
    """One direction of a wire."""

    def __init__(self, plan: NetworkPlan) -> None:
        self.latency = plan.latency
        self.bandwidth = plan.bandwidth
        self.slices = plan.slices
        #: Seconds for each byte, one at a time; 0: not dripping.
        self.drip = 0.0
        self.frozen = False
        #: How many bytes still get through before the wire is cut; None: all. And whether the cut is a RST.
        self.cut_after: int | None = None
        self.cut_resets = False
        self.corrupt_next = False
        self._changed = trio.Event()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def cut(self, after: int) -> None:
        """End the wire behind this number of further bytes: with a FIN, or with a RST where the number is negative."""
        self.cut_after, self.cut_resets = abs(after), after < 0

    async def wait_thawed(self) -> None:
        while self.frozen:
            await self._changed.wait()


class Wire:
    """One connection between the producer and a broker (or something that is no broker)."""

    def __init__(
        self,
        number: int,
        link: int,
        source: tuple[int, int] | None,
        plan: NetworkPlan,
        near: MemoryStream,
        far: MemoryStream,
    ) -> None:
        self.number = number
        #: Which link was being dialed.
        self.link = link
        #: Which broker, and its number of the connection; None where there is no broker behind it.
        self.source = source
        self.near = near
        self.far = far
        self.to_broker = Way(plan)
        self.to_client = Way(plan)
        self.client_closed_at: float | None = None
        self.broken = False
        #: What ended it: "rst", "fin" or "cut"; None: one of its two ends.
        self.ended_by: str | None = None
        self.client: ClientEnd
        #: The process that dialed.
        self.process = PROCESS.get()
        #: At the instant the client closed: seconds since the last byte, since an inbound frame began, since a write did.
        self.silence = self.unfinished = self.stalled = 0.0
        #: And whether it was frozen then, towards the broker and towards the client.
        self.frozen_then: tuple[bool, bool] = (False, False)

    @property
    def live(self) -> bool:
        """Whether both ends still hold it."""
        return self.client_closed_at is None and not self.broken

    def reset(self, keep_near: int = _ALL, keep_far: int = _ALL) -> None:
        """RST to both sides; of what was on its way the first bytes may still be read."""
        self.broken = True
        self.near.close_now(reset=True, keep=keep_near)
        self.far.close_now(reset=True, keep=keep_far)

    def finish(self) -> None:
        """FIN to both sides, without an AMQP Close."""
        self.broken = True
        self.near.close_now()
        self.far.close_now()

    def freeze(self, *, to_broker: bool, to_client: bool) -> None:
        """Let nothing through in the given directions."""
        self.to_broker.frozen |= to_broker
        self.to_client.frozen |= to_client

    def thaw(self) -> None:
        """Let everything through again: what was stuck arrives now."""
        for way in (self.to_broker, self.to_client):
            way.frozen = False
            way.change()


class Network:
    """Resolves the name, makes wires when the producer dials, and is where wires are found to inflict faults on them."""

    def __init__(
        self,
        plan: NetworkPlan,
        rng: random.Random,
        trace: Trace,
        tasks: trio.Nursery,
        brokers: Sequence[EmbeddedBroker],
    ) -> None:
        self.plan = plan
        self.wires: list[Wire] = []
        #: What becomes of a dial, by address: the kind of a dial fault. Absent: it leads to its broker.
        self.fates: dict[str, str] = {}
        self.addresses = [f"10.0.0.{number + 1}" for number in range(len(brokers))]
        #: Nodes that share their queues are one broker under several addresses.
        self._brokers = {
            address: (brokers.index(each), each) for address, each in zip(self.addresses, brokers, strict=True)
        }
        self._rng = rng
        self._trace = trace
        self._tasks = tasks
        self._dials = 0
        #: Whether the name gives its addresses in the same order each time.
        self.fixed_order = False
        #: By link, the address that its dial began with.
        self.first_addresses: dict[int, str] = {}

    @property
    def live(self) -> list[Wire]:
        """The wires that both ends hold."""
        return [wire for wire in self.wires if wire.live]

    @property
    def sending(self) -> bool:
        """Whether the producer is in the middle of a write."""
        return any(wire.client.sending_since is not None for wire in self.live)

    def holds(self, link: int) -> bool:
        """Whether the producer has a connection for this link, or had one a moment ago."""
        a_moment_ago = trio.current_time() - 0.001
        return any(
            wire.link == link and (wire.client_closed_at is None or wire.client_closed_at > a_moment_ago)
            for wire in self.wires
        )

    async def dial(
        self, endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None, first_address: int
    ) -> Dialed[ByteStream]:
        """Connect; what the native driver calls."""
        dials = self._dials = DIALED.get(self._dials + 1)
        first = len(self.wires)
        fates: list[str] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            await trio.sleep(self._delay(self.plan.latency))
            if "no name" in self.fates.values():
                self._trace.see("dial: no name")
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            if port >= FIRST_PORT:
                return [self.addresses[port - FIRST_PORT]]
            if self.fixed_order:
                return self.addresses
            # A name with several addresses gives them in another order each time.
            return self._rng.sample(self.addresses, len(self.addresses))

        async def connect(address: str, port: int) -> ByteStream:
            fate = self.fates.get(address, "open")
            if not fates:
                self.first_addresses[dials] = address
            fates.append(fate)
            self._trace.see(f"dial: {fate}")
            return await self._connect(address, fate)

        dialed = await dial(
            endpoint,
            require_tls=require_tls,
            ssl_context=ssl_context,
            first_address=first_address,
            resolve=resolve,
            connect=connect,
        )
        if fates[0] == "black hole":
            self._trace.see("dial: black hole first, then another")
        elif fates[0] == "refuse":
            self._trace.see("dial: refused first, then another")
        self._trace.note(f"link {dials}: wires {first + 1} to {len(self.wires)}")
        return dialed

    async def _connect(self, address: str, fate: str) -> ByteStream:
        await trio.sleep(self._delay(2 * self.plan.latency))
        if fate == "black hole":
            await trio.sleep_forever()
        near, inner = memory_stream_pair(self.plan.window)
        source: tuple[int, int] | None = None
        if fate in ("mute", "not amqp", "accept then drop"):
            far, _ = memory_stream_pair(self.plan.window)
        elif fate == "refuse":
            raise ConnectionRefusedError("refused")
        else:
            place, broker = self._brokers[address]
            far = await broker.connect(self.plan.window)
            source = (place, broker.clients[-1].number)
        wire = Wire(len(self.wires) + 1, DIALED.get(self._dials), source, self.plan, inner, far)
        wire.client = ClientEnd(near, wire, self._trace)
        self.wires.append(wire)
        self._prepare(wire, fate)
        self._tasks.start_soon(self._forward, wire, wire.to_broker, inner, far)
        self._tasks.start_soon(self._forward, wire, wire.to_client, far, inner)
        return wire.client

    def _prepare(self, wire: Wire, fate: str) -> None:
        match fate:
            case "accept then drop":
                wire.reset(0, 0)
            case "not amqp":
                self._tasks.start_soon(self._answer, wire)
            case "drip handshake":
                wire.to_client.drip = 1.0
            case "cut new links":
                way = wire.to_client if self._rng.random() < 0.5 else wire.to_broker
                way.cut(self._rng.randrange(8, 700) * self._rng.choice((1, -1)))
            case _:
                pass

    async def _answer(self, wire: Wire) -> None:
        await trio.sleep(self.plan.latency)
        try:
            await wire.near.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except _ENDS:
            pass

    def _delay(self, seconds: float) -> float:
        return seconds * (1 + self.plan.jitter * self._rng.random())

    async def _forward(self, wire: Wire, way: Way, source: MemoryStream, target: MemoryStream) -> None:
        try:
            while True:
                data = await source.receive(1 if way.drip else 65536)
                await self._carry(wire, way, data, target)
        except anyio.EndOfStream:
            await trio.sleep(self._delay(way.latency + self.plan.close_delay))
            await way.wait_thawed()
            try:
                await target.send_eof()
            except _ENDS:
                pass
        except anyio.BrokenResourceError:
            # The sender reset it. What the receiver has already got stays with it.
            await trio.sleep(self._delay(way.latency))
            await way.wait_thawed()
            wire.reset()
        except anyio.ClosedResourceError:
            pass

    async def _carry(self, wire: Wire, way: Way, data: bytes, target: MemoryStream) -> None:
        at = 0
        while at < len(data):
            if way.drip:
                size, delay = 1, way.drip
            else:
                # Small pieces where the frames are small; a large body in such pieces would only take its time.
                most = way.slices if at < 500 else 20 * way.slices
                size = self._rng.randint(1, most) if way.slices else len(data)
                # Of several slices only the first waits for the latency; the others follow on its heels.
                delay = (self._delay(way.latency) if at == 0 else 0.0) + min(size, len(data) - at) / way.bandwidth
            piece = data[at : at + size]
            at += len(piece)
            if delay > 0:
                await trio.sleep(delay)
            if way.frozen:
                await way.wait_thawed()
            if way.corrupt_next:
                way.corrupt_next = False
                spot = self._rng.randrange(len(piece))
                piece = piece[:spot] + bytes([piece[spot] ^ (1 << self._rng.randrange(8))]) + piece[spot + 1 :]
            cut = way.cut_after is not None and len(piece) >= way.cut_after
            if way.cut_after is not None:
                piece = piece[: way.cut_after]
                way.cut_after -= len(piece)
            if piece:
                try:
                    await target.send(piece)
                except _ENDS:
                    # Nobody reads there any more: the rest is lost, and the sender hears of it in its own time.
                    wire.broken = True
            if cut:
                wire.ended_by = wire.ended_by or "cut"
                self._trace.note(f"wire {wire.number}: cut")
                if way.cut_resets:
                    wire.reset()
                else:
                    wire.finish()
                raise anyio.ClosedResourceError
