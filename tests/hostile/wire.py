"""A broker's side of a connection in plain blocking code: it opens as a broker does, then sends what an attack wants."""

from __future__ import annotations

import base64
import selectors
import socket
import time
from contextlib import suppress
from typing import Any

import pamqp.frame
from pamqp import commands
from pamqp.header import ContentHeader, ProtocolHeader

__all__ = ["Conn", "Ended", "marshal", "raw", "returned"]


def marshal(frame: Any, channel: int = 0) -> bytes:
    """Return the bytes of a frame."""
    return pamqp.frame.marshal(frame, channel)


def returned(
    channel: int, *, body: bytes = b"x", text: str = "NO_ROUTE", exchange: str = "", key: str = "q", **properties: Any
) -> bytes:
    """Return the bytes of a whole basic.return."""
    header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))
    return (
        marshal(commands.Basic.Return(312, text, exchange, key), channel)
        + marshal(header, channel)
        + raw(3, channel, body)
    )


def raw(kind: int, channel: int, payload: bytes) -> bytes:
    """Return the bytes of a frame of any type."""
    return kind.to_bytes(1) + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + b"\xce"


class Ended(Exception):
    """The client has ended the connection, or the time of the attack is over."""


class Conn:
    """One connection of the client. Everything that the client sends is read, whatever is sent to it."""

    def __init__(self, sock: socket.socket, until: float, secret: str) -> None:
        self._socket = sock
        self._until = until
        self._received = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        sock.setblocking(False)
        self.secret = secret
        #: The publishing channel, and how many messages came on it.
        self.channel = 0
        self.published = 0
        #: How many inputs were sent.
        self.inputs = 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret, as a broker may write it down."""
        return (self.secret, base64.b64encode(self.secret.encode()).decode())

    def send(self, data: bytes, *, inputs: int = 0, reading: bool = True) -> None:
        """Send everything, and read meanwhile."""
        view = memoryview(data)
        while view:
            if time.monotonic() > self._until:
                raise Ended
            for _, ready in self._selector.select(0.2):
                if ready & selectors.EVENT_READ and reading:
                    self._read()
                if ready & selectors.EVENT_WRITE:
                    try:
                        view = view[self._socket.send(view[:65536]) :]
                    except BlockingIOError:
                        pass
                    except OSError:
                        raise Ended from None
        self.inputs += inputs

    def flood(self, unit: bytes, inputs: int = 1) -> None:
        """Send the unit again and again, until the client ends the connection or the time is over."""
        count = max(1, 65536 // len(unit))
        while True:
            self.send(unit * count, inputs=inputs * count)

    def drip(self, data: bytes, gap: float = 0.05) -> None:
        """Send byte by byte."""
        for byte in data:
            self.send(bytes((byte,)), inputs=1)
            self.wait(gap)

    def wait(self, seconds: float, *, reading: bool = True) -> None:
        """Send nothing for some time."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if time.monotonic() > self._until:
                raise Ended
            if reading:
                self._readable(min(left, 0.2))
            else:
                time.sleep(min(left, 0.2))

    def _readable(self, seconds: float) -> None:
        self._selector.modify(self._socket, selectors.EVENT_READ)
        if self._selector.select(seconds):
            self._read()
        self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            raise Ended from None
        if not data:
            raise Ended
        self._received += data

    def receive(self) -> tuple[int, Any]:
        """Return the next method or protocol header, and its channel; contents and heartbeats are passed over."""
        while True:
            if self._received[:4] == b"AMQP" and len(self._received) >= 8:
                del self._received[:8]
                return 0, ProtocolHeader()
            if len(self._received) >= 7 and self._received[:4] != b"AMQP":
                end = int.from_bytes(self._received[3:7]) + 8
                if len(self._received) >= end:
                    piece = bytes(self._received[:end])
                    del self._received[:end]
                    if piece[0] == 1:
                        _, channel, frame = pamqp.frame.unmarshal(piece)
                        return channel, frame
                    continue
            if time.monotonic() > self._until:
                raise Ended
            self._readable(0.2)

    # --- the behaviour of a broker ----------------------------------------------------------------------------------

    def greet(self, **properties: Any) -> None:
        """Answer the protocol header and take the login."""
        self.receive()
        known = {"product": "Hostile", "version": "1", "capabilities": {"publisher_confirms": True}}
        self.send(marshal(commands.Connection.Start(0, 9, {**known, **properties}, "PLAIN AMQPLAIN", "en_US")))
        self.receive()

    def tune(self, channel_max: int = 2047, frame_max: int = 131072, heartbeat: int = 10) -> None:
        """Propose a tuning and open the virtual host."""
        self.send(marshal(commands.Connection.Tune(channel_max, frame_max, heartbeat)))
        self.until(commands.Connection.Open)
        self.send(marshal(commands.Connection.OpenOk()))

    def open(self, **tuning: int) -> None:
        """Do all up to the declarations, so that messages come."""
        self.greet()
        self.tune(**tuning)
        self.until(commands.Basic.Publish)

    def until(self, kind: type[Any]) -> Any:
        """Answer as a broker does until a method of the kind comes."""
        while True:
            channel, frame = self.receive()
            if isinstance(frame, kind):
                if kind is commands.Basic.Publish:
                    self.channel, self.published = channel, self.published + 1
                return frame
            self.answer(channel, frame)

    def answer(self, channel: int, frame: Any) -> None:
        """Answer a method; messages are counted and not confirmed."""
        match frame:
            case commands.Channel.Open():
                self.send(marshal(commands.Channel.OpenOk(), channel))
            case commands.Confirm.Select():
                self.channel, self.published = channel, 0
                self.send(marshal(commands.Confirm.SelectOk(), channel))
            case commands.Basic.Qos():
                self.send(marshal(commands.Basic.QosOk(), channel))
            case commands.Queue.Declare():
                self.send(marshal(commands.Queue.DeclareOk(frame.queue, 0, 0), channel))
            case commands.Channel.Close():
                self.send(marshal(commands.Channel.CloseOk(), channel))
            case commands.Connection.Close():
                self.send(marshal(commands.Connection.CloseOk()))
                raise Ended
            case commands.Basic.Publish():
                self.published += 1
            case _:
                pass

    def serve(self) -> None:
        """Be a good broker: confirm each message."""
        self.greet()
        self.tune()
        tags: dict[int, int] = {}
        while True:
            channel, frame = self.receive()
            if isinstance(frame, commands.Basic.Publish):
                tags[channel] = tags.get(channel, 0) + 1
                if not self._received or tags[channel] % 50 == 0:
                    self.send(marshal(commands.Basic.Ack(tags[channel], multiple=True), channel))
            else:
                if isinstance(frame, commands.Confirm.Select):
                    tags[channel] = 0
                self.answer(channel, frame)

    def cut(self) -> None:
        """End the connection, from another thread."""
        self._until = 0.0
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._selector.close()
        self._socket.close()
