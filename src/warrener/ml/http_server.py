"""The HTTP server of the service: uvicorn's HTTP/1.1 on asyncio, with bounds for its clients.

uvicorn was chosen because a connection is a protocol object of its own: an exception in it ends that connection and no
other. It offers neither HTTP/2 in clear text nor, as configured here, upgrades or WebSocket. `_Connection` adds the
bounds that uvicorn lacks: a time for the head, a time for a body that nobody reads, and a maximum number of connections.

When there are too many connections, the server closes those that have waited longest for their clients: for a head, for
the rest of a body, or for an answer to be read. So a client that only waits cannot keep others out. There are too many
connections when there are more than `max_connections`, or when the process has few file descriptors left. The server
sees the latter by the descriptor of a new connection: the kernel gives the lowest free number, so a number near the
limit means that few are left.

The bytes of the connections are handled in turns (`warrener.ml.turns`), so no connection holds up another for long.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import json
import logging
import re
import resource
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import anyio
import anyio.abc
import h11
import uvicorn
from attrs import define
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from warrener.ml.answers import BEGAN
from warrener.ml.logs import RateLimit
from warrener.ml.server_settings import ServerSettings
from warrener.ml.turns import Turns

__all__ = ["ServerCounters", "config", "connection_type", "serve_http"]

log = logging.getLogger("warrener.http")
log.addFilter(RateLimit())

#: Connections that the kernel keeps until they are accepted, and how many are accepted in one step.
BACKLOG = 4096
ACCEPT_STEP = 8
#: File descriptors that connections leave for the broker, the log, files and one step of accepting.
RESERVED_FILES = ACCEPT_STEP + 24
#: Bytes that are read at once, so that a connection holds little more than that, and a turn is short.
READ_SIZE = 4 * 1024
#: What the kernel says when it has no file descriptor or memory for a connection.
NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Seconds until a server that ended is started again: the first time, and at most.
RESTART_FIRST, RESTART_CAP = 0.1, 30.0


@define
class ServerCounters:
    """What the server did to its clients, for the log and the tests."""

    #: Connections closed because there were too many.
    evicted: int = 0
    #: Connections whose handling failed.
    broken: int = 0
    #: How often the server was started again.
    restarts: int = 0


def _refusal(status: int, error: str, *, retry_after: int | None = None) -> bytes:
    """Return a whole answer for a client whose request never became one."""
    body = json.dumps({"error": error, "task_id": None, "may_have_been_delivered": False}).encode()
    retry = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Bad Request')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{retry}\r\n"
    )
    return head.encode() + body


_PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class _Bounded(h11.Connection):
    """HTTP/1.1 whose heads have a maximum number of fields."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(h11.SERVER, settings.max_header)
        self._max_fields = settings.max_fields

    def next_event(self) -> Any:
        """Return the next event; raises `h11.RemoteProtocolError`."""
        if self.their_state is h11.IDLE:
            data = self.trailing_data[0]
            end = _END_OF_HEAD.search(data)
            # The first line is the request's.
            if end is not None and data.count(b"\n", 0, end.end()) - 2 > self._max_fields:
                raise h11.RemoteProtocolError("too many fields", error_status_hint=431)
        return super().next_event()


_END_OF_HEAD = re.compile(rb"\n\r?\n")


class _Connection(H11Protocol):
    """One connection. Whatever it raises closes this connection, is logged once and counted."""

    settings: ServerSettings
    counters: ServerCounters
    turns: Turns

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = log
        self.conn = _Bounded(self.settings)
        self.paid = 0.0
        # Whether a turn was asked for, and whether the client has ended its direction.
        self._asked = self._ended = False
        #: Since when the connection has waited for its client.
        self.waiting_since = 0.0
        self._head_began = 0.0
        # Ends a head that is not whole in time, and a body that nobody reads.
        self._limit: asyncio.TimerHandle | None = None

    # --- asyncio's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        cast("Any", transport).max_size = READ_SIZE
        self._expect_head()
        number = transport.get_extra_info("socket").fileno()
        if len(self.connections) > self.settings.max_connections or number >= _files() - RESERVED_FILES:
            self._make_place()

    def data_received(self, data: bytes) -> None:
        if self._limit is None and self._idle and self.conn.their_state is h11.IDLE:
            self._expect_head()
        with self._boundary():
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays: a client that sends no more may still wait for answers."""
        self._ended = True
        return self._asked or (not self._idle and not self.cycle.more_body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_limit()
        with self._boundary():
            super().connection_lost(exc)

    # --- uvicorn's own steps

    def handle_events(self) -> None:
        if not self._asked:
            self._asked = True
            self.turns.ask(self)

    def wait_turn(self) -> None:
        """Read no more bytes until the turn."""
        self.transport.pause_reading()

    def take_turn(self) -> None:
        """Handle the bytes that are there."""
        self._asked = False
        if self.transport.is_closing():
            return
        before = self.scope
        self.app_state = {BEGAN: self._head_began}
        with self._boundary():
            super().handle_events()
        if self.scope is not before:
            self._end_limit()
        if not self.flow.read_paused:
            self.transport.resume_reading()
        self._end_if_ended()

    def on_response_complete(self) -> None:
        if self.conn.trailing_data[0]:
            self._head_began = self.loop.time()  # of the next request
        super().on_response_complete()
        self.waiting_since = self.loop.time()
        self._end_if_ended()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            # The rest of the body is read and thrown away, for a while: a client that still sends would not read the answer.
            self._end_limit()
            self._limit = self.loop.call_later(self.settings.header_timeout, self.transport.close)

    def _end_if_ended(self) -> None:
        if self._ended and not self._asked and (self._idle or self.cycle.more_body):
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        with self._boundary():
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        with self._boundary():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this where it has caught h11's error, whose hint is 431 for a head that is too large.
        error = sys.exc_info()[1]
        status = int(getattr(error, "error_status_hint", 400))
        if status == 431:
            msg = f"the head of a request may have at most {self.settings.max_header} bytes and {self.settings.max_fields} fields"
        self._refuse(status, msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it did not ask for an upgrade."""

    # --- bounds

    @property
    def _idle(self) -> bool:
        begun = self._begun
        return begun is None or begun.response_complete

    @property
    def _begun(self) -> RequestResponseCycle | None:
        """The request that came last; None before the first one, which uvicorn's annotation does not say."""
        return cast("RequestResponseCycle | None", self.cycle)

    @property
    def has_data(self) -> bool:
        """Whether the client has sent bytes that wait for their turn."""
        return self._asked

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens here until the client sends or reads."""
        return self._idle or self.cycle.more_body or self.flow.write_paused

    def _expect_head(self) -> None:
        self._head_began = self.waiting_since = self.loop.time()
        self._limit = self.loop.call_later(self.settings.header_timeout, self._head_is_late)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _head_is_late(self) -> None:
        self._limit = None
        if self.conn.trailing_data[0]:
            self._refuse(408, f"the head of the request did not arrive within {self.settings.header_timeout:g} s")
        else:
            self.transport.close()

    def _make_place(self) -> None:
        if not evict(self.connections - {self}, _allowed(self.settings), self.counters):
            self._refuse(503, "not sent: the service has too many connections; try again", retry_after=1)

    def _refuse(self, status: int, error: str, *, retry_after: int | None = None) -> None:
        """Answer without h11, whose state may not allow it, and close."""
        if self._idle or not self.cycle.response_started:
            self.transport.write(_refusal(status, error, retry_after=retry_after))
        begun = self._begun
        if begun is not None:
            begun.disconnected = True
            begun.message_event.set()
        self.transport.close()

    @contextmanager
    def _boundary(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any error here concerns this connection alone
            self.counters.broken += 1
            log.warning("a connection was closed because its handling failed: %s", type(error).__name__)
            self.transport.abort()


def evict(connections: Iterable[object], allowed: int, counters: ServerCounters) -> bool:
    """Close some of the connections that have waited longest for their clients; return whether there were any."""
    waiting = [
        other
        for other in connections
        if isinstance(other, _Connection) and other.waits_for_client and not other.transport.is_closing()
    ]
    # Several are closed at once, so that a crowd of new connections does not cost a search for each of them.
    longest = heapq.nsmallest(max(1, allowed // 8), waiting, key=lambda other: (other.has_data, other.waiting_since))
    for other in longest:
        counters.evicted += 1
        other.transport.abort()
    if longest:
        log.warning("too many connections: closed %d that waited longest for their clients", len(longest))
    return bool(longest)


def connection_type(
    settings: ServerSettings, counters: ServerCounters, loop: asyncio.AbstractEventLoop
) -> type[H11Protocol]:
    """Return the class of the connections of one server, which share their bounds and their turns."""
    shared = {"settings": settings, "counters": counters, "turns": Turns(loop.time, loop.call_soon)}
    return type("Connection", (_Connection,), shared)


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals, which is the service's."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.servers = []
        self._tell_started = started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # In one step of the loop asyncio accepts as many connections as the `backlog` that it was given, hence a small one.
            # This call lets the kernel keep BACKLOG connections that wait to be accepted.
            listener.listen(BACKLOG)
        self._tell_started()


def _files() -> int:
    """Return how many files the process may have open, at this moment."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def _allowed(settings: ServerSettings) -> int:
    """Return how many connections there may be, at this moment."""
    return min(settings.max_connections, max(1, _files() - RESERVED_FILES))


def _tell_of_files(settings: ServerSettings) -> None:
    """Log that the limit of open files is the bound, where it is."""
    if _allowed(settings) < settings.max_connections:
        log.warning(
            "the limit of %d open files allows about %d connections, fewer than max_connections (%d); "
            "raise the limit (ulimit -n)",
            _files(),
            _allowed(settings),
            settings.max_connections,
        )


def _reporter(connections: Iterable[object], counters: ServerCounters) -> Callable[..., None]:
    """Return an exception handler of the loop: it logs, and closes connections if no file descriptor is left."""

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.warning("%s", f"{context.get('message')}: {error!r}" if error else context.get("message"))
        if isinstance(error, OSError) and error.errno in NO_FILES:
            evict(connections, 4 * ACCEPT_STEP, counters)

    return report


async def serve_http(
    app: ASGIApp,
    listener: socket.socket,
    settings: ServerSettings,
    stopping: anyio.Event,
    *,
    counters: ServerCounters,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stopping`; a server that ends before is started again. Closes the listener."""
    loop = asyncio.get_running_loop()
    _tell_of_files(settings)
    connection = connection_type(settings, counters, loop)
    started = anyio.Event()

    def tell_started() -> None:
        if not started.is_set():
            started.set()
            task_status.started()

    pause = RESTART_FIRST
    while not stopping.is_set():
        server = _Server(config(app, connection, settings), tell_started)
        loop.set_exception_handler(_reporter(server.server_state.connections, counters))
        accepting = listener.dup()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_stop_when, stopping, server, listener)
                await server.serve(sockets=[accepting])
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - the producer and the tasks in flight go on
            log.error("the HTTP server ended: %r", _only(error))  # noqa: TRY400
        finally:
            # A server that fails does not close its listening sockets, so they are closed here. Its connections go on.
            for accepter in server.servers:
                accepter.close()
            accepting.close()
        if not stopping.is_set():
            counters.restarts += 1
            log.error("the HTTP server is started again in %.1f s", pause)
            with anyio.move_on_after(pause):
                await stopping.wait()
            pause = min(2 * pause, RESTART_CAP)
    listener.close()
    tell_started()  # also when it was stopped before it could start


def _only(error: BaseException) -> BaseException:
    while len(members := _members(error)) == 1:
        error = members[0]
    return error


def _members(error: BaseException) -> tuple[BaseException, ...]:
    if not isinstance(error, BaseExceptionGroup):
        return ()
    return cast("BaseExceptionGroup[BaseException]", error).exceptions


async def _stop_when(stopping: anyio.Event, server: _Server, listener: socket.socket) -> None:
    await stopping.wait()
    listener.close()
    server.should_exit = True


def config(app: ASGIApp, connection: type[H11Protocol], settings: ServerSettings) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    return uvicorn.Config(
        cast("Any", app),
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_from),
        forwarded_allow_ips=list(settings.forwarded_from),
        # With few connections allowed, a step must not close those of the step before, whose requests are not read yet.
        backlog=max(1, min(ACCEPT_STEP, _allowed(settings) // 16)),
        timeout_keep_alive=cast("int", settings.idle_timeout),
        h11_max_incomplete_event_size=settings.max_header,
    )
