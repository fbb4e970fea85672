"""``python -m benchmarks.parts``: microseconds of the driver's parts on each event loop, without a broker; a table.

A *pass* writes 64 bytes, has a peer in the same thread answer with an ack, and waits until the ack was taken: what one publisher
alone pays for bytes. The peer's two calls of the kernel, and ours, are in the line "Four calls of the kernel".
"""

from __future__ import annotations

import socket
import statistics
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio

from benchmarks.load import processor_seconds
from warrener._backend import backend
from warrener.drivers import _dial
from warrener.drivers.native._driver import dial_sockets
from warrener.records import Endpoint, Envelope
from warrener.wire.channel import ChannelState, Outgoing, Publisher
from warrener.wire.framing import Parser

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "Trio": ("trio", {}),
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
ROUNDS = 7
TIMES = 2_000
ACK = struct.pack(">BHIIQBB", 1, 1, 13, 0x003C0050, 1, 0, 0xCE)
MESSAGE = bytes(64)


def _median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(ROUNDS))


def _timed(act: Callable[[], object], times: int = TIMES) -> float:
    began = processor_seconds()
    for _ in range(times):
        act()
    return (processor_seconds() - began) / times * 1e6


def _peers() -> tuple[socket.socket, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


# --- without an event loop ----------------------------------------------------------------------------------------------


def kernel() -> float:
    """Four calls of the kernel: send, receive, and the same back."""
    listener, port = _peers()
    with listener, socket.create_connection(("127.0.0.1", port)) as ours, listener.accept()[0] as theirs:

        def act() -> None:
            ours.send(MESSAGE)
            theirs.recv(65536)
            theirs.send(ACK)
            ours.recv(65536)

        return _median(lambda: _timed(act))


def _publisher() -> Publisher:
    publisher = Publisher(1, 1, 131_072, Outgoing(), state=ChannelState.READY)
    publisher.outgoing.publishers.append(publisher)
    return publisher


def encode() -> float:
    """One message of 256 bytes, encoded by itself."""
    publisher, envelope, body = _publisher(), Envelope(routing_key="q"), bytes(256)

    def act() -> None:
        publisher.publish(envelope, "0" * 32, body, None)
        publisher.outgoing.take()

    return _median(lambda: _timed(act))


def parse() -> float:
    """One ack of a read that has 100 of them."""
    parser = Parser(lambda *_: None, lambda *_: None, lambda *_: None)
    acks = ACK * 100
    return _median(lambda: _timed(lambda: parser.feed(acks), TIMES // 100) / 100)


# --- on each loop -------------------------------------------------------------------------------------------------------


async def park_and_wake() -> float:
    """One park and wake, with a pass of the waking task."""
    parking = backend()
    place: Any = SimpleNamespace(waiter=None)

    async def sleeper() -> None:
        for _ in range(TIMES * ROUNDS):
            await parking.park(place, lambda _: None)

    async def wake_on() -> float:
        began = processor_seconds()
        for _ in range(TIMES):
            while place.waiter is None:
                await anyio.lowlevel.checkpoint()
            ticket, place.waiter = place.waiter, None
            parking.wake(ticket)
        return (processor_seconds() - began) / TIMES * 1e6

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper)
        return statistics.median([await wake_on() for _ in range(ROUNDS)])


class _Passes:
    """Passes of one connection: `taken` is called by its reader, `theirs` is the peer's end."""

    def __init__(self, theirs: socket.socket) -> None:
        self._theirs = theirs
        self._backend = backend()
        self._place = SimpleNamespace(waiter=None)
        self._taken = 0

    def taken(self, _: object = None) -> bool:
        """An ack has come."""
        self._taken += 1
        if (ticket := self._place.waiter) is not None:
            self._place.waiter = None
            self._backend.wake(ticket)
        return True

    async def cost(self, write: Callable[[bytes], object]) -> float:
        """Return the microseconds of one pass."""
        return statistics.median([await self._round(write) for _ in range(ROUNDS)])

    async def _round(self, write: Callable[[bytes], object]) -> float:
        place: Any = self._place
        began = processor_seconds()
        for _ in range(TIMES):
            before = self._taken
            if isinstance(waiting := write(MESSAGE), Awaitable):
                await waiting
            self._theirs.recv(65536)
            self._theirs.send(ACK)
            while self._taken == before:
                await self._backend.park(place, lambda _: None)
        return (processor_seconds() - began) / TIMES * 1e6


async def transport_pass() -> float:
    """A pass by the native driver's transport."""
    listener, port = _peers()
    with listener:
        dialed = await dial_sockets(Endpoint("127.0.0.1", port), require_tls=False, ssl_context=None, first_address=0)
        transport, (theirs, _) = dialed.stream, listener.accept()
        with theirs:
            passes = _Passes(theirs)
            async with anyio.create_task_group() as group:
                group.start_soon(transport.read_on, passes.taken)
                cost = await passes.cost(transport.write)
                group.cancel_scope.cancel()
            await transport.aclose()
    return cost


async def stream_pass() -> float:
    """The same by a stream of anyio, which the driver used before."""
    listener, port = _peers()
    with listener:
        dialed = await _dial.dial(Endpoint("127.0.0.1", port))
        stream, (theirs, _) = dialed.stream, listener.accept()
        with theirs:
            passes = _Passes(theirs)

            async def read_on() -> None:
                while True:
                    passes.taken(await stream.receive())

            async with anyio.create_task_group() as group:
                group.start_soon(read_on)
                cost = await passes.cost(stream.send)
                group.cancel_scope.cancel()
            await stream.aclose()
    return cost


def main() -> None:
    """Measure and print."""
    print(f"| part | {' | '.join(LOOPS)} |")
    print(f"|---|{'--:|' * len(LOOPS)}")
    for part in (encode, parse, kernel):
        print(f"| {_said(part)} | {' | '.join([f'{part():.1f}'] * len(LOOPS))} |", flush=True)
    for each in (park_and_wake, transport_pass, stream_pass):
        costs = [anyio.run(each, backend=name, backend_options=options) for name, options in LOOPS.values()]
        print(f"| {_said(each)} | {' | '.join(f'{cost:.1f}' for cost in costs)} |", flush=True)


def _said(part: Callable[[], object]) -> str:
    return (part.__doc__ or "").partition(".")[0]


if __name__ == "__main__":
    main()
