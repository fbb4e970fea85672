"""The HTTP server of the service: uvicorn's HTTP/1.1 on asyncio, with bounds for its clients.

uvicorn was chosen because a connection is a protocol object of its own: an exception in it ends that connection and no
other. It offers neither HTTP/2 in clear text nor, as configured here, upgrades or WebSocket. `_Connection` adds the
bounds that uvicorn lacks: a time for the head, a time for a body that nobody reads, and a maximum number of connections.

When there are too many connections, the server closes the connection that has waited longest for its client: for a head,
for the rest of a body, or for an answer to be read. So a client that only waits cannot keep others out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import sys
from collections.abc import Callable, Iterator
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

__all__ = ["ServerCounters", "serve_http"]

log = logging.getLogger("warrener.http")
log.addFilter(RateLimit())

#: Connections that the kernel keeps until they are accepted, and how many are accepted in one step.
BACKLOG = 1024
ACCEPT_STEP = 16
#: File descriptors that connections leave for the broker, the log, files and one step of accepting.
RESERVED_FILES = ACCEPT_STEP + 24
#: Bytes that are read at once, so that a connection holds little more than that.
READ_SIZE = 32 * 1024
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


class _Connection(H11Protocol):
    """One connection. Whatever it raises closes this connection, is logged once and counted."""

    settings: ServerSettings
    counters: ServerCounters
    max_connections: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = log
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
        if len(self.connections) > self.max_connections:
            self._make_place()

    def data_received(self, data: bytes) -> None:
        if self._limit is None and self._idle and self.conn.their_state is h11.IDLE:
            self._expect_head()
        with self._boundary():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_limit()
        with self._boundary():
            super().connection_lost(exc)

    # --- uvicorn's own steps

    def handle_events(self) -> None:
        before = self.scope
        self.app_state = {BEGAN: self._head_began}
        with self._boundary():
            super().handle_events()
        if self.scope is not before:
            self._end_limit()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.waiting_since = self.loop.time()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            # The rest of the body is read and thrown away, for a while: a client that still sends would not read the answer.
            self._end_limit()
            self._limit = self.loop.call_later(self.settings.header_timeout, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this where it has caught h11's error, whose hint is 431 for a head that is too large.
        error = sys.exc_info()[1]
        status = int(getattr(error, "error_status_hint", 400))
        text = f"the head of a request may have at most {self.settings.max_header} bytes" if status == 431 else msg
        self._refuse(status, text)

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
        others: list[_Connection] = [
            other for other in self.connections if isinstance(other, _Connection) and other is not self
        ]
        waiting = [other for other in others if other.waits_for_client and not other.transport.is_closing()]
        if waiting:
            self.counters.evicted += 1
            log.warning("more than %d connections; closing the one that waits longest", self.max_connections)
            min(waiting, key=lambda other: other.waiting_since).transport.abort()
        else:
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
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
            self.counters.broken += 1
            log.warning("a connection was closed because its handling failed: %s", type(error).__name__)
            self.transport.abort()


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
            listener.listen(BACKLOG)  # asyncio accepts as many in one step as it lets wait, so it was given fewer
        self._tell_started()


def _allowed_connections(settings: ServerSettings) -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = max(1, min(settings.max_connections, files - RESERVED_FILES))
    if allowed < settings.max_connections:
        log.warning("the limit of %d open files allows %d connections, not max_connections", files, allowed)
    return allowed


def _quietly(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio reports of its transports and sockets, in one line."""
    error = context.get("exception")
    log.warning("%s", f"{context.get('message')}: {error!r}" if error else context.get("message"))


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
    asyncio.get_running_loop().set_exception_handler(_quietly)
    connection = type(
        "Connection",
        (_Connection,),
        {"settings": settings, "counters": counters, "max_connections": _allowed_connections(settings)},
    )
    pause = RESTART_FIRST
    while not stopping.is_set():
        server = _Server(_config(app, connection, settings), task_status.started if not counters.restarts else _nothing)
        accepting = listener.dup()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_stop_when, stopping, server, listener)
                await server.serve(sockets=[accepting])
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - the producer and the tasks in flight go on
            log.error("the HTTP server ended: %r", _only(error))  # noqa: TRY400
        finally:
            # A server that fails does not close what it accepts from. Its connections go on.
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


def _nothing() -> None:
    pass


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


def _config(app: ASGIApp, connection: type[Any], settings: ServerSettings) -> uvicorn.Config:
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
        backlog=ACCEPT_STEP,
        timeout_keep_alive=cast("int", settings.idle_timeout),
        h11_max_incomplete_event_size=settings.max_header,
    )
