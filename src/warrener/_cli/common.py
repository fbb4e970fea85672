"""What several commands have in common."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio

__all__ = ["INTERRUPTED", "Commands", "add_driver", "silence_log", "until_signal"]

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


async def until_signal(work: Callable[[], Awaitable[object]]) -> None:
    """Cancel `work` at the first SIGINT or SIGTERM, and return when it has ended. Further signals change nothing."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as listening:
            scope = anyio.CancelScope()

            async def listen() -> None:
                async for _ in signals:
                    scope.cancel()

            listening.start_soon(listen)
            with scope:
                await work()
            listening.cancel_scope.cancel()
