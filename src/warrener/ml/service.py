"""The service: one task group that holds the producer, the HTTP server and the signals.

A failure of the server does not end the producer. A server that ends is started again while the tasks in flight get
their outcome. A producer that cannot go on ends the process: health says so, the waiting clients are answered, and the
exit status tells the process manager what to do.

SIGTERM (or SIGINT) shuts down within ``shutdown_timeout``: the service accepts no more connections, the accepted tasks get
their outcome, and the link is closed. A second signal aborts. SIGHUP dials at once, also after the producer gave up.

Nothing may keep the process alive past its deadline, not even a browser that has stopped reading: the first signal also
sets an alarm of the kernel.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import define, field

from warrener._settings.settings import SettingsFields
from warrener.errors import ConnectError, SettingsError
from warrener.ml.producer import MLProducer
from warrener.ml.settings import MLSettings
from warrener.outbox.errors import OutboxUnusable

try:
    from warrener.ml.app import ml_app
    from warrener.ml.guard import Guard
    from warrener.ml.history import History
    from warrener.ml.http_server import BACKLOG, ServerCounters, serve_http
    from warrener.ml.logs import configure
except ImportError as missing:  # the extra of this service has what the extras of its parts have
    if missing.name is None:
        raise
    raise ImportError(f"the service needs {missing.name}: pip install 'warrener[ml]'") from None

__all__ = ["EXIT_BROKEN", "EXIT_GAVE_UP", "main", "serve"]

log = logging.getLogger("warrener")

#: EX_TEMPFAIL of sysexits.h: the broker was away for too long; start the service again later.
EXIT_GAVE_UP = 75
#: EX_SOFTWARE: the producer failed by an error of its own.
EXIT_BROKEN = 70
#: Seconds for the last answers to be written, once they are there.
LAST_ANSWERS = 1.0
#: Seconds beyond ``shutdown_timeout`` after which the kernel ends the process.
GRACE = 3
#: Seconds that an abort may take.
ABORT = 3
#: Seconds after which the kernel drops a connection whose other side takes no bytes.
DEAD_CLIENT = 15.0


@define
class _End:
    """How the process will end."""

    status: int = 0
    stopping: anyio.Event = field(factory=anyio.Event)
    http_done: anyio.Event = field(factory=anyio.Event)
    #: Why the outbox cannot be opened.
    unusable: OutboxUnusable | None = None


def main(config: str | None = None, *, url: str | None = None, **explicit: Any) -> int:
    """Load the settings, serve until told to stop, and return the exit status; mistakes are one line on stderr."""
    bind = "?"
    try:
        settings = MLSettings.load(config, url=url, producer_defaults={"when_exhausted": "raise"}, **explicit)
        bind = settings.bind
        settings.read_token()
        configure(settings.log, settings.log_level)
        return anyio.run(partial(serve, settings), backend="asyncio")
    except (SettingsError, ImportError, OutboxUnusable) as error:
        print(f"warrener serve: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # An error of the resolver has a negative number, which is no errno; `create_server` adds the address to its text.
        text = (error.strerror or str(error)).partition(" (while")[0]
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else text
        print(f"warrener serve: cannot listen on {bind}: {reason}", file=sys.stderr)
        return 1


async def serve(
    settings: MLSettings,
    *,
    task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
    **producer_options: Unpack[SettingsFields],
) -> int:
    """Serve until a signal, or until the producer ends; return the exit status. Start with the address of the listener."""
    ml = MLProducer(settings, **producer_options)
    history = History(ml)
    end = _End()
    listener, address = _listen(settings.bind)
    app = ml_app(ml, history=history)
    guard = Guard(app, settings, token=settings.read_token(), any_host=settings.bind.startswith("unix:"))

    async def supervise(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            await ml.run(task_status=task_status)
        except ConnectError as error:
            log.error("the producer gave up, ending with status %d: %s", EXIT_GAVE_UP, error)  # noqa: TRY400
            end.status = EXIT_GAVE_UP
        except OutboxUnusable as error:
            end.unusable = error
        except Exception:
            log.exception("the producer failed, ending with status %d", EXIT_BROKEN)
            end.status = EXIT_BROKEN
        end.stopping.set()

    async def speak(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await serve_http(guard, listener, settings, end.stopping, counters=ServerCounters(), task_status=task_status)
        end.http_done.set()

    with _deadman(), _left_clean(settings.bind):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey_signals, ml, end, settings, tasks.cancel_scope)
            try:
                await tasks.start(supervise)
            except RuntimeError:  # `supervise` ended before the producer had started
                if end.unusable is None:
                    raise
                tasks.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(history.run)
            await tasks.start(speak)
            log.info("listening on %s", address)
            task_status.started(address)
            await end.stopping.wait()
            history.end()
            with anyio.move_on_after(settings.shutdown_timeout) as deadline:
                report = await ml.aclose()
                log.info(
                    "closed: %d confirmed, %d unconfirmed, %d not sent",
                    report.confirmed,
                    len(report.unconfirmed),
                    len(report.not_sent),
                )
                await app.state.wait_empty()
                with anyio.move_on_after(LAST_ANSWERS):
                    await end.http_done.wait()
            if deadline.cancelled_caught:
                log.warning(
                    "shutdown took longer than %g s (shutdown_timeout); the tasks without an outcome are dropped",
                    settings.shutdown_timeout,
                )
            tasks.cancel_scope.cancel()
    if end.unusable is not None:
        raise end.unusable
    return end.status


async def _obey_signals(ml: MLProducer, end: _End, settings: MLSettings, everything: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                log.info("%s: the producer is asked to reconnect", name)
                if not ml.reconnect():
                    log.info("the producer need not reconnect: it is connected, or was asked less than a second ago")
            elif not end.stopping.is_set():
                log.info("%s: shutting down within %g s; a second signal aborts", name, settings.shutdown_timeout)
                signal.alarm(math.ceil(settings.shutdown_timeout) + GRACE)
                end.stopping.set()
            else:
                log.warning("%s: aborting", name)
                signal.alarm(ABORT)
                end.status = 128 + number
                everything.cancel()


@contextmanager
def _deadman() -> Iterator[None]:
    """Take back the kernel's alarm, if it was set."""
    try:
        yield
    finally:
        signal.alarm(0)


@contextmanager
def _left_clean(bind: str) -> Iterator[None]:
    """Remove the Unix socket in the end, if it is one."""
    try:
        yield
    finally:
        if bind.startswith("unix:"):
            Path(bind.removeprefix("unix:")).unlink(missing_ok=True)


def _listen(bind: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and its address for people; raises OSError."""
    if bind.startswith("unix:"):
        address = bind.removeprefix("unix:")
        _clear(Path(address))
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    else:
        host, _, port = bind.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Inherited by every connection: one whose client takes nothing is dropped by the kernel.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * DEAD_CLIENT))
        found = listener.getsockname()
        address = f"http://[{found[0]}]:{found[1]}" if family == socket.AF_INET6 else f"http://{found[0]}:{found[1]}"
    listener.setblocking(False)
    return listener, address


def _clear(path: Path) -> None:
    """Remove the socket file of a process that has ended; keep any other file, and a socket that still listens."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
