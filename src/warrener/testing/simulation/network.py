"""The network between the producer and the broker: octets take time, get stuck, are cut off, and come too late.

A connection (`Wire`) is two pipes in memory with a forwarder between them for each direction. What a forwarder holds is
"in the network"; the pipes' windows are the kernels' buffers, bounded, so that a peer that does not read stops a sender.
A client that closes its end takes nothing back: what is in the network still reaches the broker, perhaps much later,
perhaps after the producer has sent the same message again on another link (F7, the zombie).

Faults are plain functions and act at the instant of the call.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable

import anyio
import trio
from anyio.abc import ByteStream

from warrener.drivers.dial import Dialed
from warrener.records import Endpoint
from warrener.testing.simulation.schedule import NetworkPlan
from warrener.testing.simulation.trace import Dial, Trace
from warrener.testing.streams import MemoryStream, memory_stream_pair

__all__ = ["Network", "Wire"]

_ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class ClientEnd(ByteStream):
    """The producer's end of a connection; notes when the producer closes it."""

    def __init__(self, stream: MemoryStream, closed: Callable[[], None]) -> None:
        self._stream = stream
        self._closed = closed

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._closed()
        await self._stream.aclose()


class Way:
    """One direction of a wire."""

    def __init__(self, plan: NetworkPlan) -> None:
        self.latency = plan.latency
        self.bandwidth = plan.bandwidth
        self.slices = plan.slices
        #: Seconds for each octet, one at a time; 0: not dripping.
        self.drip = 0.0
        self.frozen = False
        #: How many octets still get through before the wire is cut; None: all.
        self.cut_after: int | None = None
        self.corrupt_next = False
        self.carried = 0
        self._changed = trio.Event()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_thawed(self) -> None:
        while self.frozen:
            await self._changed.wait()


class Wire:
    """One connection between the producer and the broker (or something that is no broker)."""

    def __init__(self, number: int, plan: NetworkPlan, near: MemoryStream, far: MemoryStream) -> None:
        self.number = number
        self.near = near
        self.far = far
        self.to_broker = Way(plan)
        self.to_client = Way(plan)
        self.client_closed_at: float | None = None
        self.broken = False
        #: When it began to drip towards the client.
        self.dripping_since: float | None = None

    @property
    def live(self) -> bool:
        """Whether both ends still hold it."""
        return self.client_closed_at is None and not self.broken

    def reset(self, keep_near: int, keep_far: int) -> None:
        """RST to both sides; of what was on its way the first octets may still be read."""
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
    """Makes wires when the producer dials; inflicts faults on them."""

    def __init__(
        self,
        plan: NetworkPlan,
        chance: random.Random,
        trace: Trace,
        tasks: trio.Nursery,
        connect: Callable[[int], object],
    ) -> None:
        self.plan = plan
        self.wires: list[Wire] = []
        #: What becomes of a dial: "open", or the kind of a dial fault.
        self.dialing = "open"
        self._chance = chance
        self._trace = trace
        self._tasks = tasks
        self._connect = connect

    @property
    def live(self) -> list[Wire]:
        """The wires that both ends hold."""
        return [wire for wire in self.wires if wire.live]

    async def dial(self, endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None) -> Dialed:
        """Connect; what the native driver calls instead of the real dial."""
        record = Dial(len(self._trace.dials) + 1, trio.current_time())
        self._trace.dials.append(record)
        self._trace.note(f"dial {record.link} ({self.dialing})")
        try:
            return await self._dialed(record)
        except OSError as error:
            record.ended_at = trio.current_time()
            self._trace.note(f"dial {record.link} fails: {error}")
            raise

    async def _dialed(self, record: Dial) -> Dialed:
        mode = self.dialing
        await trio.sleep(self._delay(2 * self.plan.latency))
        match mode:
            case "refuse":
                raise ConnectionRefusedError("refused")
            case "no name":
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            case "black hole":
                await trio.sleep_forever()
            case _:
                pass
        near, inner = memory_stream_pair(self.plan.window)
        if mode in ("mute", "not amqp", "accept then drop"):
            far, _ = memory_stream_pair(self.plan.window)
        else:
            far = await self._connect_broker()
        wire = Wire(record.link, self.plan, inner, far)
        self.wires.append(wire)
        record.connected_at = trio.current_time()
        self._prepare(wire, mode)

        def closed() -> None:
            if wire.client_closed_at is None:
                wire.client_closed_at = record.ended_at = trio.current_time()
                self._trace.note(f"link {record.link}: the client closes its end")

        self._tasks.start_soon(self._forward, wire, wire.to_broker, inner, far)
        self._tasks.start_soon(self._forward, wire, wire.to_client, far, inner)
        return Dialed(ClientEnd(near, closed), "simulated:5672", None)

    async def _connect_broker(self) -> MemoryStream:
        stream = await self._connect(self.plan.window)  # type: ignore[misc]
        assert isinstance(stream, MemoryStream)
        return stream

    def _prepare(self, wire: Wire, mode: str) -> None:
        match mode:
            case "accept then drop":
                wire.reset(0, 0)
            case "not amqp":
                self._tasks.start_soon(self._answer, wire)
            case "drip handshake":
                wire.to_client.drip = 1.0
            case "cut new links":
                way = wire.to_client if self._chance.random() < 0.5 else wire.to_broker
                way.cut_after = self._chance.randrange(8, 700)
            case _:
                pass

    async def _answer(self, wire: Wire) -> None:
        await trio.sleep(self.plan.latency)
        try:
            await wire.near.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except _ENDS:
            pass

    def _delay(self, seconds: float) -> float:
        return seconds * (1 + self.plan.jitter * self._chance.random())

    async def _forward(self, wire: Wire, way: Way, source: MemoryStream, target: MemoryStream) -> None:
        try:
            while True:
                octets = await source.receive(1 if way.drip else 65536)
                await self._carry(wire, way, octets, target)
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
            wire.reset(1 << 30, 1 << 30)
        except anyio.ClosedResourceError:
            pass

    async def _carry(self, wire: Wire, way: Way, octets: bytes, target: MemoryStream) -> None:
        at = 0
        while at < len(octets):
            if way.drip:
                size, delay = 1, way.drip
            else:
                size = self._chance.randint(1, way.slices) if way.slices else len(octets)
                # Of several slices only the first waits for the latency; the others follow on its heels.
                delay = (self._delay(way.latency) if at == 0 else 0.0) + min(size, len(octets) - at) / way.bandwidth
            piece = octets[at : at + size]
            at += len(piece)
            if delay > 0:
                await trio.sleep(delay)
            if way.frozen:
                await way.wait_thawed()
            if way.corrupt_next:
                way.corrupt_next = False
                spot = self._chance.randrange(len(piece))
                piece = piece[:spot] + bytes([piece[spot] ^ (1 << self._chance.randrange(8))]) + piece[spot + 1 :]
            cut = way.cut_after is not None and len(piece) >= way.cut_after
            if way.cut_after is not None:
                piece = piece[: way.cut_after]
                way.cut_after -= len(piece)
            way.carried += len(piece)
            if piece:
                try:
                    await target.send(piece)
                except _ENDS:
                    # Nobody reads there any more: the rest is lost, and the sender hears of it in its own time.
                    wire.broken = True
            if cut:
                self._trace.note(f"link {wire.number}: cut")
                if self._chance.random() < 0.5:
                    wire.reset(1 << 30, 1 << 30)
                else:
                    wire.finish()
                raise anyio.ClosedResourceError
