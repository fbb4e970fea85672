"""What several commands have in common."""

from __future__ import annotations

import argparse
import logging
import math
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from warrener.records import ConnectionState, Status

if TYPE_CHECKING:
    from warrener._publishing.producer import Producer

__all__ = [
    "INTERRUPTED",
    "Commands",
    "add_driver",
    "next_attempt",
    "print_changes",
    "say",
    "silence_log",
    "status_line",
    "until_signal",
]

#: What `add_subparsers` returns; argparse has no public name for it.
Commands: TypeAlias = Any

#: 128 + SIGINT, as shells count it.
INTERRUPTED = 130


def add_driver(parser: argparse.ArgumentParser) -> None:
    """Add ``--driver``."""
    parser.add_argument(
        "--driver",
        choices=("native", "aiormq"),
        default="native",
        help="the driver of the connection (default: native)",
    )


def silence_log() -> None:
    """Keep the library's log off the terminal: the command itself prints what happens."""
    logging.getLogger("warrener").addHandler(logging.NullHandler())


def next_attempt(status: Status) -> str:
    """Say when the next dial is; nothing where none is due."""
    return "" if status.retry_in is None else f"next attempt in {math.ceil(status.retry_in)} s"


def status_line(status: Status) -> str:
    """Return one line about the connection, as the commands print it that watch a producer."""
    parts = [f"{status.connection_state.value:<12} {status.endpoint}", f"link {status.link}"]
    if status.blocked:
        parts.append("BLOCKED by an alarm of the broker")
    if status.reconnect_attempts:
        parts.append(f"attempt {status.reconnect_attempts}")
    if status.circuit_breaker != "closed":
        parts.append(f"breaker {status.circuit_breaker.replace('_', '-')}")
    if status.retry_in is not None:
        parts.append(next_attempt(status))
    if status.heartbeat is not None and status.connection_state is ConnectionState.CONNECTED:
        parts.append(f"heartbeat {status.heartbeat:g} s")
    # In any other state the newest fault is that of an earlier attempt, and was printed before.
    if status.last_fault is not None and status.connection_state is ConnectionState.DISCONNECTED:
        parts.append(str(status.last_fault))
    return "; ".join(parts)


async def print_changes(producer: Producer) -> None:
    """Print a line for each change of the connection until cancelled, none twice in a row."""
    async with producer.changes() as changes:
        last = ""
        async for status in changes:
            line = status_line(status)
            if line != last:  # the states of the connection are finer than what a line says
                say(line)
            last = line


def say(text: str) -> None:
    """Print one line with the time of day."""
    print(f"{datetime.now().astimezone():%H:%M:%S} {text}", flush=True)


async def until_signal(work: Callable[[], Awaitable[object]]) -> None:
    """Cancel `work` at the first SIGINT or SIGTERM, and return when it has ended. Further signals change nothing.

    An error of `work` is raised without an ExceptionGroup.
    """
    failure: Exception | None = None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as listening:
            scope = anyio.CancelScope()

            async def listen() -> None:
                async for _ in signals:
                    scope.cancel()

            listening.start_soon(listen)
            with scope:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 - raised again behind the task group
                    failure = error
            listening.cancel_scope.cancel()
    if failure is not None:
        raise failure
