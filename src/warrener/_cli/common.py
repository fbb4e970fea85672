"""What several commands have in common."""

from __future__ import annotations

import argparse
import logging
from typing import Any, TypeAlias

__all__ = ["INTERRUPTED", "Commands", "add_driver", "silence_log"]

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
