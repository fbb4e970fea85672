"""What the tests of drivers share: reports that remember, and peers that misbehave on purpose."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pamqp.frame
from anyio.abc import ByteStream, SocketAttribute, UNIXSocketStream
from pamqp import commands
from pamqp.header import ProtocolHeader

from warrener.drivers._dial import on_transport
from warrener.drivers.base import Lane
from warrener.errors import Fault
from warrener.records import Returned


class RecordingReports:
    """Remembers each report in order; `until` waits for a condition on them."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._changed = anyio.Event()

    def _note(self, *entry: Any) -> None:
        self.log.append(entry)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def channel_opened(self, lane: Lane, channel: int) -> None:
        self._note("opened", lane, channel)

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        self._note("closed", lane, channel, fault, written)

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        self._note("confirmed", channel, tag, multiple)

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        self._note("nacked", channel, tag, multiple)

    def returned(self, channel: int, returned: Returned) -> None:
        self._note("returned", channel, returned)

    def blocked(self, reason: str) -> None:
        self._note("blocked", reason)

    def unblocked(self) -> None:
        self._note("unblocked")

    def pull(self) -> None:
        self._note("pull")

    def writable(self) -> None:
        self._note("writable")

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """The reports of one kind, without its name."""
        return [entry[1:] for entry in self.log if entry[0] == kind]

    def kinds(self) -> list[str]:
        """The kinds of all reports in order."""
        return [entry[0] for entry in self.log]

    def settled(self, channel: int = 1, kind: str = "confirmed") -> list[int]:
        """The tags of a channel that were settled that way, in order; `multiple` covers what is open up to its tag."""
        done: dict[int, str] = {}
        for entry in self.log:
            if entry[0] in ("confirmed", "nacked") and entry[1] == channel:
                _, _, tag, multiple = entry
                first = 1 if multiple else tag
                for each in range(first, tag + 1):
                    done.setdefault(each, entry[0])
        return [tag for tag, how in done.items() if how == kind]

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait until the condition holds; it is looked at after each report."""
        with anyio.fail_after(seconds):
            while not condition():
                await self._changed.wait()

    async def until_kind(self, kind: str, count: int = 1) -> None:
        """Wait until there are `count` reports of the kind."""
        await self.until(lambda: len(self.of(kind)) >= count)


@asynccontextmanager
async def serving(handler: Callable[[ByteStream], Awaitable[None]]) -> AsyncGenerator[int]:
    """Serve each connection with `handler` on a free port of 127.0.0.1, which is what the block gets."""

    async def handle(stream: ByteStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


@asynccontextmanager
async def relaying(listener: Any, broker_port: int) -> AsyncGenerator[None]:
    """Pass what comes in at the listener on to the broker and back, for the length of the block."""

    async def pump(source: ByteStream, sink: ByteStream) -> None:
        try:
            async for chunk in source:
                await sink.send(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        await anyio.aclose_forcefully(sink)

    relayed = 0
    at_rest = anyio.Event()

    async def handle(stream: ByteStream) -> None:
        nonlocal relayed
        relayed += 1
        if isinstance(stream, UNIXSocketStream):
            stream = await on_transport(stream)
        onward = await anyio.connect_tcp("127.0.0.1", broker_port)
        async with stream, onward, anyio.create_task_group() as group:
            group.start_soon(pump, stream, onward)
            group.start_soon(pump, onward, stream)
        relayed -= 1
        if not relayed:
            at_rest.set()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield
        with anyio.move_on_after(5 if relayed else 0):
            await at_rest.wait()
        group.cancel_scope.cancel()


class Peer:
    """A scripted AMQP server on one stream: frames in, frames out, by way of pamqp."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._received = b""

    async def send(self, frame: Any, channel: int = 0) -> None:
        """Send one frame."""
        await self.stream.send(pamqp.frame.marshal(frame, channel))

    async def receive(self) -> tuple[int, Any]:
        """Return the next frame and its channel; heartbeats are passed over."""
        while True:
            if self._received:
                try:
                    size, channel, frame = pamqp.frame.unmarshal(self._received)
                except Exception:  # noqa: BLE001, S110 - pamqp's way of saying "more"
                    pass
                else:
                    self._received = self._received[size:]
                    if frame is not None and not isinstance(frame, ProtocolHeader) and frame.name == "Heartbeat":
                        continue
                    return channel, frame
            self._received += await self.stream.receive()

    async def greet(self) -> commands.Connection.StartOk:
        """Answer the protocol header with Start; return Start-Ok."""
        await self.receive()
        await self.send(
            commands.Connection.Start(
                server_properties={"product": "Scripted", "capabilities": {"publisher_confirms": True}},
                mechanisms="PLAIN AMQPLAIN",
                locales="en_US",
            )
        )
        _, start_ok = await self.receive()
        return start_ok

    async def open(self, *, heartbeat: int = 60, frame_max: int = 131072) -> int:
        """Do the whole handshake up to basic.qos-ok; return the publishing channel's number."""
        await self.greet()
        await self.send(commands.Connection.Tune(2047, frame_max, heartbeat))
        await self.receive()
        await self.receive()
        await self.send(commands.Connection.OpenOk())
        while True:
            channel, frame = await self.receive()
            match frame:
                case commands.Channel.Open():
                    await self.send(commands.Channel.OpenOk(), channel)
                case commands.Confirm.Select():
                    await self.send(commands.Confirm.SelectOk(), channel)
                case commands.Basic.Qos():
                    await self.send(commands.Basic.QosOk(), channel)
                    return channel


class TransportStream(ByteStream):
    """A transport of the native driver, under the names of anyio's streams."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    @property
    def extra_attributes(self) -> Any:
        return {SocketAttribute.raw_socket: lambda: raw_socket(self.transport)}

    async def send(self, item: bytes) -> None:
        self.transport.write(item)
        await self.transport.drain()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        got = bytearray()

        def take(data: bytes | memoryview) -> bool:
            got.extend(data)
            return not got

        await self.transport.read_on(take)
        return bytes(got)

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        await self.transport.aclose()


def raw_socket(transport: Any) -> Any:
    """The socket of a transport on any backend, below its TLS."""
    transport = getattr(transport, "_below", transport)
    return getattr(transport, "_socket", None) or transport._transport.get_extra_info("socket")
