"""AMQP on a bare blocking socket, with every frame encoded beforehand: the limit that a client can come near to.

The frames are those of `warrener.wire`, so the broker has the same work to do as for the native driver.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import pamqp.body
import pamqp.frame
import pamqp.header
from pamqp import commands

from benchmarks.load import Load, Meter
from warrener.records import Credentials, Envelope, Returned
from warrener.wire import Session
from warrener.wire.channel import Publisher

_ACK = struct.Struct(">BHIIQBB")


class _NoHandler:
    """Ignores what the session says: the acks are counted straight from the bytes."""

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None: ...

    def nacked(self, channel: int, tag: int, multiple: bool) -> None: ...

    def returned(self, channel: int, returned: Returned) -> None: ...


def shake_hands(url: str) -> tuple[socket.socket, Session, Publisher]:
    """Connect and open one channel in confirm mode; as few round trips as the protocol has."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    peer = socket.create_connection((parts.hostname, parts.port), timeout=60)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = Session(Credentials("guest", "guest"), _NoHandler(), heartbeat=0)
    channel = 0
    while True:
        while data := session.data_to_send():
            peer.sendall(data)
        for fact in session.receive(peer.recv(65536)):
            if type(fact).__name__ == "Opened":
                channel = session.open_publisher()
            elif type(fact).__name__ == "ChannelOpened":
                return peer, session, session.publisher(channel)


#: Returns the frames of one message.
Encode = Callable[[Session, Publisher, Load], bytes]


def encoded(session: Session, publisher: Publisher, load: Load) -> bytes:
    """Return the frames of one message as the library makes them; mandatory where the load says equal work."""
    publisher.publish(Envelope(routing_key=load.queue, mandatory=load.equal), "0" * 32, bytes(load.size), None)
    return b"".join(iter(session.data_to_send, b""))


def frames_with(*, mandatory: bool = False, message_id: bool = False, token: bool = False) -> Callable[[Load], Meter]:
    """Return a blaster whose messages are persistent and have these things beside, whatever the load says."""

    def encode(_: Session, publisher: Publisher, load: Load) -> bytes:
        properties = commands.Basic.Properties(
            delivery_mode=2,
            message_id="0" * 32 if message_id else None,
            headers={"x-warrener-token": "0" * 32} if token else None,
        )
        parts = (
            commands.Basic.Publish(routing_key=load.queue, mandatory=mandatory),
            pamqp.header.ContentHeader(body_size=load.size, properties=properties),
            pamqp.body.ContentBody(bytes(load.size)),
        )
        return b"".join(pamqp.frame.marshal(part, publisher.wire_number) for part in parts)

    return partial(blast, encode=encode)


class Acks:
    """Counts the messages that acks stand for, each once, single and multiple in any order."""

    def __init__(self) -> None:
        self._rest = b""
        self._floor = 0
        self._above: set[int] = set()

    @property
    def confirmed(self) -> int:
        """How many messages were acked so far."""
        return self._floor + len(self._above)

    def feed(self, data: bytes) -> None:
        """Take bytes that hold nothing but acks."""
        data = self._rest + data
        whole = len(data) // _ACK.size * _ACK.size
        self._rest = data[whole:]
        for _, _, size, _, tag, multiple, _ in _ACK.iter_unpack(data[:whole]):
            if size != 13:
                raise RuntimeError("the broker said something else than basic.ack")
            if multiple:
                self._floor = tag
                self._above = {each for each in self._above if each > tag}
            elif tag == self._floor + 1:
                self._floor = tag
            else:
                self._above.add(tag)


def blast(load: Load, encode: Encode = encoded) -> Meter:
    """Keep `in_flight` messages unconfirmed; the latency is noted where that is one at a time."""
    peer, session, publisher = shake_hands(load.url)
    with peer:
        one = encode(session, publisher, load)
        frames = memoryview(one * min(load.in_flight, max(1, 4_000_000 // len(one))))
        meter, acks, sent, seen = Meter(load), Acks(), 0, 0
        alone = load.in_flight == 1
        while not meter.done:
            began = time.perf_counter()
            while room := min(load.in_flight - (sent - seen), len(frames) // len(one)):
                peer.sendall(frames[: room * len(one)])
                sent += room
            acks.feed(peer.recv(65536))
            if alone:
                meter.latencies.append(time.perf_counter() - began)
            meter.confirm(acks.confirmed - seen)
            seen = acks.confirmed
        while seen < sent:
            acks.feed(peer.recv(65536))
            seen = acks.confirmed
    return meter
