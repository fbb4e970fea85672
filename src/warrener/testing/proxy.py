"""`FaultProxy`: a TCP proxy between a client and any broker, with faults that a test controls.

Each fault is a plain function. It is in force from the instant of its call, on open connections and on later ones;
`heal` ends all faults. Directions are seen from the client: ``"up"`` carries the bytes that the client sends, ``"down"``
the bytes that it receives, None means both.

Each direction of a connection is a reader and a writer with a short queue between them, so that latency delays bytes
without slowing the stream. What the proxy holds is bounded by `window` bytes a direction; a side that is not read soon
cannot write, as in a network.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import anyio
from anyio.from_thread import start_blocking_portal
from attrs import define

from warrener.testing._loop_thread import LoopThread, runs_in_loop
from warrener.testing._proxy_line import Line, Signal, Way
from warrener.testing._streams import Port, SocketStream, connect

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["Direction", "FaultProxy"]

Direction: TypeAlias = Literal["up", "down"]


@define(eq=False)
class _Pair:
    """A client and the target's end of its connection, once there is one."""

    client: SocketStream
    target: SocketStream | None = None
    lines: tuple[Line, ...] = ()
    #: How it was closed, which may be before there is a target.
    closed_by_reset: bool | None = None

    def close_now(self, *, reset: bool) -> None:
        if self.closed_by_reset is None:
            self.closed_by_reset = reset
        self.client.close_now(reset=reset)
        if self.target is not None:
            self.target.close_now(reset=reset)

    def end(self, reset: bool) -> None:
        """Close both sides; see `Line.end`."""
        self.close_now(reset=reset)


class FaultProxy:
    """A proxy on 127.0.0.1 in front of `target`, which is a URL, ``"host:port"`` or a pair of both.

    Use it as ``async with FaultProxy(broker.url) as proxy`` on Trio or asyncio, or as
    ``with FaultProxy.in_thread(broker.url) as proxy`` beside synchronous code, and have the client connect to `url`.
    """

    def __init__(self, target: str | tuple[str, int], *, window: int = 65536) -> None:
        """Make a proxy; it serves while its ``async with`` body runs. `window` bytes a direction are held at most."""
        self.loop_thread = LoopThread()
        self._template = target if isinstance(target, str) and "://" in target else None
        self._target = _address(target)
        self._window = window
        self._ways: dict[Direction, Way] = {"up": Way(), "down": Way()}
        self._pairs: dict[_Pair, None] = {}
        self._accepted = 0
        self._signal = Signal()
        self._port: Port | None = None
        self._tasks: TaskGroup | None = None
        self._running: Any = None

    # --- its life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        running, self._running = self._running, None
        suppressed: bool | None = await running.__aexit__(kind, error, traceback)
        return suppressed

    @classmethod
    @contextmanager
    def in_thread(
        cls, target: str | tuple[str, int], *, window: int = 65536, backend: str = "asyncio"
    ) -> Iterator[Self]:
        """Run a proxy in a thread of its own, for synchronous clients and fixtures; same controls."""
        proxy = cls(target, window=window)
        with start_blocking_portal(backend) as portal, portal.wrap_async_context_manager(proxy):
            proxy.loop_thread.portal = portal
            yield proxy

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        self.loop_thread.enter()
        self._port = Port()
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._port.listen()
                tasks.start_soon(self._accept, self._port)
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised below, without an ExceptionGroup
                    failure = error
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            for pair in self._pairs:
                pair.close_now(reset=True)
            self._port.close()
        if failure is not None:
            raise failure

    async def _accept(self, port: Port) -> None:
        assert self._tasks is not None
        while True:
            try:
                client = await port.accept()
            except (anyio.ClosedResourceError, OSError):
                return
            self._tasks.start_soon(self._serve, client)

    async def _serve(self, client: SocketStream) -> None:
        pair = _Pair(client)
        self._pairs[pair] = None
        self._accepted += 1
        try:
            await self._signal.until(lambda: not self._ways["up"].black_hole)
            try:
                target = pair.target = await connect(*self._target)
            except OSError:
                client.close_now(reset=True)
                return
            if pair.closed_by_reset is not None:
                target.close_now(reset=pair.closed_by_reset)
                return
            up = Line(self._ways["up"], client, target, self._window, pair.end)
            down = Line(self._ways["down"], target, client, self._window, pair.end)
            pair.lines = (up, down)
            async with anyio.create_task_group() as tasks:
                for line in pair.lines:
                    tasks.start_soon(line.read)
                async with anyio.create_task_group() as writers:
                    for line in pair.lines:
                        writers.start_soon(line.write)
                tasks.cancel_scope.cancel()
        finally:
            pair.close_now(reset=False)
            del self._pairs[pair]

    def _change(self) -> None:
        self._signal.change()
        for pair in self._pairs:
            for line in pair.lines:
                line.signal.change()

    # --- reaching it -------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port for clients, on 127.0.0.1."""
        if self._port is None:
            raise RuntimeError("the proxy is not running")
        return self._port.number

    @property
    def url(self) -> str:
        """The target's URL, with the proxy in place of its host and port."""
        if self._template is None:
            raise ValueError("the target was not given as a URL")
        parts = urlsplit(self._template)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    @property
    @runs_in_loop
    def connections(self) -> int:
        """The number of connections that are open through the proxy."""
        return len(self._pairs)

    @property
    def accepted(self) -> int:
        """The number of connections that the proxy has accepted so far."""
        return self._accepted

    @runs_in_loop
    def forwarded(self, direction: Direction) -> int:
        """Return the number of bytes forwarded in a direction, over all connections."""
        return self._ways[direction].forwarded

    @runs_in_loop
    def swallowed(self, direction: Direction) -> int:
        """Return the number of bytes that a black hole has swallowed in a direction."""
        return self._ways[direction].swallowed

    # --- faults ------------------------------------------------------------------------------------------------------

    @runs_in_loop
    def latency(self, seconds: float, direction: Direction | None = None) -> None:
        """Delay each byte that arrives from now on by `seconds`."""
        self._set("latency", seconds, direction)

    @runs_in_loop
    def bandwidth(self, bytes_per_second: float, direction: Direction | None = None) -> None:
        """Let each connection carry this many bytes per second in that direction, no more; `math.inf` lifts it."""
        self._set("bandwidth", bytes_per_second, direction)

    @runs_in_loop
    def slice(self, size: int | None, direction: Direction | None = None) -> None:
        """Forward in pieces of `size` bytes, each a write of its own; None lifts it."""
        self._set("slice", size, direction)

    @runs_in_loop
    def freeze(self, direction: Direction | None = None) -> None:
        """Neither read nor forward; connections stay open, until `thaw`."""
        self._set("frozen", True, direction)

    @runs_in_loop
    def thaw(self, direction: Direction | None = None) -> None:
        """End `freeze`; the bytes that were held are forwarded."""
        self._set("frozen", False, direction)

    @runs_in_loop
    def black_hole(self, on: bool = True, direction: Direction | None = None) -> None:
        """Read all bytes and forward none; new connections are accepted and receive nothing.

        The swallowed bytes are lost, so a connection that was open during a black hole is broken afterwards.
        """
        self._set("black_hole", on, direction)

    @runs_in_loop
    def cut_after(self, count: int, direction: Direction, *, reset: bool = True) -> None:
        """End the connection that carries the `count`-th byte from now on, right after it (0: end all of them now)."""
        way = self._ways[direction]
        way.cut_by_reset = reset
        if count == 0:
            self._cut(reset=reset)
        else:
            way.until_cut = count

    @runs_in_loop
    def corrupt(self, after: int = 0, direction: Direction = "down") -> None:
        """Invert the bits of one byte: the one that follows `after` bytes from now on."""
        self._ways[direction].until_corruption = after

    @runs_in_loop
    def fin(self) -> None:
        """End every connection by FIN, to both sides."""
        self._cut(reset=False)

    @runs_in_loop
    def reset(self) -> None:
        """End every connection by RST, to both sides."""
        self._cut(reset=True)

    @runs_in_loop
    def late_close(self, seconds: float) -> None:
        """Pass on the end of a stream `seconds` later."""
        self._set("late_close", seconds, None)

    @runs_in_loop
    def refuse(self, on: bool = True) -> None:
        """Refuse new connections, or accept them again; open connections stay."""
        if self._port is None or self._tasks is None:
            raise RuntimeError("the proxy is not running")
        if on:
            self._port.refuse()
        elif not self._port.listening:
            self._port.listen()
            self._tasks.start_soon(self._accept, self._port)

    @runs_in_loop
    def heal(self) -> None:
        """End all faults; connections that were cut stay cut."""
        for way in self._ways.values():
            way.latency, way.bandwidth, way.slice, way.late_close = 0.0, math.inf, None, 0.0
            way.frozen = way.black_hole = False
            way.until_cut = way.until_corruption = None
        self.refuse(False)
        self._change()

    def _set(self, name: str, value: object, direction: Direction | None) -> None:
        for key, way in self._ways.items():
            if direction in (None, key):
                setattr(way, name, value)
        self._change()

    def _cut(self, *, reset: bool) -> None:
        for pair in self._pairs:
            pair.close_now(reset=reset)


def _address(target: str | tuple[str, int]) -> tuple[str, int]:
    if not isinstance(target, str):
        return target
    parts = urlsplit(target if "://" in target else f"tcp://{target}")
    standard = 5671 if parts.scheme == "amqps" else 5672
    return parts.hostname or "localhost", parts.port or standard
