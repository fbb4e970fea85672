"""The service: one nursery that holds the producer, the HTTP server and the signals.

SIGTERM (or SIGINT) shuts down: no new connections, what was accepted is settled and answered, the link is closed, all
within ``shutdown_timeout``; a second signal aborts. SIGHUP dials at once, also after the producer gave up. When the
attempts are used up the process ends with status 75 (EX_TEMPFAIL), for its process manager to start it again later.

Nothing may keep the process alive past its deadline, not even a browser that has stopped reading: the first signal
also sets an alarm that the kernel keeps.
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

import trio
from attrs import define, field

from warrener._settings.settings import SettingsFields
from warrener.errors import ConnectError, SettingsError
from warrener.ml.logs import configure
from warrener.ml.producer import MLProducer
from warrener.ml.settings import MLSettings

__all__ = ["EXIT_GAVE_UP", "main", "serve"]

log = logging.getLogger("warrener")

#: EX_TEMPFAIL of sysexits.h: try again later.
EXIT_GAVE_UP = 75
#: Seconds for the last answers to be written, once they are there.
LAST_ANSWERS = 1.0
#: Seconds beyond ``shutdown_timeout`` after which the kernel ends the process.
GRACE = 3
#: Seconds that an abort may take.
ABORT = 3
#: Connections that may wait to be taken in.
BACKLOG = 1024
#: Seconds after which a connection whose other side takes nothing is dropped.
DEAD_CLIENT = 15.0


@define
class _End:
    """How the process will end."""

    status: int = 0
    stopping: trio.Event = field(factory=trio.Event)
    http_done: trio.Event = field(factory=trio.Event)


def main(config: str | None = None, *, url: str | None = None, **explicit: Any) -> int:
    """Load the settings, serve until told to stop, and return the exit status; mistakes are one line on stderr."""
    bind = "?"
    try:
        settings = MLSettings.load(config, url=url, producer_defaults={"when_exhausted": "raise"}, **explicit)
        bind = settings.bind
        configure(settings.log, settings.log_level)
        return trio.run(partial(serve, settings))
    except (SettingsError, ImportError) as error:
        print(f"warrener serve: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        print(f"warrener serve: cannot listen on {bind}: {reason}", file=sys.stderr)
        return 1


async def serve(
    settings: MLSettings,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    **producer_options: Unpack[SettingsFields],
) -> int:
    """Serve until a signal, or until the producer ends; return the exit status. LinkListener the address when it listens."""
    try:
        import hypercorn.trio
        from hypercorn.config import Config

        from warrener.ml.app import ml_app
        from warrener.ml.history import History
    except ModuleNotFoundError as error:
        raise ImportError(f"the service needs {error.name}: pip install 'warrener[ml]'") from None

    ml = MLProducer(settings, **producer_options)
    history = History(ml)
    end = _End()

    config = Config()
    config.errorlog = logging.getLogger("warrener.http")
    config.graceful_timeout = settings.shutdown_timeout
    config.include_server_header = False
    listener, address = _listen(settings.bind)
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn's from now on

    app = ml_app(ml, history=history)

    async def supervise(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await ml.run(task_status=task_status)
        except ConnectError as error:
            log.error("the producer gave up, ending with status %d: %s", EXIT_GAVE_UP, error)  # noqa: TRY400
            end.status = EXIT_GAVE_UP
        end.stopping.set()

    async def speak(*, task_status: trio.TaskStatus[list[str]]) -> None:
        # Its annotations know only its own names for ASGI's types.
        server: Any = hypercorn.trio
        await server.serve(app, config, shutdown_trigger=end.stopping.wait, task_status=task_status)
        end.http_done.set()

    with _deadman(), _left_clean(settings.bind):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, ml, end, settings, nursery.cancel_scope)
            await nursery.start(supervise)
            nursery.start_soon(history.run)
            await nursery.start(speak)
            log.info("listening on %s", address)
            task_status.started(address)
            await end.stopping.wait()
            history.end()
            with trio.move_on_after(settings.shutdown_timeout) as deadline:
                report = await ml.aclose()
                log.info(
                    "closed: %d confirmed while closing, %d unconfirmed, %d not sent",
                    report.confirmed,
                    len(report.unconfirmed),
                    len(report.not_sent),
                )
                await app.state.wait_empty()
                # All are answered, and small answers are written in no time. hypercorn 0.18 may wait on for a connection
                # whose last request ended just when it was told to stop, and which it has closed already.
                with trio.move_on_after(LAST_ANSWERS):
                    await end.http_done.wait()
            if deadline.cancelled_caught:
                log.warning("shutdown took longer than %g s; what is left is dropped", settings.shutdown_timeout)
            nursery.cancel_scope.cancel()
    return end.status


async def _obey_signals(ml: MLProducer, end: _End, settings: MLSettings, everything: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                log.info("%s: a hint to reconnect", name)
                if not ml.reconnect():
                    log.info("the hint changes nothing: connected, or given less than a second ago")
            elif not end.stopping.is_set():
                log.info("%s: shutting down within %g s; a second one aborts", name, settings.shutdown_timeout)
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
    """Remove a socket that a process left behind: nothing else, and not the address of one that still listens."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
