"""`EmbeddedBroker`: the model and the protocol, served over TCP or in memory, with the controls of a test.

NOT FOR PRODUCTION. It keeps everything in memory, has one thread, obeys its owner, and is made to be broken on purpose.

One task per connection reads, one writes, one keeps the broker's time; the rest are plain functions. The controls are
plain functions too: each takes effect at the instant of its call, and each may be called from another thread when the
broker was started by `in_thread`.
"""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import quote

import anyio
import anyio.lowlevel
from anyio.from_thread import start_blocking_portal
from anyio.streams.tls import TLSStream
from attrs import define, field, frozen

from warrener.testing._loop_thread import LoopThread, runs_in_loop
from warrener.testing._streams import CHUNK, MemoryStream, Port, SocketStream, memory_stream_pair
from warrener.testing.broker._codec import TypedTable
from warrener.testing.broker._confirms import Coalescing, EveryBatch, RandomCoalescing
from warrener.testing.broker._model import Enqueued, Node, Queue, User, Vhost
from warrener.testing.broker._protocol import Connection, ConnectionPhase, Intercept, Tuning, Violation
from warrener.testing.broker._timers import Timers

if TYPE_CHECKING:
    from anyio.abc import ByteStream, TaskGroup

__all__ = ["BrokerOptions", "Client", "EmbeddedBroker", "Ended", "ProtocolViolated"]

#: Seconds that a closed connection waits for the client's end, to read the client's last bytes.
LINGER = 1.0


class ProtocolViolated(AssertionError):
    """A client of the broker sent what AMQP 0-9-1 does not allow; `violations` lists it."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__(violations)
        self.violations = violations

    def __str__(self) -> str:
        return "; ".join(str(violation) for violation in self.violations)


@frozen
class Client:
    """A connection at the instant of asking."""

    number: int
    #: The client property ``connection_name``.
    name: str
    user: str
    vhost: str
    phase: ConnectionPhase
    #: Not read because of an alarm.
    blocked: bool
    heartbeat: int
    channels: tuple[int, ...]
    #: Publishes on its channels that no ack or nack was sent for.
    unconfirmed: int


@frozen
class Ended:
    """How a connection ended."""

    number: int
    name: str
    #: "closed" (with Close and Close-Ok), "eof" (the client's FIN), "broken" (a reset), "dropped" (by the broker).
    how: str
    #: Bytes of a frame that never became whole.
    residue: int
    at: float


class BrokerOptions(TypedDict, total=False):
    """The arguments of `EmbeddedBroker`, for `EmbeddedBroker.in_thread`."""

    host: str
    port: int
    tuning: Tuning
    rng: random.Random | None
    coalescing: Coalescing | None
    sync_interval: float
    strict: bool
    tls: ssl.SSLContext | None
    listen: bool
    delayed_messages: bool


@define(eq=False)
class _Served:
    """A connection and the stream that carries it."""

    connection: Connection
    wire: SocketStream | MemoryStream
    _changed: anyio.Event = field(factory=anyio.Event)

    def change(self) -> None:
        """Wake the tasks that wait for something to happen here."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_change(self) -> None:
        """Wait for `change`."""
        await self._changed.wait()


class EmbeddedBroker:
    """An AMQP 0-9-1 broker inside the process, for tests, demos and simulation. Not for production.

    Use it as ``async with EmbeddedBroker() as broker`` on Trio or asyncio, or as
    ``with EmbeddedBroker.in_thread() as broker`` beside synchronous code; clients connect to `url`, or in memory with
    `connect`. It behaves as RabbitMQ 3.10 does, with its reply codes and texts; docs/testing.md lists the differences.

    When a client sent illegal bytes, the end of the body raises `ProtocolViolated`; it does not with ``strict=False``,
    or when the body itself raises an error. With `rng` and without TCP (``listen=False``), everything that happens
    depends on the seed, the order of the tasks and the clock alone.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tuning: Tuning | None = None,
        rng: random.Random | None = None,
        coalescing: Coalescing | None = None,
        sync_interval: float = 0.0,
        strict: bool = True,
        tls: ssl.SSLContext | None = None,
        listen: bool = True,
        delayed_messages: bool = False,
    ) -> None:
        """Make a broker; it serves while its ``async with`` body runs.

        `tuning` has the limits that the broker proposes to a client. `rng`, if given, draws when confirms are sent and how
        long a sync takes; `coalescing`, if given, decides in place of `rng` when confirms are sent. `sync_interval` is the
        maximum in seconds that a persistent message in a classic queue, or any message in a quorum queue, waits for its
        ack. `tls` serves TLS. `delayed_messages` adds the exchange type ``x-delayed-message`` of RabbitMQ's plugin.
        """
        self.tuning = tuning if tuning is not None else Tuning()
        self.strict = strict
        self.loop_thread = LoopThread()
        #: A hook that sees each method and content header first; returning True makes the broker ignore it.
        self.intercept: Intercept | None = None
        self._host, self._wanted_port, self._listen = host, port, listen
        self._tls = tls
        self._coalescing = coalescing or (EveryBatch() if rng is None else RandomCoalescing(rng))
        self._timers = Timers(anyio.current_time)
        self._timers.on_sooner = self._wake_clock
        self._node = Node(self._timers, rng=rng, sync_interval=sync_interval, wall_clock=_wall_clock)
        self._node.delayed_messages = delayed_messages
        self._port: Port | None = None
        self._tasks: TaskGroup | None = None
        self._running: Any = None
        self._served: dict[int, _Served] = {}
        self._count = 0
        self._up = False
        self._frozen = False
        self._alarm: str | None = None
        self._sooner: anyio.Event | None = None
        self._violations: list[Violation] = []
        self._ended: list[Ended] = []

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
        if error is None and self.strict and self._violations:
            raise ProtocolViolated(tuple(self._violations))
        return suppressed

    @classmethod
    @contextmanager
    def in_thread(cls, *, backend: str = "asyncio", **options: Unpack[BrokerOptions]) -> Iterator[Self]:
        """Run a broker in a thread of its own, for synchronous clients and fixtures; same arguments, same controls."""
        broker = cls(**options)
        with start_blocking_portal(backend) as portal, portal.wrap_async_context_manager(broker):
            broker.loop_thread.portal = portal
            yield broker

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        self.loop_thread.enter()
        self._sooner = anyio.Event()
        failure: Exception | None = None
        if self._listen:  # outside of the task group, so that a port in use is no ExceptionGroup
            self._port = Port(self._host, self._wanted_port)
            self._port.listen()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._start()
                tasks.start_soon(self._keep_time)
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised below, without an ExceptionGroup
                    failure = error
                self._stop()
                tasks.cancel_scope.cancel()
        finally:
            self._stop()
            self._tasks = None
            if self._port is not None:
                self._port.close()
        if failure is not None:
            raise failure

    def _start(self) -> None:
        assert self._tasks is not None
        self._up = True
        if self._port is not None:
            self._port.listen()
            self._tasks.start_soon(self._accept, self._port)

    def _stop(self) -> None:
        self._up = False
        if self._port is not None:
            self._port.refuse()
        for served in tuple(self._served.values()):
            self._drop(served, reset=True)

    def _drop(self, served: _Served, *, reset: bool) -> None:
        served.wire.close_now(reset=reset)
        self._finish(served, "dropped")

    async def _keep_time(self) -> None:
        while True:
            self._sooner = anyio.Event()
            due = math.inf if self._frozen else self._timers.next_due
            with anyio.CancelScope(deadline=due):
                await self._sooner.wait()
            if not self._frozen:
                self._timers.fire()

    def _wake_clock(self) -> None:
        if self._sooner is not None:
            self._sooner.set()

    # --- serving -----------------------------------------------------------------------------------------------------

    async def _accept(self, port: Port) -> None:
        assert self._tasks is not None
        while True:
            try:
                wire = await port.accept()
            except (anyio.ClosedResourceError, OSError):
                return
            self._tasks.start_soon(self._serve_tcp, wire)

    async def _serve_tcp(self, wire: SocketStream) -> None:
        stream: ByteStream = wire
        if self._tls is not None:
            try:
                with anyio.fail_after(self.tuning.handshake_timeout):
                    stream = await TLSStream.wrap(
                        wire, server_side=True, ssl_context=self._tls, standard_compatible=False
                    )
            except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream, TimeoutError):
                wire.close_now()
                return
        await self._serve(stream, self._admit(wire))

    def _admit(self, wire: SocketStream | MemoryStream) -> _Served:
        self._count += 1
        number = self._count
        connection = Connection(
            number,
            self._node,
            self.tuning,
            self._coalescing,
            on_output=lambda: served.change(),  # noqa: PLW0108 - `served` is made of this connection
            on_violation=self._violations.append,
            intercept=lambda: self.intercept,
        )
        connection.set_alarm(self._alarm)
        served = self._served[number] = _Served(connection, wire)
        return served

    async def _serve(self, stream: ByteStream, served: _Served) -> None:
        how = "dropped"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, stream, served)
                how = await self._read(stream, served)
                tasks.cancel_scope.cancel()
        finally:
            self._finish(served, how)
            served.wire.close_now()

    def _finish(self, served: _Served, how: str) -> None:
        connection = served.connection
        if self._served.pop(connection.number, None) is not None:
            if connection.phase is ConnectionPhase.CLOSED:
                how = "closed"
            elif connection.ending is not None:
                how = "dropped"
            ended = Ended(connection.number, connection.name, how, connection.residue, self._timers.now())
            self._ended.append(ended)
            connection.lost()

    async def _read(self, stream: ByteStream, served: _Served) -> str:
        connection = served.connection
        while True:
            await self._until(served, lambda: not connection.blocked or connection.ending is not None)
            try:
                data = await stream.receive(CHUNK)
            except anyio.EndOfStream:
                data = b""
                how = "eof"
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
                return "broken"
            else:
                how = ""
            await self._until(served, lambda: True)
            if not data:
                return how
            if self._served.get(connection.number) is not served:
                return "dropped"
            connection.receive(data)

    async def _write(self, stream: ByteStream, served: _Served) -> None:
        connection = served.connection
        output = b""
        try:
            while True:
                await self._until(served, lambda: connection.has_output or connection.ending is not None)
                output = connection.take_output()
                if output:
                    await stream.send(output)
                elif connection.ending == "reset":
                    served.wire.close_now(reset=True)
                    return
                else:
                    break
            await served.wire.send_eof()
            await anyio.sleep(LINGER)
            served.wire.close_now()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
            # The client reads no more; the bytes that it sent before are read to their end all the same.
            while True:
                connection.take_output()
                if connection.ending is not None:
                    served.wire.close_now()
                    return
                await served.wait_change()

    async def _until(self, served: _Served, ready: Callable[[], bool]) -> None:
        while self._frozen or not ready():
            await served.wait_change()

    # --- reaching it -------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port; the same one after a restart."""
        if self._port is None:
            raise RuntimeError("the broker has no port: it is not running, or was made with listen=False")
        return self._port.number

    @property
    def url(self) -> str:
        """Where clients connect to, as the user guest."""
        return self.url_for("guest", "guest")

    def url_for(self, user: str, password: str, vhost: str = "/") -> str:
        """Return the URL for a user and a virtual host."""
        scheme = "amqp" if self._tls is None else "amqps"
        host = f"[{self._host}]" if ":" in self._host else self._host
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"{scheme}://{login}@{host}:{self.port}/{'' if vhost == '/' else quote(vhost, safe='')}"

    async def connect(self, window: int = CHUNK) -> MemoryStream:
        """Return the client's end of a new connection in memory; raises `ConnectionRefusedError` while it is down.

        `window` bytes fit each way before a sender waits.
        """
        await anyio.lowlevel.checkpoint()
        if not self._up or self._tasks is None:
            raise ConnectionRefusedError("the embedded broker is down")
        client, wire = memory_stream_pair(window)
        self._tasks.start_soon(self._serve, wire, self._admit(wire))
        return client

    # --- observations -------------------------------------------------------------------------------------------------

    @property
    def log(self) -> tuple[Enqueued, ...]:
        """Every enqueue since the broker was made, oldest first; neither crash nor purge takes a line away."""
        return tuple(self._node.log)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The bytes and methods that clients sent and that AMQP does not allow."""
        return tuple(self._violations)

    @property
    def ended(self) -> tuple[Ended, ...]:
        """The connections that are over."""
        return tuple(self._ended)

    @property
    @runs_in_loop
    def clients(self) -> tuple[Client, ...]:
        """The connections that live, oldest first."""
        return tuple(_client(served.connection) for served in self._served.values())

    @runs_in_loop
    def messages(self, queue: str, vhost: str = "/") -> list[bytes]:
        """Return the bodies that are ready in a queue, first to last, without taking them."""
        return [entry.message.body for entry in self._queue(queue, vhost).ready]

    @runs_in_loop
    def queues(self, vhost: str = "/") -> dict[str, int]:
        """Return the depth (messages ready and unacknowledged) of each queue by name."""
        return {name: len(queue) + len(queue.unacked) for name, queue in self._vhost(vhost).queues.items()}

    # --- its content -------------------------------------------------------------------------------------------------

    @runs_in_loop
    def declare_queue(self, name: str, vhost: str = "/", arguments: dict[str, str | int] | None = None) -> None:
        """Make a durable queue, as a client would."""
        self._vhost(vhost).declare_queue(
            name, 0, durable=True, exclusive=False, auto_delete=False, arguments=_typed_arguments(arguments)
        )

    @runs_in_loop
    def declare_exchange(
        self, name: str, kind: str = "direct", vhost: str = "/", arguments: dict[str, str | int] | None = None
    ) -> None:
        """Make a durable exchange, as a client would."""
        self._vhost(vhost).declare_exchange(
            name, kind, durable=True, auto_delete=False, internal=False, arguments=_typed_arguments(arguments)
        )

    @runs_in_loop
    def bind_queue(self, queue: str, exchange: str, routing_key: str = "", vhost: str = "/") -> None:
        """Bind a queue to an exchange, as a client would."""
        self._vhost(vhost).bind(exchange, "queue", queue, routing_key, {})

    @runs_in_loop
    def delete_queue(self, name: str, vhost: str = "/") -> None:
        """Delete a queue; its unconfirmed publishes are acked (an ack does not mean stored)."""
        self._vhost(vhost).delete_queue(self._queue(name, vhost))

    @runs_in_loop
    def kill_queue(self, name: str, vhost: str = "/") -> None:
        """End a queue's process abnormally: its unconfirmed publishes are nacked, though its synced messages stay."""
        self._queue(name, vhost).die()

    @runs_in_loop
    def purge_queue(self, name: str, vhost: str = "/") -> None:
        """Drop the ready messages of a queue."""
        self._queue(name, vhost).purge()

    @runs_in_loop
    def delete_exchange(self, name: str, vhost: str = "/") -> None:
        """Delete an exchange; the next publish to it closes its channel with 404."""
        self._vhost(vhost).delete_exchange(name)

    @runs_in_loop
    def add_vhost(self, name: str) -> None:
        """Add a virtual host; guest may use it."""
        self._node.vhosts.setdefault(name, Vhost(self._node, name))
        self._node.users["guest"].permissions[name] = (".*", ".*", ".*")

    @runs_in_loop
    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it; its connections are closed."""
        vhost = self._vhost(name)
        for served in tuple(self._served.values()):
            if served.connection.vhost is vhost:
                served.connection.close(320, f"vhost '{name}' is deleted")
        del self._node.vhosts[name]
        for queue in tuple(vhost.queues.values()):
            vhost.delete_queue(queue)
        for user in self._node.users.values():
            user.permissions.pop(name, None)

    @runs_in_loop
    def add_user(self, name: str, password: str, vhost: str | None = "/") -> None:
        """Add a user, or change a password; with every permission in `vhost` unless that is None."""
        known = self._node.users.get(name)
        user = self._node.users[name] = User(name, password, known.permissions if known is not None else {})
        if vhost is not None:
            user.permissions[vhost] = (".*", ".*", ".*")

    @runs_in_loop
    def delete_user(self, name: str) -> None:
        """Delete a user; its connections are closed."""
        user = self._node.users.pop(name)
        for served in tuple(self._served.values()):
            if served.connection.user is user:
                served.connection.close(320, f"user '{name}' is deleted")

    @runs_in_loop
    def set_permissions(
        self, user: str, *, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Set the patterns that the names must match; they count from the next method on."""
        self._node.users[user].permissions[vhost] = (configure, write, read)

    @runs_in_loop
    def clear_permissions(self, user: str, vhost: str = "/") -> None:
        """Take a user's permissions away."""
        self._node.users[user].permissions.pop(vhost, None)

    # --- faults of the broker ---------------------------------------------------------------------------------------------

    @runs_in_loop
    def alarm(self, on: bool = True, reason: str = "low on memory") -> None:
        """Raise or clear a resource alarm: a client that publishes now is blocked, and its socket is not read."""
        self._alarm = reason if on else None
        for served in tuple(self._served.values()):
            served.connection.set_alarm(self._alarm)
            served.change()

    @runs_in_loop
    def stall_confirms(self, on: bool = True, queue: str | None = None, vhost: str = "/") -> None:
        """Have every queue, or the one named, behave as a quorum queue without a leader.

        Nothing is stored or confirmed there until `stall_confirms(False)`.
        """
        if queue is not None:
            self._queue(queue, vhost).stall(on)
            return
        self._node.stall(on)

    @runs_in_loop
    def delay_confirms(self, seconds: float, queue: str, vhost: str = "/") -> None:
        """Have one queue confirm this much later than it stores; 0 ends it."""
        self._queue(queue, vhost).confirm_delay = seconds

    @runs_in_loop
    def sync(self) -> None:
        """Sync every queue now: the messages that wait for a sync become safe and are confirmed."""
        self._node.sync()

    @runs_in_loop
    def flow(self, active: bool) -> None:
        """Send channel.flow to every channel in confirm mode; a publish after flow-ok(false) is a violation."""
        for served in tuple(self._served.values()):
            for channel in served.connection.channels.values():
                if channel.confirms is not None and not channel.closing:
                    channel.send("channel.flow", active=active)

    @runs_in_loop
    def close_all_connections(self, code: int = 320, text: str = "closed by the operator") -> None:
        """Send connection.close to every client whose connection is open; RabbitMQ knows of no others."""
        for served in tuple(self._served.values()):
            if served.connection.phase is ConnectionPhase.OPEN:
                served.connection.close(code, text)

    @runs_in_loop
    def close_channels(self, code: int, text: str) -> None:
        """Send channel.close to every open channel."""
        for served in tuple(self._served.values()):
            for channel in tuple(served.connection.channels.values()):
                channel.close(code, text)

    @runs_in_loop
    def drop_connections(self, *, reset: bool = True) -> None:
        """End every connection without a Close: by RST, or by FIN."""
        for served in tuple(self._served.values()):
            self._drop(served, reset=reset)

    @runs_in_loop
    def send_bytes(self, data: bytes, number: int | None = None) -> None:
        """Send these bytes to every client, or to the client with this number: a hostile broker."""
        for served in tuple(self._served.values()):
            if number in (None, served.connection.number):
                served.connection.send_bytes(data)

    @runs_in_loop
    def crash(self) -> None:
        """Die as by a power cut: connections are reset, the port refuses, messages that were not safe are lost."""
        self._stop()
        self._alarm = None
        self._node.crash()

    @runs_in_loop
    def stop(self) -> None:
        """Shut down in order: everything is synced, then 320 to every client; the port refuses until `restart`."""
        self._node.sync()
        self._alarm = None
        if self._port is not None:
            self._port.refuse()
        self._up = False
        for served in tuple(self._served.values()):
            served.connection.set_alarm(None)
            served.connection.close(320, "broker forced connection closure with reason 'shutdown'")
            served.connection.end("fin")
        self._node.crash()

    @runs_in_loop
    def restart(self) -> None:
        """Come back after `crash` or `stop`, on the same port; a running broker is stopped first."""
        if self._up:
            self.stop()
        self._start()

    @runs_in_loop
    def freeze(self) -> None:
        """Stop as a suspended process does: connections stay, nothing is read, sent or timed, until `thaw`."""
        self._frozen = True
        self._wake_clock()

    @runs_in_loop
    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._frozen = False
        self._wake_clock()
        for served in tuple(self._served.values()):
            served.change()

    def _vhost(self, name: str) -> Vhost:
        return self._node.vhosts[name]

    def _queue(self, name: str, vhost: str) -> Queue:
        return self._vhost(vhost).queues[name]


def _typed_arguments(arguments: dict[str, str | int] | None) -> TypedTable:
    return {
        key: ("longstr" if isinstance(value, str) else "signedint", value) for key, value in (arguments or {}).items()
    }


def _client(connection: Connection) -> Client:
    return Client(
        connection.number,
        connection.name,
        connection.user.name if connection.user is not None else "",
        connection.vhost.name if connection.vhost is not None else "",
        connection.phase,
        connection.blocked,
        connection.heartbeat,
        tuple(connection.channels),
        sum(channel.confirms.pending for channel in connection.channels.values() if channel.confirms is not None),
    )


def _wall_clock() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
