"""A client that says exactly what a test wants it to say, over a blocking socket, and writes down what it hears."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pamqp import body, commands, frame, header, heartbeat

from warrener.testing._streams import MemoryStream

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}
#: After one of these nothing more is awaited.
CLOSES = ("Channel.Close", "Connection.Close")
#: Made up by the broker, different each time.
PRIVATE = ("consumer_tag", "cluster_id")


def content(
    routing_key: str,
    text: bytes = b"x",
    *,
    exchange: str = "",
    mandatory: bool = False,
    immediate: bool = False,
    **properties: Any,
) -> list[Any]:
    """Return the frames of a publish."""
    frames: list[Any] = [
        commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory, immediate=immediate),
        header.ContentHeader(body_size=len(text), properties=commands.Basic.Properties(**properties)),
    ]
    return [*frames, body.ContentBody(text)] if text else frames


def shown(channel: int, received: Any) -> str:
    """Return one line for a frame: name and fields, without what differs from broker to broker."""
    if isinstance(received, header.ContentHeader):
        fields = ordered({k: v for k, v in vars_of(received.properties).items() if v not in (None, "")})
        return f"{channel} content of {received.body_size} {fields}"
    if isinstance(received, body.ContentBody):
        return f"{channel} body {bytes(received.value)!r}"
    fields = {name: value for name, value in vars_of(received).items() if name not in PRIVATE}
    return f"{channel} {received.name} {fields}"


def ordered(value: Any) -> Any:
    """Return the value with its tables in one order: no meaning hangs on it, and encoders differ."""
    if isinstance(value, dict):
        return {name: ordered(value[name]) for name in sorted(value)}
    return [ordered(item) for item in value] if isinstance(value, list) else value


def vars_of(received: Any) -> dict[str, Any]:
    """Return the fields of one of pamqp's objects."""
    return {name: getattr(received, name) for name in received.attributes()}


class RawClient:
    """One connection; every method blocks, ten seconds at most."""

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        vhost: str | None = None,
        capabilities: dict[str, bool] = CAPABILITIES,
        frame_max: int = 131072,
        channel_max: int = 2047,
        heartbeat: int = 0,
        connect: bool = True,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.user = unquote(parts.username or "guest")
        self.password = password or unquote(parts.password or "guest")
        self.vhost = vhost or unquote(parts.path[1:]) or "/"
        self.capabilities, self.heartbeat = capabilities, heartbeat
        self.frame_max, self.channel_max = frame_max, channel_max
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=60)
        self._residue = b""
        if connect:
            self.handshake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def handshake(self, *, refused: bool = False) -> list[str]:
        """Shake hands and open channel 1; return what was heard, from tune on.

        When the broker will refuse tune-ok, nothing may follow it: RabbitMQ would reset the connection.
        """
        heard: list[str] = []
        self.write(PROTOCOL_HEADER)
        self.read()
        properties = {"capabilities": self.capabilities, "connection_name": "raw"}
        self.send(
            commands.Connection.StartOk(properties, "PLAIN", f"\0{self.user}\0{self.password}", "en_US"), channel=0
        )
        for reply in (
            (
                commands.Connection.TuneOk(self.channel_max, self.frame_max, self.heartbeat),
                *(() if refused else (commands.Connection.Open(self.vhost),)),
            ),
            (),
        ):
            try:
                channel, received = self.read()
            except (EOFError, ConnectionResetError):
                return [*heard, "the end"]
            heard.append(shown(channel, received))
            if received.name == "Connection.Close":
                return heard
            for answer in reply:
                self.send(answer, channel=0)
        self.send(commands.Channel.Open())
        self.read()
        return heard

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def send(self, *frames: Any, channel: int = 1) -> None:
        """Send frames in one write."""
        self.write(b"".join(frame.marshal(one, channel) for one in frames))

    def read(self) -> tuple[int, Any]:
        """Return the next frame that is no heartbeat; raises EOFError or ConnectionResetError."""
        while True:
            if len(self._residue) >= 7:
                size = int.from_bytes(self._residue[3:7], "big") + 8
                if len(self._residue) >= size:
                    whole, self._residue = self._residue[:size], self._residue[size:]
                    _, channel, received = frame.unmarshal(whole)
                    if not isinstance(received, heartbeat.Heartbeat):
                        return channel, received
                    continue
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._residue += data

    def talk(self, frames: Iterable[Any], channel: int = 1, until: str | None = None) -> list[str]:
        """Send frames; return what was heard up to the method named `until`, or a close.

        Without a name a fence is sent after the frames, and what came before its answer is returned. That does not do
        for what RabbitMQ answers from a queue's process: basic.consume.
        """
        fence = [] if until is not None else [commands.Basic.Qos(prefetch_count=0)]
        self.send(*frames, *fence, channel=channel)
        heard: list[str] = []
        while True:
            number, received = self.read()
            if until is None and received.name == "Basic.QosOk":
                return heard
            heard.append(shown(number, received))
            if received.name in (*CLOSES, until):
                return heard


class MemoryClient:
    """The same over a connection in memory, for tests in virtual time."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._residue = b""

    async def send(self, *frames: Any, channel: int = 1) -> None:
        """Send frames in one write."""
        await self.stream.send(b"".join(frame.marshal(one, channel) for one in frames))

    async def read(self, *, heartbeats: bool = False) -> tuple[int, Any]:
        """Return the next frame; raises `anyio.EndOfStream` or `BrokenResourceError`."""
        while True:
            if len(self._residue) >= 7:
                size = int.from_bytes(self._residue[3:7], "big") + 8
                if len(self._residue) >= size:
                    whole, self._residue = self._residue[:size], self._residue[size:]
                    _, channel, received = frame.unmarshal(whole)
                    if heartbeats or not isinstance(received, heartbeat.Heartbeat):
                        return channel, received
                    continue
            self._residue += await self.stream.receive()

    async def expect(self, name: str) -> Any:
        """Return the next frame, which must be of this name."""
        _, received = await self.read()
        assert name == received.name, shown(0, received)
        return received

    async def handshake(self, *, heartbeat: int = 0, confirms: bool = True, vhost: str = "/") -> None:
        """Shake hands, and open channel 1."""
        await self.stream.send(PROTOCOL_HEADER)
        await self.expect("Connection.Start")
        properties = {"capabilities": CAPABILITIES}
        await self.send(commands.Connection.StartOk(properties, "PLAIN", "\0guest\0guest", "en_US"), channel=0)
        await self.expect("Connection.Tune")
        await self.send(commands.Connection.TuneOk(2047, 131072, heartbeat), commands.Connection.Open(vhost), channel=0)
        await self.expect("Connection.OpenOk")
        await self.send(commands.Channel.Open())
        await self.expect("Channel.OpenOk")
        if confirms:
            await self.send(commands.Confirm.Select())
            await self.expect("Confirm.SelectOk")

    async def confirm(self) -> tuple[bool, int, bool]:
        """Return the next confirm: (accepted, tag, multiple)."""
        _, received = await self.read()
        assert received.name in ("Basic.Ack", "Basic.Nack"), shown(0, received)
        return received.name == "Basic.Ack", received.delivery_tag, received.multiple

    async def close(self) -> None:
        """Close in order."""
        await self.send(commands.Connection.Close(200, "bye", 0, 0), channel=0)
        await self.expect("Connection.CloseOk")
        await self.stream.aclose()
