"""The other end of a session: a sink that remembers, a strict reader of what is sent, and scripts of a broker.

pamqp reads and writes everything here, so that each test also compares the package with a codec that is not its own.
"""

from __future__ import annotations

from typing import Any

import pamqp.frame
from attrs import define, field
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from warrener.records import Credentials, Returned
from warrener.wire import Session

CREDENTIALS = Credentials("someone", "swordfish")

START = commands.Connection.Start(
    server_properties={"product": "Scripted", "version": "1.2", "capabilities": {"publisher_confirms": True}},
    mechanisms="AMQPLAIN PLAIN",
    locales="en_US",
)


def marshalled(method: Any, channel: int = 0) -> bytes:
    """The frame of a method, as a broker would send it."""
    return pamqp.frame.marshal(method, channel)


def ack(tag: int, multiple: bool = False, channel: int = 1) -> bytes:
    """A basic.ack."""
    return marshalled(commands.Basic.Ack(tag, multiple), channel)


def nack(tag: int, multiple: bool = False, channel: int = 1) -> bytes:
    """A basic.nack."""
    return marshalled(commands.Basic.Nack(tag, multiple, False), channel)


def returned(
    body: bytes = b"",
    properties: commands.Basic.Properties | None = None,
    *,
    channel: int = 1,
    pieces: int = 1 << 20,
    routing_key: str = "nowhere",
) -> bytes:
    """A whole basic.return with its content, the body in frames of at most `pieces` bytes."""
    frames = [
        marshalled(commands.Basic.Return(312, "NO_ROUTE", "", routing_key), channel),
        marshalled(ContentHeader(body_size=len(body), properties=properties or commands.Basic.Properties()), channel),
    ]
    frames += [marshalled(ContentBody(body[at : at + pieces]), channel) for at in range(0, len(body), pieces)]
    return b"".join(frames)


class Sink:
    """Remembers confirms and returns in order."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        self.log.append(("ack", channel, tag, multiple))

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        self.log.append(("nack", channel, tag, multiple))

    def returned(self, channel: int, returned: Returned) -> None:
        self.log.append(("return", channel, returned))


@define
class Published:
    channel: int
    method: commands.Basic.Publish
    header: ContentHeader
    body: bytes = b""


@define
class StrictReader:
    """Reads what a client sends and asserts that each byte is legal: sizes, order, contiguous content."""

    frame_max: int = 8192
    frames: list[tuple[int, Any]] = field(factory=list)
    published: list[Published] = field(factory=list)
    #: Whether a close-ok has been seen, after which nothing may come.
    over: bool = False
    _rest: bytes = b""
    _partial: dict[int, Published | commands.Basic.Publish] = field(factory=dict)

    def feed(self, data: bytes) -> list[tuple[int, Any]]:
        """Take bytes; return the frames that became complete, contents as the header's place."""
        self._rest += data
        fresh: list[tuple[int, Any]] = []
        while self._rest:
            if self._rest[:4] == b"AMQP":
                if len(self._rest) < 8:
                    break
                assert self._rest[:8] == b"AMQP\x00\x00\x09\x01"
                assert not self.frames
                size, channel, frame = 8, 0, ProtocolHeader()
            else:
                if len(self._rest) < 7:
                    break
                length = int.from_bytes(self._rest[3:7])
                assert length + 8 <= self.frame_max, "a frame is larger than agreed upon"
                if len(self._rest) < length + 8:
                    break
                size, channel, frame = pamqp.frame.unmarshal(self._rest[: length + 8])
                assert size == length + 8
            assert not self.over, "bytes came after close-ok"
            self._rest = self._rest[size:]
            self._check(channel, frame)
            fresh.append((channel, frame))
        self.frames += fresh
        return fresh

    @property
    def at_boundary(self) -> bool:
        """Whether neither a frame nor a content is unfinished."""
        return not self._rest and not self._partial

    def _check(self, channel: int, frame: Any) -> None:
        partial = self._partial.get(channel)
        match frame:
            case ContentHeader():
                assert isinstance(partial, commands.Basic.Publish), "a content header without its publish"
                message = Published(channel, partial, frame)
                self._partial[channel] = message
                self._finish(message)
            case ContentBody(value=value):
                assert isinstance(partial, Published), "a body frame without its header"
                assert value, "an empty body frame"
                partial.body += value
                self._finish(partial)
            case _:
                assert partial is None, "a method inside a content"
                if isinstance(frame, commands.Basic.Publish):
                    self._partial[channel] = frame
                elif isinstance(frame, Heartbeat):
                    assert channel == 0
                elif isinstance(frame, commands.Connection.CloseOk):
                    self.over = True
                elif isinstance(frame, commands.Connection.TuneOk):
                    self.frame_max = frame.frame_max

    def _finish(self, message: Published) -> None:
        assert len(message.body) <= message.header.body_size
        if len(message.body) == message.header.body_size:
            del self._partial[message.channel]
            self.published.append(message)


def drain(session: Session) -> bytes:
    """Everything the session has to send."""
    sent = b""
    while data := session.data_to_send():
        sent += data
    return sent


def tuned(sink: Sink | None = None, *, frame_max: int = 131_072, heartbeat: int = 60, **options: Any) -> Session:
    """A session whose connection.open is out."""
    session = Session(CREDENTIALS, sink or Sink(), **options)
    session.receive(marshalled(START))
    session.receive(marshalled(commands.Connection.Tune(2047, frame_max, heartbeat)))
    return session


def opened(sink: Sink | None = None, *, publishers: int = 1, **options: Any) -> Session:
    """An open session with publishers that are ready; their numbers, here and on the wire, are 1, 2 …"""
    session = tuned(sink, **options)
    session.receive(marshalled(commands.Connection.OpenOk()))
    for _ in range(publishers):
        open_publisher(session)
    drain(session)
    return session


def open_publisher(session: Session) -> int:
    """Open a publisher; its number on the wire is the same as long as none was closed."""
    number = session.open_publisher()
    for answer in (commands.Channel.OpenOk(), commands.Confirm.SelectOk(), commands.Basic.QosOk()):
        session.receive(marshalled(answer, number))
    return number
